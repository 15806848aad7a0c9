"""Asking through a provider's batch interface: half the price, answers within a day.

A batch is noted beside the answers before it is waited for. A later build, of whatever recipe, collects what is under
way before it asks for anything; one that asks without batches cancels it, and asks for what it did not answer.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sdbuild.captioners.contract import PATIENCE, AskError, Desk, Provider, Question, Reply
from sdbuild.captioners.texts import clean
from sdbuild.storage.atomic import write_atomic

T = TypeVar("T")

MOST_REQUESTS = 1000
MOST_BYTES = 64 * 1024 * 1024
"""Size of one batch, below what both providers take."""
ROUNDS = 3
"""How often what came back without an answer is sent again."""
FIRST_LOOK, LAST_LOOK = 0.5, 60.0
"""Seconds between two looks at a batch, at first and in the end."""


class Batches:
    """One round of questions, in as few batches as they fit into."""

    def __init__(self, provider: Provider, settings: Mapping[str, Any], store: Path, desk: Desk) -> None:
        self._provider = provider
        self._settings = settings
        self._notes = store / "batches"
        self._desk = desk

    def run(self, questions: Sequence[Question]) -> None:
        """Ask all questions; see `contract.Captioner.answer`."""
        left = {question.key: question for question in questions}
        reasons: dict[str, str] = {}
        for note, keys in self._under_way(left):
            self._desk.warn(f"going on with batch {note.stem}, which has {len(keys)} of the pictures")
            reasons |= self._collect(note, left)
        limit = int(self._settings["max_tokens"])
        for attempt in range(ROUNDS):
            asked = list(left.values())
            for note in self._sent(asked, limit * 2**attempt):
                reasons |= self._collect(note, left)
            if not left:
                return
        for key, question in left.items():
            self._desk.fail(question, reasons.get(key, "the batch has no answer for it"))

    def call_back(self, questions: Sequence[Question]) -> list[Question]:
        """Cancel the batches of earlier builds that hold some questions; what they did not answer."""
        left = {question.key: question for question in questions}
        for note, keys in self._under_way(left):
            self._desk.warn(f"calling back batch {note.stem}, which has {len(keys)} of the pictures")
            self._cancel(_id(note))
            self._collect(note, left)
        return list(left.values())

    def _cancel(self, batch: str) -> None:
        with contextlib.suppress(AskError):  # it may have ended, or be gone, which collecting it finds out
            if not self._provider.progress(batch)[0]:
                self._provider.cancel(batch)

    def _under_way(self, wanted: Mapping[str, Question]) -> Iterator[tuple[Path, list[str]]]:
        """Batches of earlier builds that hold some questions."""
        for note in sorted(self._notes.glob(f"{self._provider.name}.*.json")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                keys = [key for key in json.loads(note.read_bytes())["keys"] if key in wanted]
                if keys:
                    yield note, keys

    def _sent(self, questions: Sequence[Question], max_tokens: int) -> list[Path]:
        """Send questions, and note each batch at once."""
        notes: list[Path] = []
        rows: list[tuple[str, Any]] = []
        size = 0
        for question in questions:
            self._desk.reserve(question, max_tokens)
            request = self._provider.request(question, self._desk.picture(question))
            length = len(json.dumps(request))
            if rows and (len(rows) >= MOST_REQUESTS or size + length > MOST_BYTES):
                notes.append(self._send(rows, max_tokens))
                rows, size = [], 0
            rows.append((question.key, request))
            size += length
        return [*notes, self._send(rows, max_tokens)] if rows else notes

    def _send(self, rows: Sequence[tuple[str, Any]], max_tokens: int) -> Path:
        batch = self._patiently(lambda: self._provider.submit(rows, max_tokens))
        self._notes.mkdir(parents=True, exist_ok=True)
        name = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in batch)
        note = self._notes / f"{self._provider.name}.{name}.json"
        write_atomic(note, json.dumps({"id": batch, "keys": [key for key, _ in rows]}))
        return note

    def _collect(self, note: Path, left: dict[str, Question]) -> dict[str, str]:
        """Wait for a batch and take its answers, those that nobody wants now too; why some questions have none."""
        batch = _id(note)
        try:
            answers = self._answers(batch)
        except AskError as error:
            if error.status == 404:
                note.unlink(missing_ok=True)
                self._desk.warn(f"batch {batch} is not there any more; what it held is asked for again")
                return {}
            if error.then == "skip":  # it was refused as a whole
                note.unlink(missing_ok=True)
            raise
        reasons: dict[str, str] = {}
        stop: AskError | None = None
        noted = frozenset(json.loads(note.read_bytes())["keys"])
        for key, answer in answers:
            if key not in noted:  # nobody asked for it
                continue
            question = left.get(key)
            good = isinstance(answer, Reply) and not answer.cut and bool(clean(answer.text))
            if question is None:
                if isinstance(answer, Reply) and good:
                    self._desk.keep(key, answer)
                continue
            self._desk.settle(question, answer if isinstance(answer, Reply) else answer.took)
            if isinstance(answer, Reply):
                if good:
                    del left[key]
                    self._desk.deliver(question, answer)
                else:
                    reasons[key] = "the answer is empty or cut short"
            elif answer.then == "skip":
                del left[key]
                try:
                    self._desk.fail(question, str(answer))
                except AskError as error:  # too many of them, which takes no answer from the others
                    stop = error
            else:
                reasons[key] = str(answer)
                stop = answer if answer.then == "stop" else stop
        note.unlink(missing_ok=True)
        if stop is not None:
            raise stop
        return reasons

    def _answers(self, batch: str) -> list[tuple[str, Reply | AskError]]:
        pause = FIRST_LOOK
        while not self._patiently(lambda: self._provider.progress(batch))[0]:
            time.sleep(pause)
            pause = min(LAST_LOOK, pause * 1.5)
        return self._patiently(lambda: list(self._provider.results(batch)))

    def _patiently(self, do: Callable[[], T]) -> T:
        """Try again what fails for a while: the batch goes on without us."""
        attempt = 0
        while True:
            try:
                return do()
            except AskError as error:
                attempt += 1
                if error.then != "again":
                    raise
                if attempt >= self._settings["attempts"]:
                    raise AskError(str(error), "stop") from None
                wait = min(30.0, 0.5 * 2 ** (attempt - 1)) if error.wait is None else min(PATIENCE, error.wait)
                time.sleep(wait)


def _id(note: Path) -> str:
    return str(json.loads(note.read_bytes())["id"])
