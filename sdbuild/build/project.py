"""Where a project keeps its files, what it needs around it, and the lock that a build holds."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sdbuild.errors import DataError, LockedError, Problem, UsageError
from sdbuild.storage.regular_files import find_special, special_at
from sdbuild.storage.safe_paths import committed_links


@dataclass(frozen=True, slots=True)
class Project:
    """A folder with `recipes/`, under git and DVC."""

    root: Path

    @property
    def private(self) -> Path:
        """Local state: caches, logs, checkpoints; safe to delete between builds."""
        return self.root / ".sdbuild"

    @property
    def items(self) -> Path:
        """The item stores."""
        return self.private / "items"

    @property
    def stat_cache(self) -> Path:
        """Digests of files by their stat."""
        return self.private / "cache" / "stat.sqlite"

    @property
    def trackers(self) -> Path:
        """What trackers of trainings write."""
        return self.private / "trackers"

    def log(self, step: str) -> Path:
        """Log file of a step's last run."""
        recipe, kind = step.split(":")
        return self.private / "logs" / recipe / f"{kind}.log"

    def scratch(self, step: str) -> Path:
        """Folder with a step's checkpoints, kept until its result is recorded."""
        recipe, kind = step.split(":")
        return self.private / "runs" / recipe / kind

    def temporary(self, step: str) -> Path:
        """Folder in which a step writes its outs before they are moved into place."""
        recipe, kind = step.split(":")
        return self.private / "tmp" / recipe / kind


def find_project(start: Path | None = None) -> Project:
    """The project around a folder (default: the working directory).

    Raises:
        UsageError: no `recipes/` folder beside a `dodo.py` or `.dvc` in it or above it.
        DataError: git brought links to where sdbuild writes.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "recipes").is_dir() and ((folder / ".dvc").is_dir() or (folder / "dodo.py").is_file()):
            project = Project(folder)
            check_whole(project)
            return project
    raise UsageError(f"{here} is not in an sdbuild project; `sdbuild init` makes one")


READ_AT_ONCE = {"dvc.yaml", "dvc.lock", ".dvcignore", ".gitignore", ".gitattributes"}
"""Files beside the recipes that sdbuild, DVC and git open without being asked to."""


def check_whole(project: Project) -> None:
    """Make sure that git and DVC are set up, and that no pipe lies where a file is expected: it would be waited for.

    Raises:
        UsageError: something is lacking that `sdbuild init .` sets up.
        DataError: there are pipes, sockets or devices among the project's own files, or links that git brought.
    """
    root = project.root
    lacking = [
        name for name, is_there in ((".git", _has_git(root)), (".dvc", (root / ".dvc").is_dir())) if not is_there
    ]
    if lacking:
        what = " and ".join(lacking)
        raise UsageError(f"{root} has no {what} that can be used; `sdbuild init .` there sets it up, all else is kept")
    wrong = [(os.path.relpath(path, root), kind) for path, kind in _special(root)]
    if wrong:
        raise DataError(
            Problem(file=path, message=f"{kind}, where a file should be; delete it") for path, kind in wrong
        )
    check_links(project)


def check_links(project: Project) -> None:
    """Refuse a project in which git brought links to where builds write.

    Raises:
        DataError: lists them all.
    """
    if found := committed_links(project.root, ("build", ".sdbuild", ".dvc")):
        message = "is a link that came with the project, and what is built would land elsewhere; `git rm` it"
        raise DataError(Problem(file=path, message=message) for path in found)


def _special(root: Path) -> Iterator[tuple[Path, str]]:
    read = (name for name in os.listdir(root) if name in READ_AT_ONCE or name.endswith(".dvc"))
    beside = ((root / name, special_at(root / name)) for name in read)
    yield from ((path, kind) for path, kind in beside if kind is not None)
    yield from find_special(root / ".dvc", (root / ".dvc" / "cache",))
    for name in ("build", ".sdbuild"):
        yield from find_special(root / name)


def _has_git(root: Path) -> bool:
    """Whether a folder is in a git repository that looks whole, or DVC is set up to do without; git is not asked."""
    for folder in (root, *root.parents):
        entry = folder / ".git"
        if entry.is_file():  # of a worktree or a submodule
            try:
                entry = folder / entry.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
            except (OSError, ValueError):
                break
            return (entry / "HEAD").exists()
        if entry.is_dir():
            return all((entry / name).exists() for name in ("HEAD", "objects", "refs"))
    try:
        return "no_scm" in (root / ".dvc" / "config").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


class BuildLock:
    """At most one build a project; the system releases the lock when its holder dies."""

    def __init__(self, project: Project, *, waiting: Callable[[str], None]) -> None:
        self._path = project.private / "build.lock"
        self._waiting = waiting
        self._file: IO[str] | None = None

    @property
    def held(self) -> bool:
        """Whether this process holds the lock."""
        return self._file is not None

    def acquire(self, *, wait: bool = True) -> bool:
        """Take the lock; True if another build had to be waited for.

        Raises:
            LockedError: another build holds it and `wait` is false.
        """
        if self._file is not None:
            return False
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a+")
        waited = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = self._holder()
                if not wait:
                    file.close()
                    raise LockedError(f"another build holds this project ({holder})") from None
                if not waited:
                    self._waiting(f"waiting for another build of this project ({holder})")
                waited = True
                time.sleep(0.2)
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}, file)
        file.flush()
        self._file = file
        return waited

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _holder(self) -> str:
        try:
            content: dict[str, Any] = json.loads(self._path.read_text())
            return f"process {content['pid']}, since {content['since']}"
        except (OSError, ValueError, KeyError):
            return "unknown process"


@contextlib.contextmanager
def working_directory(path: Path) -> Iterator[None]:
    """Work in a folder for a while; DVC resolves paths against it."""
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)
