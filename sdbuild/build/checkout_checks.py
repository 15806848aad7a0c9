"""Checks before a checkout writes files: the paths that a clone or a remote names stay inside the project.

The rules are those of `sdbuild.storage.safe_paths`; here they are applied to the project's folders, to the outs of
DVC's stages with their lists of files, and to the place of the cache.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from sdbuild.build.dvc_config import DvcConfig
from sdbuild.build.project import Project
from sdbuild.errors import DataError, Problem, UsageError
from sdbuild.storage import safe_paths

_LISTED = ("md5", "md5-dos2unix")
"""Digests under which DVC keeps lists of files."""


def check_folders(project: Project, folders: Iterable[str]) -> None:
    """Refuse to write below folders of outs that a link leads away from.

    Raises:
        DataError: lists them all.
    """
    problems = [Problem(message=why) for folder in folders if (why := safe_paths.link_problem(project.root, folder))]
    if problems:
        raise DataError(problems)


def check_cache(project: Project) -> None:
    """Refuse a cache that a committed file puts outside the project, where there is none.

    A team may share one: then its folder is there, empty or with what DVC keeps in it. It is not made, and no other
    folder is filled, because a file of a clone says so.

    Raises:
        UsageError: it is not there, or some other folder.
    """
    config = DvcConfig(project.root)
    folder = config.cache
    if folder.is_relative_to(project.root) or _is_cache(folder):
        return
    said = config.committed_cache()
    if said is not None:
        raise UsageError(
            f".dvc/config, which came with the project, puts the cache into {folder}, outside it, and no cache is "
            f"there; if that is right, `dvc config --local cache.dir {said}` says so"
        )


def _is_cache(folder: Path) -> bool:
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return False
    return not names or not {"files", "runs"}.isdisjoint(names)


def out_problems(root: Path, outs: Iterable[Any], origin: str, remote: str) -> Iterator[Problem]:
    """Why outs of DVC's stages must not be put into place.

    Args:
        root: the project.
        outs: DVC's objects.
        origin: the file that names them.
        remote: where their lists may have come from.
    """
    for out in outs:
        if (why := _out_problem(root, out)) is not None:
            yield Problem(file=origin, message=f"{why}; nothing of it was written")
        elif (why := list_problem(out)) is not None:
            where = f"this cache or {remote}" if remote else "this cache"
            name = PurePosixPath(str(out.fs_path)).relative_to(root)
            message = f"the list of files {out.hash_info.value} of {name} is refused: {why}"
            yield Problem(file=origin, message=f"{message}; nothing of it was written (it came from {where})")


def _out_problem(root: Path, out: Any) -> str | None:
    path, base = str(out.fs_path), f"{root}/"
    if out.protocol != "local" or not out.is_in_repo or not path.startswith(base):
        return f"{str(out.def_path)[:120]!a} is outside the project"
    name = path.removeprefix(base)
    if (why := safe_paths.path_problem(name)) is not None:
        return why
    cache = Path(out.cache.path)
    beside = (PurePosixPath(name).parent / ".gitignore").as_posix()  # DVC adds lines to it
    return (
        safe_paths.link_problem(root, name, (cache,))
        or safe_paths.link_problem(root, beside)
        or (safe_paths.links_below(root, name, (cache,)) if (root / name).is_dir() else None)
    )


def list_problem(out: Any) -> str | None:
    """Why the list of files of an out must not be used; None for a file, and where there is no list here."""
    for row in out.files or ():
        if (why := safe_paths.path_problem(row.get("relpath"))) is not None:
            return why
    md5 = out.hash_info.value
    if md5 is None or out.hash_info.name not in _LISTED:
        return None
    if not safe_paths.is_md5(md5):
        return f"{str(md5)[:60]!a} is not an MD5"
    if md5.endswith(".dir"):
        try:
            safe_paths.read_list(Path(out.cache.oid_to_path(md5)))
        except OSError:
            return None
        except ValueError as error:
            return str(error)
    return None


def lists_are_here(stages: Iterable[Any]) -> bool:
    """Whether the lists of all folders are in the cache; DVC would take others from the remote, unseen."""
    outs = (out for stage in stages for out in stage.outs if str(out.hash_info.value).endswith(".dir"))
    return all(Path(out.cache.oid_to_path(out.hash_info.value)).exists() for out in outs)


def guard_cache(store: Any) -> None:
    """Let a cache of DVC's make no path of what is not an MD5, as a list that DVC reads by itself may name."""
    path_of = store.oid_to_path

    def checked(oid: Any) -> Any:
        if not safe_paths.is_md5(oid):
            reason = f"{str(oid)[:60]!a} is not an MD5; a list of files that names it is damaged or false"
            raise OSError(errno.EINVAL, reason)
        return path_of(oid)

    store.oid_to_path = checked
