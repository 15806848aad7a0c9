"""Rules of `.dvcignore` files, which keep files out of DVC's digests of folders; read as DVC reads them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdbuild.build.revisions import Revisions
from sdbuild.errors import DataError, Problem, UsageError
from sdbuild.storage.regular_files import read_regular

_NAME = ".dvcignore"


class Ignored:
    """Rules of a project and of its folders; those of a deeper folder come last and decide."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._rules: dict[str, Any] = {}

    def may_match(self, folder: str) -> bool:
        """Whether a folder, relative to the project, has rules at all: its own, or of one above it."""
        return not folder.startswith("..") and any(self._of(each) is not None for each in _above(f"{folder}/."))

    def __call__(self, path: str) -> bool:
        """Whether a file or folder, posix and relative to the project, is left out."""
        ignored = False
        for folder in _above(path):
            rules = self._of(folder)
            if rules is not None:
                found = rules.check_file(path[len(folder) + 1 :] if folder else path).include
                ignored = ignored if found is None else found
        return ignored

    def _of(self, folder: str) -> Any:
        """Rules in a folder; None if it names nothing."""
        if folder not in self._rules:
            self._rules[folder] = None
            try:
                lines = read_regular(self._root / folder / _NAME).decode().splitlines()
            except (OSError, UnicodeDecodeError):
                return None
            patterns = [line for line in lines if line.strip() and not line.startswith("#")]
            if patterns:
                from pathspec import PathSpec  # comes with dvc; most projects never need it

                self._rules[folder] = PathSpec.from_lines("gitignore", patterns)
        return self._rules[folder]


def _above(path: str) -> Iterator[str]:
    """Folders above a path from the project's down: `` for the project itself."""
    yield ""
    parts = path.split("/")[:-1]
    for count in range(1, len(parts) + 1):
        yield "/".join(parts[:count])


@contextlib.contextmanager
def left_to_git(root: Path, folder: str, scm: Any) -> Iterator[None]:
    """Let DVC keep a folder of which git keeps some files, as captions: those that `.dvcignore` leaves to git.

    DVC refuses any folder of which git keeps a file, whether it is one of DVC's or not.

    Raises:
        DataError: git keeps files that are DVC's too.
    """
    try:
        with Revisions(root) as revisions:
            in_git = revisions.listed(folder)
    except UsageError:
        in_git = []
    ignored = Ignored(root)
    if both := [path for path in in_git if not ignored(path)]:
        message = (
            f"git keeps {len(both)} files of it too, such as {both[0]}; `git rm --cached` those, or name them in "
            f"{folder.rpartition('/')[0] or '.'}/{_NAME}, so that they are git's alone"
        )
        raise DataError([Problem(file=folder, message=message)])
    if in_git:
        scm.is_tracked = lambda path: False
    try:
        yield
    finally:
        vars(scm).pop("is_tracked", None)
