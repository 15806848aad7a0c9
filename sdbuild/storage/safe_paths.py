"""Checks of paths and digests that files name: lists of folders, `dvc.lock`, `.dvc` files, run-cache entries.

Whoever can write to a shared remote or to a clone chooses what stands in these files, so nothing of them is used before
it passed here: a path is relative and stays in its folder, no two entries of a list are one file, no link leads
elsewhere on the way, and the name of an object in the cache is an MD5. Each check returns the
problem as text, or None.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from sdbuild.storage.phrases import cut
from sdbuild.storage.regular_files import read_regular

MOST_BYTES = 128 << 20
"""Size of the largest list of files that is read: about a million files."""
MOST_FILES = 1_000_000
"""Entries of the longest one."""
_LONGEST = 255
"""Bytes of the name of a file, on all common file systems."""

_MD5 = re.compile(r"[0-9a-f]{32}(?:\.dir)?")
_FILE_MD5 = re.compile(r"[0-9a-f]{32}")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_PRIVATE = frozenset({".git", ".dvc", ".sdbuild"})
_MODES = ("120000", "160000")
"""Git's names for links and for repositories inside another."""


def is_md5(name: object) -> TypeGuard[str]:
    """Whether something is the name of an object: an MD5, with `.dir` for a folder."""
    return isinstance(name, str) and _MD5.fullmatch(name) is not None


def path_problem(path: object) -> str | None:
    """Check a path that has to stay inside the folder that it is relative to."""
    if not isinstance(path, str):
        return f"{_shown(path)} is not a path"
    if not path or "\0" in path:
        return f"{_shown(path)} is not a path"
    if path.startswith(("/", "\\")) or _DRIVE.match(path):
        return f"{_shown(path)} is absolute"
    parts = path.split("/")
    if ".." in (parts if "\\" not in path else re.split(r"[\\/]", path)):
        return f"{_shown(path)} leads out of its folder"
    if "" in parts or "." in parts:
        return f"{_shown(path)} is not written in its shortest form"
    if not path.isascii() or len(path) > _LONGEST:
        try:
            longest = max(len(os.fsencode(part)) for part in parts)
        except UnicodeEncodeError:
            return f"{_shown(path)} cannot be the name of a file"
        if longest > _LONGEST:
            return f"{_shown(path)} is too long for the name of a file"
    if any(_plain(part) in _PRIVATE for part in parts if part[0] == "." or not part.isascii()):
        return f"{_shown(path)} is where git, DVC or sdbuild keep their own files"
    return None


