"""Ctrl-C, held back while a state is changed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back until the end, so that a saved state is never half a step.

    Yields:
        Whether it was pressed meanwhile, for what takes long enough to ask.
    """
    received: list[tuple[int, FrameType | None]] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    handler: Any = signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)
    if received and callable(handler):
        handler(*received[0])
