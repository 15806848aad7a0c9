"""Memory for decoded pictures: threads wait until there is room for their next one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PIXEL = 12
"""Bytes that a pixel takes at most while it is decoded, turned and converted."""
SHARE = 4
"""Of the machine's memory one part in so many is for decoded pictures."""
LEAST = 32_000_000
"""Pixels that there is always room for."""
_LIMIT = Path("/sys/fs/cgroup/memory.max")


class PixelBudget:
    """So many pixels may be in memory at once; one picture alone always fits, whatever its size."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self._used = 0
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._own = threading.local()

    @contextmanager
    def held(self) -> Iterator[None]:
        """What this thread decodes inside counts until the end, where it is no longer in memory."""
        depth = getattr(self._own, "depth", 0)
        self._own.depth = depth + 1
        try:
            yield
        finally:
            self._own.depth = depth
            if depth == 0:
                with self._changed:
                    self._used -= getattr(self._own, "pixels", 0)
                    self._own.pixels = 0
                    self._changed.notify_all()

    def take(self, pixels: int) -> None:
        """Wait for room, inside `held`; a thread that has some takes more at once, so that none waits for itself."""
        mine = getattr(self._own, "pixels", 0)
        if mine:
            with self._changed:
                self._used += pixels
        else:
            with self._turn, self._changed:  # first come, first served: a large picture is not passed by for ever
                self._changed.wait_for(lambda: not self._used or self._used + pixels <= self.pixels)
                self._used += pixels
        self._own.pixels = mine + pixels


def _memory() -> int:
    """Bytes of memory of this machine, or of the part of it that this process may use."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else []
    with suppress(OSError, ValueError):
        found.append(int(_LIMIT.read_text()))
    return min(found, default=0)


PIXEL_BUDGET = PixelBudget(max(LEAST, _memory() // SHARE // PIXEL))
"""Of this process."""