def names_problem(paths: Sequence[str], *, folds: bool) -> str | None:
    """Check paths of files against each other: no two are one file, none is a file and a folder.

    `folds` says that the file system takes names for one that differ in case or in the form of Unicode.
    """
    keys = [unicodedata.normalize("NFC", path).casefold() for path in paths] if folds else paths
    files = dict(zip(keys, paths, strict=True))
    if len(files) < len(paths):
        seen: set[str] = set()
        twice = next(path for key, path in zip(keys, paths, strict=True) if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return f"{_shown(twice)} stands there twice"
    known: set[str] = set()
    for key, path in files.items():
        folder = key.rpartition("/")[0]
        while folder and folder not in known:
            if folder in files:
                return f"{_shown(files[folder])} is a file and the folder of {_shown(path)}"
            known.add(folder)
            folder = folder.rpartition("/")[0]
    return None


def read_list(path: Path) -> dict[str, str]:
    """MD5 of each file of a folder by its path, from one of DVC's lists.

    Raises:
        OSError: it is not there or cannot be read.
        ValueError: it is no list, or one that must not be used; the message says why.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"it has {size:,} bytes; lists of up to {MOST_BYTES:,} are read")
    try:
        rows = json.loads(read_regular(path))
    except (ValueError, RecursionError):
        raise ValueError("it is damaged") from None
    return _checked(rows, folds=folds_names(path.parent))


def _checked(rows: Any, *, folds: bool) -> dict[str, str]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it is no list of files")
    if len(rows) > MOST_FILES:
        raise ValueError(f"it names {len(rows):,} files; lists of up to {MOST_FILES:,} are read")
    problem = None
    for row in rows:
        md5, path = row.get("md5"), row.get("relpath")
        problem = path_problem(path)
        if problem is None and not (isinstance(md5, str) and _FILE_MD5.fullmatch(md5)):
            problem = f"{_shown(path)} has the MD5 {_shown(md5)}, which is none of a file"
        if problem is not None:
            raise ValueError(problem)
    paths = [row["relpath"] for row in rows]
    if problem := names_problem(paths, folds=folds):
        raise ValueError(problem)
    return {row["relpath"]: row["md5"] for row in rows}


def folds_names(folder: Path) -> bool:
    """Whether the file system takes names for one that differ in case: asked of the first name above that has one."""
    for place in (folder, *folder.parents):
        other = place.name.swapcase()
        if other != place.name:
            try:
                return os.path.samefile(place, place.with_name(other))
            except OSError:
                return False
    return False


def link_problem(root: Path, path: str, into: Iterable[Path] = ()) -> str | None:
    """Find a link on the way from a project to one of its paths that would redirect what is written there.

    A link in place of a top-level folder, which a user puts there to have it on another disk, is theirs unless git
    brought it. The path itself may be a link into one of the folders `into`, as DVC makes them into its cache.
    """
    place = root
    parts = path.split("/")
    for number, part in enumerate(parts):
        place = place / part
        try:
            mode = place.lstat().st_mode
        except OSError:  # nothing is there, and what will be is no link
            return None
        if stat.S_ISLNK(mode):
            if number == 0 and len(parts) > 1 and place.is_dir() and not _from_git(root, part):
                continue
            if number == len(parts) - 1 and leads_into(place, into):
                continue
            return f"{place.relative_to(root).as_posix()} is a link; delete it, or put a folder or file in its place"
    return None


def links_below(root: Path, folder: str, into: Iterable[Path] = ()) -> str | None:
    """Find a link inside a folder of a project that would redirect what is written or deleted; as above."""
    into = tuple(into)
    for place in links(root / folder):
        if not leads_into(place, into):
            return f"{place.relative_to(root).as_posix()} is a link; delete it, or put a folder or file in its place"
    return None


def links(top: Path) -> Iterator[Path]:
    """All links below a folder, none of them followed."""
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            place = Path(folder, name)
            if place.is_symlink():
                yield place


def leads_into(place: Path, folders: Iterable[Path]) -> bool:
    """Whether a link leads to a file in one of some folders, or would if it were there."""
    try:
        target = place.resolve()
        return not target.is_dir() and any(target.is_relative_to(folder.resolve()) for folder in folders)
    except (OSError, RuntimeError):  # a loop
        return False


def committed_links(root: Path, places: Sequence[str]) -> list[str]:
    """Links, and repositories inside this one, that git keeps at or below some paths of a project.

    Where git does not know the project, e.g. one that was unpacked from an archive, all links that lie there.
    """
    rows = _git(root, "ls-files", "--stage", "-z", "--", *places)
    if rows is None:
        tops = [root / place for place in places]
        found = [top for top in tops if top.is_symlink()] + [link for top in tops for link in links(top)]
        found = [link for link in found if not leads_into(link, [root / ".dvc" / "cache"])]  # as DVC may make them
        return sorted(link.relative_to(root).as_posix() for link in found)
    split = (row.partition("\t") for row in rows.split("\0"))
    return [path for about, _, path in split if about.startswith(_MODES)]


def _from_git(folder: Path, name: str) -> bool:
    """Whether git brought a link, or may have."""
    rows = _git(folder, "ls-files", "--stage", "--", name)
    return rows is None or any(row.startswith(_MODES) and row.endswith(f"\t{name}") for row in rows.splitlines())


def _git(folder: Path, *command: str) -> str | None:
    git = ["git", "--literal-pathspecs", "-c", "core.fsmonitor=false", *command]
    try:
        done = subprocess.run(git, cwd=folder, capture_output=True, check=False)
    except OSError:
        return None
    return None if done.returncode else os.fsdecode(done.stdout)


def _plain(name: str) -> str:
    """A name as file systems may take it: without case, forms of Unicode, and letters that have no shape."""
    if not name.isascii():
        name = "".join(letter for letter in unicodedata.normalize("NFKC", name) if unicodedata.category(letter) != "Cf")
    return name.casefold().rstrip(". ")


def _shown(value: object) -> str:
    """A value in one line of plain letters."""
    return cut(ascii(value), 120)
