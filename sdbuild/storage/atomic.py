"""Writing files whole, and moving things into place: by a rename, also where the target lies on another disk.

What is written is written under a temporary name beside its target and then renamed, so that whoever looks sees the
old content or the new one. Only `sdbuild.training.tensorfile` flushes to the disk as well: a checkpoint has to survive
a power failure, everything else can be made again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = re.compile(r"\.[A-Za-z0-9_-]{22}\.tmp")
"""Temporary names, as `beside` makes them and DVC does."""


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file whole: under a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with renamed_to(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def renamed_to(path: Path, name: str | None = None) -> Iterator[Path]:
    """Give a temporary name beside a file; what is written there gets the file's name at the end, unless it failed.

    Args:
        path: of the file.
        name: the temporary name, for those who look for what a kill has left.
    """
    temporary = path.with_name(name) if name else beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def replace(source: Path, target: Path) -> None:
    """Move a file or folder to another name, as `os.replace`, also onto another disk.

    There it is copied to a temporary name beside the target first, so that the target appears whole or not at all.
    """
    try:
        os.replace(source, target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    temporary = beside(target)
    try:
        copy(source, temporary)
        os.replace(temporary, target)
    finally:
        remove(temporary)
    remove(source)


def copy(source: Path, target: Path) -> None:
    """Copy a file or a folder; links in it stay links."""
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with what is in it; what is not there is removed already."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except OSError as error:  # which names the file in its folder alone
        raise OSError(error.errno, error.strerror, str(path)) from error


def beside(path: Path) -> Path:
    """A temporary name in the same folder, of the shape that DVC's have: what a kill leaves is swept with those."""
    return path.with_name(f".{secrets.token_urlsafe(16)}.tmp")
