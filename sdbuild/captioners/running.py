"""Asking a provider: several requests at once, each tried again until it is answered or cannot be."""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdbuild.captioners.batches import Batches
from sdbuild.captioners.contract import PATIENCE, AskError, Desk, Provider, Question
from sdbuild.captioners.texts import clean

AHEAD = 2
"""Pictures that are made ready while all requests are under way."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before a second try, and at most before a later one, where the server names none."""
GRACE = 8.0
"""Seconds for answers that are under way when the build is stopped."""


@dataclass(frozen=True)
class Hosted:
    """`contract.Captioner` of a provider's models."""

    provider: Provider
    settings: Mapping[str, Any]
    store: Path
    """Folder of the answers, where batches that are under way are noted too."""

    def answer(self, questions: Sequence[Question], desk: Desk) -> None:
        """See `contract.Captioner`."""
        batches = Batches(self.provider, self.settings, self.store, desk)
        try:
            if self.settings["batch"]:
                batches.run(questions)
            else:
                Asking(self.provider, self.settings, desk).run(batches.call_back(questions))
        finally:
            self.provider.close()


class Asking:
    """One round of questions, several at once."""

    def __init__(self, provider: Provider, settings: Mapping[str, Any], desk: Desk) -> None:
        self._provider = provider
        self._settings = settings
        self._desk = desk
        self._slots = threading.Semaphore(settings["parallel"])
        self._stop = threading.Event()
        self._trouble: list[BaseException] = []
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._answered = 0
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()

    def run(self, questions: Sequence[Question]) -> None:
        """Ask all questions; see `contract.Captioner.answer`."""
        self._left = iter(questions)
        count = min(len(questions), self._settings["parallel"] + AHEAD)
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        left = 0
        try:  # joining threads is no way to wait: until Python 3.13 an interrupted join takes its thread for ended
            for thread in threads:
                left += 1
                thread.start()
            while left:
                self._ended.get()
                left -= 1
        except KeyboardInterrupt:  # what is under way is paid for
            self._stop.set()
            until = time.monotonic() + GRACE
            with contextlib.suppress(queue.Empty):
                for _ in range(left):
                    self._ended.get(timeout=max(0.0, until - time.monotonic()))
            raise
        if self._trouble:
            raise self._trouble[0]

    def _work(self) -> None:
        try:
            while (question := self._next()) is not None:
                request = self._provider.request(question, self._desk.picture(question))
                with self._slots:
                    try:
                        self._ask(question, request)
                    except BaseException:
                        self._stop.set()  # before another one has the slot
                        raise
        except BaseException as error:
            with self._lock:
                self._trouble.append(error)
            self._stop.set()
        finally:
            self._ended.put(None)

    def _next(self) -> Question | None:
        with self._lock:
            return None if self._stop.is_set() else next(self._left, None)

    def _ask(self, question: Question, request: Any) -> None:
        limit = int(self._settings["max_tokens"])
        was_cut = was_empty = False
        attempt = 0
        answered = self._answered
        while True:
            self._wait_for_turn()
            if self._stop.is_set():
                return
            self._desk.reserve(question, limit)
            try:
                reply = self._provider.ask(request, limit, self._settings["timeout"])
            except AskError as error:
                self._desk.settle(question, error.took)
                # As long as a busy server answers others, this one's turn will come.
                attempt = 1 if error.busy and self._answered > answered else attempt + 1
                answered = self._answered
                if error.then == "stop":
                    raise
                if error.then == "skip" or attempt >= self._settings["attempts"]:
                    tried = f" ({attempt} tries)" if error.then == "again" else ""
                    self._desk.fail(question, f"{error}{tried}")
                    return
                self._pause(attempt, error)
                continue
            self._desk.settle(question, reply)
            self._answered += 1
            if reply.cut and was_cut:
                self._desk.fail(question, f"the answer has more than {limit} tokens; raise max_tokens")
            elif reply.cut:
                was_cut, limit = True, 2 * limit
                continue
            elif not clean(reply.text) and was_empty:
                self._desk.fail(question, "the model answers nothing; change the instruction, or write its caption")
            elif not clean(reply.text):
                was_empty = True
                continue
            else:
                self._desk.deliver(question, reply)
            return

    def _wait_for_turn(self) -> None:
        while (seconds := self._not_before - time.monotonic()) > 0 and not self._stop.wait(seconds):
            continue

    def _pause(self, attempt: int, error: AskError) -> None:
        seconds = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * random.uniform(0.75, 1.25)
        if error.wait is not None:
            if error.wait > PATIENCE:
                raise AskError(f"{error}; it asks to wait {error.wait:.0f} s: run doit again later", "stop")
            seconds = error.wait * random.uniform(1.0, 1.1)
        if error.busy:
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + seconds)
        else:
            self._stop.wait(seconds)
