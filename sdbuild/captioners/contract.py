"""What a captioner is asked, what it answers, and what it is given. Light."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sdbuild.data.records import ImageRecord

if TYPE_CHECKING:
    from PIL.Image import Image

PATIENCE = 300.0
"""Seconds that a server may ask to wait; for longer a build does not stay, nor between two looks at a batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a model is asked about one picture; asked alike, it has the same key."""

    key: str
    image: ImageRecord
    prompt: str
    instruction: str | None
    """The recipe's own words in it, for models that go on from a beginning; None where a style has no such words."""
    shown: bool
    """Whether the picture goes with the prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a model said."""

    text: str
    cut: bool = False
    """The answer was longer than it might be, so its end is missing."""
    input_tokens: int = 0
    output_tokens: int = 0


class AskError(Exception):
    """A question has no answer (yet)."""

    def __init__(
        self,
        message: str,
        then: Literal["again", "skip", "stop"],
        *,
        wait: float | None = None,
        busy: bool = False,
        status: int | None = None,
        took: Reply | None = None,
    ) -> None:
        """Say what went wrong and what that means.

        Args:
            message: for people, without secrets.
            then: try `again`, `skip` this question, or `stop` asking.
            wait: seconds that the server asks for.
            busy: the server has too much to do, so that all should wait.
            status: of the answer over HTTP, where there was one.
            took: what was answered and is paid for, though it is of no use.
        """
        super().__init__(message)
        self.then = then
        self.wait = wait
        self.busy = busy
        self.status = status
        self.took = took


class Desk(Protocol):
    """Where a captioner takes pictures from and puts answers; safe to use from several threads."""

    def picture(self, question: Question) -> Image | None:
        """The picture to show, upright, in RGB, scaled down; None for a question in words only."""

    def reserve(self, question: Question, max_tokens: int) -> None:
        """Set money aside for a request that is about to be sent; raises `AskError` if there is not enough left."""

    def settle(self, question: Question, reply: Reply | None) -> None:
        """Count what a request really took, be its answer of use or not."""

    def deliver(self, question: Question, reply: Reply) -> None:
        """Keep an answer: it is safe on disk when this returns."""

    def keep(self, key: str, reply: Reply) -> None:
        """Keep an answer that was paid for, though nobody asks for it now."""

    def fail(self, question: Question, message: str) -> None:
        """Note that a picture stays without a caption; raises `AskError` when that happens to one after the other."""

    def warn(self, message: str) -> None:
        """Say something to the user once."""


class Captioner(Protocol):
    """Whatever can answer questions."""

    def answer(self, questions: Sequence[Question], desk: Desk) -> None:
        """Answer some questions; what arrives goes to the desk at once.

        Raises:
            AskError: no further question can be answered; what was delivered is kept.
        """


class Provider(Protocol):
    """A service that is asked over the network; used from several threads."""

    name: str

    def request(self, question: Question, picture: Image | None) -> Any:
        """What is sent, without the limit of the answer."""

    def ask(self, request: Any, max_tokens: int, timeout: float) -> Reply:
        """Send a request once.

        Raises:
            AskError: there is no answer.
        """

    def submit(self, requests: Sequence[tuple[str, Any]], max_tokens: int) -> str:
        """Send requests with their keys as a batch; its id."""

    def progress(self, batch: str) -> tuple[bool, int]:
        """Whether a batch has ended, and how many of its requests are done."""

    def cancel(self, batch: str) -> None:
        """Ask for no more of a batch; it ends with what was answered till then."""

    def results(self, batch: str) -> Iterator[tuple[str, Reply | AskError]]:
        """Answers of a batch that has ended, by the keys of its requests."""

    def close(self) -> None:
        """Close connections."""
