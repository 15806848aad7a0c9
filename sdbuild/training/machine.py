"""What memory a device has, and how the main memory is given back."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's `mallopt`."""
_USUAL = 32 << 20
"""Bytes to which glibc's own limit grows (DEFAULT_MMAP_THRESHOLD_MAX)."""
_FIRST = 128 << 10
"""What it is at first."""

PEAK, RESIDENT = "VmHWM:", "VmRSS:"
"""Linux's names of what a process has taken at most, and what it takes."""
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where containers are told how much they may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A device's memory in bytes."""

    kind: str
    """``cpu`` or ``cuda``."""
    has: int
    """All of it; on the processor with what can be swapped out."""
    free: int
    """What nobody has taken; on the processor with what the system would give back."""

    @property
    def bound(self) -> int:
        """What no training here can exceed: GPUs cannot swap, and what others have taken there stays."""
        return self.free if self.kind == "cuda" else self.has


def machine(device: torch.device) -> Machine | None:
    """Ask a device; None where it does not tell."""
    if device.type == "cuda":
        free, has = torch.cuda.mem_get_info(device)
        return Machine(kind="cuda", has=has, free=free + torch.cuda.memory_reserved(device))
    known = dict(_meminfo())
    if "MemAvailable" in known:
        has, free = known["MemTotal"] + known.get("SwapTotal", 0), known["MemAvailable"]
    else:
        try:
            has = free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError, AttributeError):
            return None
    limit = _limit()
    return (
        Machine(kind="cpu", has=min(has, limit), free=min(free, limit))
        if limit
        else Machine(kind="cpu", has=has, free=free)
    )


def peak(device: torch.device) -> int:
    """Return the most bytes that were taken at once: of the GPU, or of the main memory by this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else process_memory(PEAK)


def forget_peak(device: torch.device) -> None:
    """Let `peak` count from now on, where that can be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (place := Path("/proc/self/clear_refs")).exists():
        place.write_text("5")


def process_memory(what: str) -> int:
    """Return bytes of this process, as Linux tells them; elsewhere the peak."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(what)) * 1024
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def _meminfo() -> Iterator[tuple[str, int]]:
    """Linux's figures, in bytes."""
    place = Path("/proc/meminfo")
    if place.exists():
        for line in place.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if value.endswith(" kB"):
                yield name, int(value.removesuffix(" kB")) * 1024


def _limit() -> int | None:
    """What the container of this process may take."""
    for place in map(Path, _LIMITS):
        try:
            return int(place.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
    return None


def gives_back(train: Mapping[str, Any]) -> bool:
    """Whether a recipe's section `train` trades time for memory."""
    return bool(train.get("gradient_checkpointing")) or train["accumulate"] > 1


@contextmanager
def given_back(device: torch.device, train: Mapping[str, Any]) -> Iterator[None]:
    """Within it, glibc gives blocks from 128 KiB on back as soon as they are free, if `gives_back`, on the processor.

    By itself it keeps those below 32 MiB for later, and where blocks of many sizes come and go, most of what gradient
    checkpointing frees stays taken. Steps take a tenth more time with it.
    """
    mallopt = _mallopt() if gives_back(train) and device.type == "cpu" else None
    if mallopt is not None:
        _limit_kept(mallopt, _FIRST)
    try:
        yield
    finally:
        if mallopt is not None:
            _limit_kept(mallopt, _USUAL)


def _mallopt() -> Any:
    return getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None


def _limit_kept(mallopt: Any, size: int) -> None:
    mallopt(_M_MMAP_THRESHOLD, size)
    mallopt(_M_TRIM_THRESHOLD, 2 * size)
