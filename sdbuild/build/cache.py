"""DVC's local cache as files: which objects and which earlier runs are there, without importing DVC."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from sdbuild.build.dvc_config import DvcConfig
from sdbuild.build.lockfile import Entry, dump_yaml, entry_problem, has_aliases, load_yaml
from sdbuild.build.project import Project
from sdbuild.build.statcache import Digest
from sdbuild.errors import DataError
from sdbuild.plan.model import Step
from sdbuild.storage.atomic import write_atomic
from sdbuild.storage.backups import set_aside
from sdbuild.storage.json_cache import recall, remember
from sdbuild.storage.regular_files import read_regular
from sdbuild.storage.safe_paths import is_md5, read_list

MOST_OF_RUN = 4 << 20
"""Bytes of the largest entry of the run-cache that is read."""
RUN_NAME = re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}/[0-9a-f]{64}")
"""Name of an entry of the run-cache: two letters of its key, its key, its own digest."""


@dataclass(frozen=True, slots=True)
class Named:
    """MD5s that an entry of the run-cache names."""

    outs: tuple[str, ...]
    deps: tuple[str, ...]


class LocalCache:
    """The cache of a project, wherever its configuration puts it."""

    def __init__(self, project: Project) -> None:
        self._project = project

    @cached_property
    def folder(self) -> Path:
        """Root of the cache; `.dvc/cache` unless `cache.dir` says otherwise.

        Raises:
            UsageError: a configuration of DVC's cannot be read.
        """
        return DvcConfig(self._project.root).cache

    def has(self, md5: str) -> bool:
        """Whether a file's or folder's content is in the cache; of a folder all files."""
        if not is_md5(md5):
            return False
        if not md5.endswith(".dir"):
            return self.path(md5).is_file()
        files = self.files(md5)
        return files is not None and all(self.path(inner).is_file() for inner in files.values())

    def path(self, md5: str) -> Path:
        """Where the content of a file is kept, or would be.

        Raises:
            DataError: that is no name of an object; it would lead elsewhere.
        """
        if not is_md5(md5):
            raise DataError(f"{md5!a} is not an MD5; a file that names it is damaged or was tampered with")
        return self.folder / "files" / "md5" / md5[:2] / md5[2:]

    def files(self, md5: str) -> dict[str, str] | None:
        """MD5 of each file of a folder by its path in it; None where the cache has no list of it that may be used."""
        try:
            return read_list(self.path(md5)) if is_md5(md5) else None
        except (OSError, ValueError):
            return None

    def list_problem(self, md5: str) -> str | None:
        """Why the list of a folder, which is in the cache, must not be used."""
        try:
            if is_md5(md5) and md5.endswith(".dir"):
                read_list(self.path(md5))
        except OSError:
            return None
        except ValueError as error:
            return str(error)
        return None

    def clear(self, md5s: Iterable[str]) -> None:
        """Move away anything but files from the places of objects: opening a pipe would block."""
        for md5 in md5s:
            for each in (md5, *(self.files(md5) or {}).values()) if md5.endswith(".dir") else (md5,):
                path = self.path(each)
                if os.path.lexists(path) and not path.is_file():
                    if path.is_dir() and not path.is_symlink():
                        set_aside(path, "aside")
                    else:
                        path.unlink()

    def copy(self, md5: str, target: Path) -> None:
        """Put a file or folder into place by plain copies.

        Raises:
            OSError: it is not in the cache, or cannot be written; what was there before is untouched then.
        """
        files = self.files(md5) if md5.endswith(".dir") else None
        if files is None and md5.endswith(".dir"):
            raise FileNotFoundError(errno.ENOENT, "no list of files that can be used", str(self.path(md5)))
        with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as folder:
            new, old = Path(folder, "new"), Path(folder, "old")
            if files is None:
                shutil.copyfile(self.path(md5), new)
            else:
                for path, inner in files.items():
                    (new / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self.path(inner), new / path)
            if target.exists():
                target.rename(old)
            new.rename(target)

    def find_run(self, step: Step, deps: Mapping[str, Digest], parameters: Mapping[str, Any]) -> Entry | None:
        """The newest earlier run of a step on the same inputs whose outs are all in the cache."""
        folder = self._runs(self.key_of(step, deps, parameters))
        try:
            entries = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        except OSError:
            return None
        for path in entries:
            entry = self._entry(path)
            if entry is not None and self._is_of(entry, step) and all(self.has(out["md5"]) for out in entry["outs"]):
                return entry
        return None

    def _entry(self, path: Path) -> Entry | None:
        """An entry of the run-cache; None if it is damaged."""
        try:
            if path.stat().st_size > MOST_OF_RUN:
                return None
            return parse_run(read_regular(path))
        except (OSError, ValueError):
            return None

    def _is_of(self, entry: Entry, step: Step) -> bool:
        """Whether a run wrote what the step writes, and nothing else."""
        return {out["path"] for out in entry["outs"]} == {out.path for out in step.outs}

    def key_of(self, step: Step, deps: Mapping[str, Digest], parameters: Mapping[str, Any]) -> str:
        """Key of a step's runs on these inputs."""
        return run_key(step.command, _rows(deps), step.params(parameters), [out.path for out in step.outs])

    def remember_run(self, entry: Entry) -> None:
        """Add a run to the run-cache, as DVC's own `StageCache.save` does.

        That one would hash the inputs again, which need not be on disk any more and may have changed since.
        """
        outs = [out["path"] for out in entry["outs"]]
        folder = self._runs(run_key(entry["cmd"], entry.get("deps", ()), entry["params"], outs))
        path = folder / _digest(entry)
        if not path.exists():
            write_atomic(path, dump_yaml(entry))

    def runs(self) -> set[str]:
        """Names of all entries of the run-cache, see `RUN_NAME`."""
        names = ("/".join(path.parts[-3:]) for path in (self.folder / "runs").glob("*/*/*"))
        return {name for name in names if RUN_NAME.fullmatch(name)}

    def run_file(self, name: str) -> Path:
        """File of an entry of the run-cache."""
        return self.folder / "runs" / name

    def keep_run(self, name: str, content: bytes) -> Entry | None:
        """Add an entry that was made elsewhere; None if it is not what its name says."""
        try:
            entry = parse_run(content)
            outs = [out["path"] for out in entry["outs"]]
            key = run_key(entry["cmd"], entry.get("deps", ()), entry["params"], outs)
            right = f"{key[:2]}/{key}/{_digest(entry)}" == name
        except (ValueError, KeyError, TypeError):
            return None
        if right and not self.run_file(name).exists():
            write_atomic(self.run_file(name), content)
        return entry if right else None

    def named_by(self, runs: Collection[str]) -> dict[str, Named]:
        """What entries of the run-cache name; damaged ones are left out.

        An entry never changes, so what was read once is remembered: to parse a thousand of them takes seconds.
        """
        memory = self._project.private / "cache" / "runs.json"
        known = {name: Named(tuple(outs), tuple(deps)) for name, (outs, deps) in (recall(memory) or {}).items()}
        found: dict[str, Named] = {}
        for name in runs:
            named = known.get(name) or self._named(name)
            if named is not None:
                found[name] = named
        if found.keys() != known.keys():
            remember(memory, {name: (named.outs, named.deps) for name, named in found.items()})
        return found

    def _named(self, name: str) -> Named | None:
        entry = self._entry(self.run_file(name))
        if entry is None:
            return None
        outs, deps = (tuple(row["md5"] for row in entry.get(part, ())) for part in ("outs", "deps"))
        return Named(outs, deps)

    def _runs(self, key: str) -> Path:
        return self.folder / "runs" / key[:2] / key


