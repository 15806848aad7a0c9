"""What providers have in common: keys, clients that may be missing, answers read whole, errors in words.

Nothing that is said here holds a key: what a server or a client says goes through `Secret.hide`.
"""

from __future__ import annotations

import email.utils
import importlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

from sdbuild.captioners.contract import AskError, Reply
from sdbuild.captioners.texts import clean
from sdbuild.errors import StepError
from sdbuild.storage.phrases import cut

_BUSY = (429, 503, 529)
_AGAIN = (408, 409, 425, *_BUSY)
_QUOTA = (
    *("insufficient_quota", "exceeded your current quota", "billing_hard_limit", "billing_error"),
    *("credit balance", "spend limit", "spend_limit"),
)
"""Words of errors that no waiting helps with."""
_LONGEST = 200
MOST_LETTERS = 50_000
"""Of an answer that is taken; captions have some hundred."""
_MOST_TOKENS = 10**9


class Secret:
    """A key from the environment; it is never printed."""

    def __init__(self, variable: str, *, optional: bool = False, withheld: str | None = None) -> None:
        """Read it.

        Args:
            variable: that holds it.
            optional: whether the server may do without.
            withheld: why it is not sent to its server, if it is not.

        Raises:
            StepError: it is not there, or no key.
        """
        self.variable = variable
        self.missing = withheld or f"{variable} is not set"
        self._value = "" if withheld else os.environ.get(variable, "").strip()
        if not self._value and not optional:
            raise StepError(f"{variable} is not set: put the provider's key into the environment and run doit again")
        if not (self._value.isascii() and self._value.isprintable()) or " " in self._value:
            raise StepError(f"{variable} holds no key: it has characters that keys do not have")

    def __repr__(self) -> str:
        return f"Secret({self.variable})"

    @property
    def is_set(self) -> bool:
        """Whether there is one."""
        return bool(self._value)

    @property
    def value(self) -> str:
        """The key, for the client alone; where there is none, a word that servers without keys pass over."""
        return self._value or "none"

    def hide(self, text: object) -> str:
        """A text for people, on one line, without the key."""
        shown = str(text)
        if self._value:
            shown = shown.replace(self._value, "***")
        shown = clean(shown[: 10 * _LONGEST])
        return cut(shown, _LONGEST)


def client_module(name: str) -> ModuleType:
    """Import a provider's client.

    Raises:
        StepError: it is not installed; the message has the command.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        message = f'captions from {name} need its client: pip install "sdbuild[{name}]"'
        raise StepError(message) from None


def read_whole(chunks: Iterable[bytes], timeout: float, started: float) -> dict[str, Any]:
    """Read a JSON object that arrives in pieces.

    Raises:
        AskError: it is not there in time, or none.
    """
    found = bytearray()
    for chunk in chunks:
        found += chunk
        if time.monotonic() - started > timeout:
            raise AskError(f"no whole answer within {timeout:g} s", "again")
    try:
        content = json.loads(found)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise AskError("the server answered something that is not JSON", "again")
    return content


def text_of(content: object) -> str:
    """The text of an answer, or of its parts."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part["type"] == "text")
    if not isinstance(content, str):
        raise TypeError("an answer is a text")
    return content


def count_of(value: object) -> int:
    """A number of tokens, as far as it can be one."""
    return min(max(0, int(value or 0)), _MOST_TOKENS)  # type: ignore[call-overload, no-any-return]


def whole(reply: Reply) -> Reply:
    """The same answer.

    Raises:
        AskError: it is too long for a caption.
    """
    if len(reply.text) > MOST_LETTERS:
        message = f"the answer has {len(reply.text):,} letters; lower max_tokens, or write its caption"
        raise AskError(message, "skip", took=replace(reply, text=""))
    return reply


def refused(took: Reply) -> AskError:
    """What a refusal is to a question; it costs as any answer does."""
    message = "the model refuses to describe it; write its caption into a .txt file beside it"
    return AskError(message, "skip", took=took)


@contextmanager
def understanding() -> Iterator[None]:
    """Take an answer apart; one of another shape is no answer."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError, RecursionError):
        raise AskError("the server answered something that is no answer", "again") from None


@contextmanager
def faults(client: ModuleType, secret: Secret, model: str, timeout: float) -> Iterator[None]:
    """Turn a client's errors into `AskError`, without their tracebacks, which may hold what was sent."""
    import httpx2

    try:
        yield
    except AskError as error:
        raise AskError(
            secret.hide(error), error.then, wait=error.wait, busy=error.busy, status=error.status, took=error.took
        ) from None
    except (client.APITimeoutError, httpx2.TimeoutException):
        raise AskError(f"no answer within {timeout:g} s", "again") from None
    except client.APIStatusError as error:
        raise status_error(error.status_code, error.body, error.response.headers, secret, model) from None
    except (client.APIConnectionError, httpx2.HTTPError) as error:
        if isinstance(error.__cause__, AskError):
            raise error.__cause__ from None
        reason = secret.hide(error.__cause__ or error) or type(error).__name__
        raise AskError(f"the connection broke ({reason})", "again") from None
    except Exception as error:
        raise AskError(f"the client failed ({type(error).__name__}: {secret.hide(error)})", "stop") from None


def status_error(status: int, body: object, headers: Mapping[str, str], secret: Secret, model: str) -> AskError:
    """What an answer means that is none."""
    said = secret.hide(_said(body))
    reason = f"{status}: {said}" if said else str(status)
    lowered = f"{json.dumps(body, default=str)}".lower()
    if status == 402 or (status in (400, 403, 429) and any(word in lowered for word in _QUOTA)):
        return AskError(f"the account has no credit left ({reason})", "stop")
    if 300 <= status < 400:
        to = secret.hide(headers.get("location", "another address"))
        return AskError(f"the server redirects to {to} ({status}); redirects are not followed", "stop")
    if status in (401, 403):
        if not secret.is_set:
            return AskError(f"the server wants a key, and {secret.missing} ({reason})", "stop")
        return AskError(f"the key in {secret.variable} is refused ({reason})", "stop")
    if status == 404:
        return AskError(f"the server does not know {model} ({reason})", "stop", status=status)
    if status in _AGAIN or status >= 500:
        what = "the server has too much to do" if status in _BUSY else "the server failed"
        return AskError(f"{what} ({reason})", "again", wait=_wait(headers), busy=status in _BUSY)
    return AskError(f"the request is refused ({reason})", "skip")


def _said(body: object) -> str:
    """The message of an error's body; both providers put it into `error.message`, one client unwraps it."""
    inner = body.get("error", body) if isinstance(body, Mapping) else body
    message = inner.get("message", "") if isinstance(inner, Mapping) else ""
    return message if isinstance(message, str) else ""


def _wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, or `retry-after` as a number or a date."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text) / unit
        except ValueError:
            try:
                date = email.utils.parsedate_tz(text)
                seconds = 0.0 if date is None else email.utils.mktime_tz(date) - time.time()
            except (ValueError, OverflowError):  # of no year that there is
                continue
        if seconds > 0:  # NaN is not; none at all is no answer to how long
            return seconds
    return None
