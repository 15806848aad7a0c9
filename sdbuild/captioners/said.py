"""What models have said, by key: one file of JSON lines, to which each answer is added as it arrives. Light.

It is shared by all recipes and safe to delete. Lines are written by one call each, so that a killed process leaves
whole lines, but for the last; a line that is not whole counts as not there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from sdbuild.captioners.contract import Reply

FOLDER = "captions"
"""Name of the store's folder beside the other item stores."""
_SYNC_SECONDS = 1.0


def read_said(folder: Path) -> dict[str, str]:
    """Everything that was ever said, by key."""
    found: dict[str, str] = {}
    try:
        content = (folder / "said.jsonl").read_bytes()
    except OSError:
        return found
    for line in content.split(b"\n"):
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            row = json.loads(line)
            key, text = row["key"], row["text"]
            if isinstance(key, str) and isinstance(text, str):
                found[key] = text
    return found


class Keeper:
    """Adds answers to the store; used from several threads."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / "said.jsonl", os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        self._lock = threading.Lock()
        self._synced = time.monotonic()
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":  # the end of a line that a kill cut short
            os.write(self._file, b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            os.fdatasync(self._file)
            os.close(self._file)
            self._file = -1  # an answer that comes later is refused, not written elsewhere

    def keep(self, key: str, model: str, reply: Reply) -> None:
        """Add an answer; it outlives this process when this returns."""
        row = {
            "key": key,
            "text": reply.text,
            "model": model,
            "input_tokens": reply.input_tokens,
            "output_tokens": reply.output_tokens,
        }
        line = json.dumps(row).encode() + b"\n"
        with self._lock:
            written = os.write(self._file, line)
            while written < len(line):
                written += os.write(self._file, line[written:])
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fdatasync(self._file)
                self._synced = time.monotonic()


@contextlib.contextmanager
def alone(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Keep others from asking meanwhile, so that nothing is asked twice; the lock goes with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
