"""The desk of one asking: hands out pictures, keeps answers, counts what they take."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbuild.captioners import costs
from sdbuild.captioners.contract import AskError, Question, Reply
from sdbuild.captioners.pictures import shown
from sdbuild.captioners.said import Keeper
from sdbuild.errors import DataError, Problem

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_IN_A_ROW = 8
"""So many questions without an answer one after the other, and asking stops."""


class Counter:
    """How far the whole step is: shared by its desks."""

    def __init__(self, progress: Callable[..., None]) -> None:
        self._progress = progress
        self.done = 0
        self.total = 0
        self.tokens = 0
        self.spent = 0.0

    def show(self) -> None:
        """Tell progress, with tokens, and money where prices are known."""
        figures: dict[str, float] = {}
        if self.tokens:
            figures["k tokens"] = self.tokens / 1000
        if self.spent:
            figures["$"] = self.spent
            figures["$ to go"] = self.spent / max(self.done, 1) * (self.total - self.done)
        self._progress(self.done, self.total, "captions", **figures)


@dataclass(slots=True)
class Purse:
    """What one build spends on a dataset, in all passes."""

    spent: float = 0.0
    """US dollars."""
    dearest: float = 0.0
    """What was sent with the dearest request so far cost."""


class AskingDesk:
    """`contract.Desk` of one captioner's questions."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        keeper: Keeper,
        counter: Counter,
        purse: Purse,
        *,
        project: Path,
        background: str,
        warn: Callable[[str], None],
    ) -> None:
        self.answers: dict[str, str] = {}
        """What was said, by key."""
        self.problems: list[Problem] = []
        """What stays without an answer."""
        self.warn = warn
        self._settings = settings
        self._keeper = keeper
        self._counter = counter
        self._project = project
        self._background = background
        self._lock = threading.Lock()
        self._price = costs.price(settings)
        self._purse = purse
        self._reserved: dict[str, float] = {}
        self._in_a_row = 0

    def picture(self, question: Question) -> Image | None:
        """See `contract.Desk`."""
        if not question.shown:
            return None
        try:
            return shown(self._project, question.image, self._background, self._settings["longest_side"])
        except DataError as error:  # it was whole when it was listed
            raise AskError(str(error), "stop") from None

    def reserve(self, question: Question, max_tokens: int) -> None:
        """See `contract.Desk`; what requests took so far corrects the estimate upwards."""
        limit = self._settings.get("max_cost")
        if limit is None or self._price is None:
            return
        sent = costs.input_tokens(question, self._settings) * self._price[0]
        with self._lock:
            most = max(sent, self._purse.dearest) + max_tokens * self._price[1]
            if self._purse.spent + sum(self._reserved.values()) + most > limit:
                message = (
                    f"max_cost: {self._purse.spent:.4g} of {limit:g} dollars are spent, the next request may not fit"
                )
                raise AskError(f"{message}; raise it to go on", "stop")
            self._reserved[question.key] = most

    def settle(self, question: Question, reply: Reply | None) -> None:
        """See `contract.Desk`."""
        with self._lock:
            self._reserved.pop(question.key, None)
            if reply is None:
                return
            self._counter.tokens += reply.input_tokens + reply.output_tokens
            if self._price is not None:
                sent = reply.input_tokens * self._price[0]
                self._purse.dearest = max(self._purse.dearest, sent)
                cost = sent + reply.output_tokens * self._price[1]
                self._purse.spent += cost
                self._counter.spent += cost

    def deliver(self, question: Question, reply: Reply) -> None:
        """See `contract.Desk`."""
        self.keep(question.key, reply)
        with self._lock:
            self.answers[question.key] = reply.text
            self._in_a_row = 0
            self._counter.done += 1
            self._counter.show()

    def keep(self, key: str, reply: Reply) -> None:
        """See `contract.Desk`."""
        self._keeper.keep(key, self._settings["model"], reply)

    def fail(self, question: Question, message: str) -> None:
        """See `contract.Desk`."""
        with self._lock:
            self.problems.append(Problem(file=question.image.path, message=message))
            self._in_a_row += 1
            if self._in_a_row >= MOST_IN_A_ROW:
                raise AskError(f"{self._in_a_row} pictures one after the other got no caption", "stop")