def parse_run(content: bytes) -> Entry:
    """An entry of the run-cache from its text.

    Raises:
        ValueError: it is none; the message says why.
    """
    if len(content) > MOST_OF_RUN:
        raise ValueError(f"it has {len(content):,} bytes; up to {MOST_OF_RUN:,} are read")
    text = content.decode()
    if "&" in text and "*" in text and has_aliases(text):  # they grow without bound when they are written out
        raise ValueError("it has YAML aliases, which DVC does not write")
    try:
        entry = load_yaml(text)
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        raise ValueError(f"it cannot be read as YAML ({error})") from None
    if problem := entry_problem(entry):
        raise ValueError(problem)
    return dict(entry)


def run_key(command: str, deps: Iterable[Mapping[str, Any]], params: Mapping[str, Any], outs: Iterable[str]) -> str:
    """Key of a run in DVC's run-cache: SHA-256 of command, inputs, parameters and names of outs."""
    rows = sorted(({**row, "hash": "md5"} for row in deps), key=lambda row: str(row["path"]))
    return _digest({"cmd": command, "deps": rows, "params": params, "outs": sorted(outs)})


def _rows(deps: Mapping[str, Digest]) -> list[dict[str, Any]]:
    return [{"path": path, "md5": digest.md5} for path, digest in deps.items()]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(_sizeless(content), sort_keys=True).encode()).hexdigest()


def _sizeless(content: Any) -> Any:
    """DVC leaves every key named `size` or `nfiles` out of the digest, at any depth."""
    if isinstance(content, Mapping):
        return {key: _sizeless(value) for key, value in content.items() if key not in ("size", "nfiles")}
    if isinstance(content, list):
        return [_sizeless(value) for value in content]
    return content
