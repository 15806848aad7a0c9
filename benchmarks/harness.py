"""What all benchmarks share: measuring commands, rows of the table, options."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import environment


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How to measure."""

    small: bool = False
    """Sizes with which a benchmark ends in seconds; its figures mean little then."""
    pictures: Path | None = None
    """Folder of pictures for `one_picture`."""
    built: Path | None = None
    """A project whose recipe `cat` is built, to be copied in place of building one; for tests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    measured: str
    bar: str
    ok: bool
    notes: tuple[str, ...] = ()
    """The absolute figures behind it, for information."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a command took, with all processes that it waited for."""

    cpu: float
    """User and system seconds."""
    wall: float
    out: str
    """What it printed."""

    def __str__(self) -> str:
        return f"{self.cpu:.3g} s CPU, {self.wall:.3g} s"


Measure = Callable[[Options], Sequence[Row]]


def at_most(what: str, ratio: float, bar: float, *notes: str) -> Row:
    """Make a row whose ratio has an upper bar."""
    return Row(what=what, measured=f"{ratio:.2f}x", bar=f"<= {bar:g}x", ok=ratio <= bar, notes=notes)


def at_least(what: str, ratio: float, bar: float, *notes: str) -> Row:
    """Make a row whose ratio has a lower bar."""
    return Row(what=what, measured=f"{ratio:.2f}x", bar=f">= {bar:g}x", ok=ratio >= bar, notes=notes)


def cost(command: Sequence[str], folder: Path) -> Cost:
    """Run a command to its end; one that fails raises `RuntimeError` with what it printed."""
    with tempfile.TemporaryFile() as file:
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        file.seek(0)
        out = file.read().decode(errors="replace")
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{out}")
    return Cost(cpu=usage.ru_utime + usage.ru_stime, wall=wall, out=out)


def median_costs(commands: Mapping[str, tuple[Sequence[str], Path]], runs: int) -> dict[str, Cost]:
    """Median costs of commands that take turns, so that they share the machine's good and bad moments."""
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, (command, folder) in commands.items():
            costs[name].append(cost(command, folder))
    return {
        name: Cost(
            cpu=statistics.median(each.cpu for each in found),
            wall=statistics.median(each.wall for each in found),
            out=found[-1].out,
        )
        for name, found in costs.items()
    }


@dataclass(kw_only=True, slots=True)
class Watch:
    """Seconds of this process since the last look: on the wall, and of the processor in all its threads."""

    wall: float = 0.0
    cpu: float = 0.0

    def look(self) -> tuple[float, float]:
        """Return wall and processor seconds since the last look."""
        wall, cpu = time.monotonic(), time.process_time()
        passed = wall - self.wall, cpu - self.cpu
        self.wall, self.cpu = wall, cpu
        return passed


@contextmanager
def folder() -> Iterator[Path]:
    """Give a folder that goes at the end."""
    with tempfile.TemporaryDirectory(prefix="sdbuild-bench-", ignore_cleanup_errors=True) as name:
        yield Path(name).resolve()


def told(text: str) -> None:
    """Say on the standard error how far the benchmarks are."""
    print(text, file=sys.stderr, flush=True)


def show(rows: Sequence[Row]) -> None:
    """Print the table and, below, the figures behind it."""
    cells = [("what", "measured", "bar", "ok"), *((r.what, r.measured, r.bar, "yes" if r.ok else "NO") for r in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print()
    for row in rows:
        print(f"{row.what}:")
        for note in row.notes:
            print(f"    {note}")


def main(*measures: Measure) -> int:
    """Measure and print; the exit code says whether all bars hold."""
    parser = argparse.ArgumentParser(description="speed and memory of sdbuild, as ratios in one run")
    parser.add_argument("--small", action="store_true", help="small sizes: seconds, figures without meaning")
    parser.add_argument("--pictures", type=Path, help="folder of pictures for one_picture (default: made ones)")
    given = parser.parse_args()
    options = Options(small=given.small, pictures=given.pictures and given.pictures.resolve())
    rows: list[Row] = []
    for measure in measures:
        told(f"{measure.__module__} ...")
        rows += measure(options)
    show(rows)
    return 0 if options.small or all(row.ok for row in rows) else 1
