"""The only module that prints: rich on a terminal, plain lines elsewhere.

Everything goes through `sdbuild.storage.terminal_text`: whatever it was made of, a line stays a line of text.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any, TextIO

from sdbuild.storage import terminal_text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PLAIN_EVERY = 5.0
"""Seconds between two lines of progress where there is no terminal."""

_STYLES = {
    "old": "red",
    "new": "green",
    "strong": "bold",
    "faint": "dim",
    # parts of a training's memory
    "base": "blue",
    "adapter": "green",
    "gradients": "yellow",
    "optimizer": "magenta",
    "activations": "red",
    "libraries": "white",
    "data": "cyan",
}


class Console:
    """Says what happens; thread-safe."""

    def __init__(self, out: TextIO | None = None, errors: TextIO | None = None) -> None:
        self._out = terminal_text.tolerant(terminal_text.unguarded(out or sys.stdout))
        self._errors = terminal_text.tolerant(terminal_text.unguarded(errors or sys.stderr))
        self._lock = threading.RLock()
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._printed: dict[str, float] = {}

    @property
    def is_terminal(self) -> bool:
        """Whether a person watches."""
        return self._out.isatty()

    def say(self, text: str) -> None:
        """One line of what is going on."""
        self._print(terminal_text.line(text))

    def json(self, value: Any, indent: int = 1) -> None:
        """A value for programs."""
        self._print(terminal_text.as_json(value, indent))

    def _print(self, text: str) -> None:
        with self._lock:
            if self._progress is not None:
                from rich.text import Text  # a plain text would have its :emoji: replaced

                self._progress.console.print(Text(text), soft_wrap=True)
                return
            try:
                print(text, file=self._out, flush=True)
            except BrokenPipeError:
                self.hush()

    def styled(self, pieces: Iterable[tuple[str, str]]) -> None:
        """One line of pieces, each with a style of `_STYLES` or none; plain where there is no terminal."""
        if not self.is_terminal:
            self.say("".join(text for text, _ in pieces))
            return
        from rich.console import Console as RichConsole
        from rich.text import Text

        line = Text.assemble(*((terminal_text.line(text), _STYLES.get(style, "")) for text, style in pieces))
        with self._lock:
            RichConsole(file=self._out).print(line, soft_wrap=True)

    def hush(self) -> None:
        """Say no more: whoever read a pipe has seen enough. What goes on, such as a build, goes on."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._out.fileno())
            os.close(nowhere)

    def warn(self, text: str) -> None:
        """Something that the user should know but that stops nothing."""
        self.say(f"warning: {text}")

    def error(self, text: str) -> None:
        """Why something ended, in one line or a few."""
        with self._lock:
            self.stop()
            with contextlib.suppress(BrokenPipeError):
                print(terminal_text.lines(text), file=self._errors, flush=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str | Sequence[str]]]) -> None:
        """A table for people; a cell is a line, or a sequence of them."""
        from rich.console import Console as RichConsole
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, show_edge=False)
        for column in columns:
            table.add_column(Text(terminal_text.line(column)), overflow="fold")
        for row in rows:
            table.add_row(
                *(Text("\n".join(map(terminal_text.line, [cell] if isinstance(cell, str) else cell))) for cell in row)
            )
        with self._lock:
            if self.is_terminal:
                RichConsole(file=self._out).print(table)
                return
            text = StringIO()
            RichConsole(file=text, width=160).print(table)
            self._print("\n".join(line.rstrip() for line in text.getvalue().split("\n")).rstrip("\n"))

    def step_started(self, name: str, reasons: Sequence[str]) -> None:
        """A step begins to run, and why."""
        with self._lock:
            because = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
            self.say(f"{name}  {because}" if because else name)
            self._started[name] = self._printed[name] = time.monotonic()

    def step_progress(self, name: str, done: int, total: int, unit: str, figures: Mapping[str, float]) -> None:
        """How far a step is."""
        with self._lock:
            now = time.monotonic()
            text = _rate(done, total, unit, now - self._started.get(name, now), figures)
            if self.is_terminal:
                self._bar(name, done, total, text)
            elif now - self._printed.get(name, now) >= _PLAIN_EVERY:
                self._printed[name] = now
                self.say(f"{name}  {done}/{total} {text}")

    def step_done(self, name: str, total: int, computed: int, seconds: float) -> None:
        """A step ran to its end."""
        with self._lock:
            self._drop(name)
            self.say(f"{name}  done: {computed} of {total} computed, {_duration(seconds)}")

    def step_failed(self, name: str) -> None:
        """A step ended early; the error follows."""
        with self._lock:
            self._drop(name)

    @contextmanager
    def transfer(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Show how far a transfer is: what is given takes the number of files that are done, and of all."""
        with self._lock:
            self._started[name] = self._printed[name] = time.monotonic()
        try:
            yield lambda done, total: self.step_progress(name, done, total, "files", {})
        finally:
            with self._lock:
                self._drop(name)

    def stop(self) -> None:
        """Take the progress display off the screen."""
        with self._lock:
            if self._progress is not None:
                self._progress.stop()
                self._progress = None
                self._tasks.clear()

    def _bar(self, name: str, done: int, total: int, text: str) -> None:
        if self._progress is None:
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, Progress, TextColumn

            columns: list[Any] = [
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                TextColumn("{task.completed}/{task.total} {task.fields[figures]}", markup=False),
            ]
            self._progress = Progress(*columns, console=RichConsole(file=self._out), transient=True)
            self._progress.start()
        text = terminal_text.line(text)
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(terminal_text.line(name), total=total, figures=text)
        self._progress.update(self._tasks[name], completed=done, total=total, figures=text)

    def _drop(self, name: str) -> None:
        self._started.pop(name, None)
        task = self._tasks.pop(name, None)
        if task is not None and self._progress is not None:
            self._progress.remove_task(task)
            if not self._tasks:
                self.stop()


def _rate(done: int, total: int, unit: str, seconds: float, figures: Mapping[str, float]) -> str:
    words = [unit]
    if done > 0 and seconds > 0:
        words.append(f"{done / seconds:.3g}/s")
        if done < total:
            words.append(f"{_duration((total - done) * seconds / done)} left")
    words += [f"{name} {value:.4g}" for name, value in figures.items()]
    return "  ".join(words)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
