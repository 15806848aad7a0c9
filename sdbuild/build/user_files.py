"""Files of the user's inside outs: moved beside the out before it is replaced, so that nothing of theirs is lost.

A file is not the user's if DVC's cache has its content, if a step has just put it there, or if it is a damaged result:
cut short, or with other bytes in a file that is not text.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from sdbuild.build.cache import LocalCache
from sdbuild.build.lockfile import LockFile
from sdbuild.build.project import Project
from sdbuild.build.statcache import StatCache
from sdbuild.plan.model import Step
from sdbuild.storage.atomic import TEMPORARY, write_atomic
from sdbuild.storage.backups import free_name, set_aside

_KEPT = "kept"


class UserFiles:
    """Looks for files of the user's in outs."""

    def __init__(self, project: Project, stat_cache: StatCache) -> None:
        self._project = project
        self._stat = stat_cache
        self._cache = LocalCache(project)
        self._lock = LockFile(project)

    def keep(self, step: Step) -> list[str]:
        """Move what is the user's out of a step's outs, and say where it is."""
        return [f"{path} held files of yours; they are kept as {kept}" for path, kept in self._moved(step)]

    def foreign(self, step: Step, path: str, *, saved: bool = False) -> list[str]:
        """Files in an out, relative to the project, that are the user's; `saved`: and those that the cache lacks."""
        top = self._project.root / path
        if not os.path.lexists(top):
            return []
        installed = {} if saved else _installed(self._project, step)
        recorded = self._recorded(step, path)
        known = self._stat.listing(path, whole=True) if top.is_dir() and not top.is_symlink() else {}
        return [
            name
            for name, file in _files(top, path)
            if not self._is_ours(file, installed.get(name), recorded.get(name), known.get(name[len(path) + 1 :]))
            or (saved and name in recorded and not self._cache.path(recorded[name]).exists())
        ]

    def _moved(self, step: Step) -> Iterator[tuple[str, str]]:
        for out in step.outs:
            names = self.foreign(step, out.path)
            if not names:
                continue
            top = self._project.root / out.path
            if not top.is_dir() or top.is_symlink() or len(names) == sum(1 for _ in _files(top, out.path)):
                kept = set_aside(top, _KEPT)
            else:
                kept = free_name(top, _KEPT)
                for name in names:
                    target = kept / name[len(out.path) + 1 :]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    (self._project.root / name).rename(target)
            yield out.path, kept.relative_to(self._project.root).as_posix()

    def _is_ours(self, file: Path, installed: str | None, recorded: str | None, md5: str | None) -> bool:
        status = file.lstat()
        if stat.S_ISLNK(status.st_mode):
            return file.resolve().is_relative_to(self._cache.folder.resolve())
        if not stat.S_ISREG(status.st_mode):
            return False
        if TEMPORARY.fullmatch(file.name) or installed == _signature(status):
            return True
        if md5 is None:
            found = self._stat.digest(file.relative_to(self._project.root).as_posix())
            md5 = found.md5 if found else ""
        as_recorded = recorded is not None and (md5 == recorded or self._is_damaged(file, recorded))
        return as_recorded or self._cache.path(md5).exists()

    def _is_damaged(self, file: Path, recorded: str) -> bool:
        """Whether a file holds nothing but what is left of a recorded one."""
        try:
            content, whole = file.read_bytes(), self._cache.path(recorded).read_bytes()
        except OSError:
            return False
        if whole.startswith(content):
            return True
        try:
            content.decode()
        except UnicodeDecodeError:
            return len(content) == len(whole)
        return False

    def _recorded(self, step: Step, path: str) -> dict[str, str]:
        """MD5 of each file of an out by its path in the project, as `dvc.lock` has it."""
        rows = (self._lock.stages().get(step.stage) or {}).get("outs", [])
        for row in rows:
            if row.get("path") == path:
                md5 = str(row.get("md5"))
                files = self._cache.files(md5) if md5.endswith(".dir") else {"": md5}
                return {f"{path}/{name}" if name else path: inner for name, inner in (files or {}).items()}
        return {}


def remember_installed(project: Project, step: Step, folder: Path) -> None:
    """Remember the files that a step is about to put in place: until DVC has saved them they are nowhere else."""
    found: dict[str, str] = {}
    for out in step.outs:
        top = folder / Path(out.path).name
        found.update((name, _signature(file.lstat())) for name, file in _files(top, out.path))
    write_atomic(_memory(project, step), json.dumps(found))


def _installed(project: Project, step: Step) -> dict[str, str]:
    try:
        found = json.loads(_memory(project, step).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _memory(project: Project, step: Step) -> Path:
    return project.private / "cache" / "installed" / step.recipe / f"{step.kind}.json"


def _files(top: Path, name: str) -> Iterator[tuple[str, Path]]:
    """What is in an out, but for folders, with its path in the project; links are not followed."""
    if top.is_symlink() or not top.is_dir():
        if os.path.lexists(top):
            yield name, top
        return
    with os.scandir(top) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            yield from _files(Path(entry.path), f"{name}/{entry.name}")


def _signature(status: os.stat_result) -> str:
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
