"""Replacements for parts of doit: a database that survives damage, quiet cleaning, messages for unknown names."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from doit import cmd_base, control, runner
from doit.exceptions import InvalidCommand, TaskFailed
from doit.task import Task

from sdbuild.errors import of_system
from sdbuild.storage.phrases import did_you_mean

_READ_ONLY = frozenset({"list", "info", "help", "clean", "ignore", "forget", "reset-dep", "dumpdb", "strace"})
"""doit's commands that build nothing."""
_STATEFUL = frozenset({"ignore", "forget", "reset-dep", "dumpdb"})
"""doit's commands that change what it remembers between runs; building needs nothing of it."""


class Codec:
    """doit's database as JSON; a damaged one counts as empty."""

    def encode(self, data: Any) -> str:
        """As text."""
        return json.dumps(data)

    def decode(self, data: str) -> dict[str, Any]:
        """From text; a damaged database is an empty one."""
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            return {}
        if not isinstance(found, dict) or not all(isinstance(values, dict) for values in found.values()):
            return {}
        return found


def database(root: Path) -> str:
    """Where doit keeps its database: nowhere, but for what `doit ignore` has noted.

    The oracle alone decides what is fresh, so a build writes nothing there, which a full disk could stop.
    """
    path = root / ".sdbuild" / "doit"
    if _command() in _STATEFUL:
        if not os.access(path if path.exists() else path.parent if path.parent.exists() else root, os.W_OK):
            sys.stderr.write(f"{path.relative_to(root)} cannot be written; mend its owner or its permissions\n")
            raise SystemExit(1)
        path.parent.mkdir(exist_ok=True)
        return str(path)
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, ValueError):
        text = ""
    return str(path) if '"ignore:"' in text and os.access(path, os.W_OK) else os.devnull


def _command() -> str:
    return sys.argv[1] if len(sys.argv) > 1 else ""


class QuietTask(Task):  # type: ignore[misc]
    """A task that cleans without doit's line about the function that does it."""

    def __init__(self, name: str, actions: Any, *, removal: Callable[[bool], None], **settings: Any) -> None:
        """Make a task as doit's own; `removal` removes its outs, or only says so."""
        super().__init__(name, actions, **settings)
        self._removal = removal

    def clean(self, outstream: Any, dryrun: bool) -> None:
        """Remove its outs."""
        try:
            self._removal(dryrun)
        except OSError as error:
            sys.stderr.write(f"{of_system(error)}\n")


class Unmet(TaskFailed):  # type: ignore[misc]
    """A task was not run because one that it needs failed; doit's own class makes that exit code 2, not 1."""


def patch_doit(root: Path, known: Collection[str]) -> None:
    """Patch doit where it has no hook: unknown names bring the nearest, and `Unmet` keeps the exit code."""

    class Unknown(InvalidCommand):  # type: ignore[misc]
        def __str__(self) -> str:
            name = self.not_found
            if name is None and self.args and str(self.args[0]).endswith(" is not a task."):
                name = str(self.args[0]).removesuffix(" is not a task.").strip("'")
            return str(super().__str__()) if name is None else unknown(root, name, known)

    control.InvalidCommand = cmd_base.InvalidCommand = Unknown
    runner.UnmetDependency = Unmet


def unknown(root: Path, name: str, known: Collection[str]) -> str:
    """The message for a name that is neither a recipe's nor a step's."""
    folder = root / "build" / name
    if name and "/" not in name and not name.startswith(".") and folder.is_dir():
        return f"there is no recipe {name} any more; what it built is in build/{name}: delete that folder if you like"
    hint = did_you_mean(name, known)
    return f"no recipe or step is called {name}{hint}; `doit list --all` shows them, `doit help` the commands"


def end_quietly() -> None:
    """Make a closed pipe no error: a listing ends, a build goes on without output."""
    if _command() in _READ_ONLY:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    atexit.register(_flush)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
