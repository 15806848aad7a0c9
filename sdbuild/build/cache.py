"""DVC's local cache as files: which objects and which earlier runs are there, without importing DVC."""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from sdbuild.build.lockfile import Entry, dump_yaml, load_yaml
from sdbuild.build.project import Project
from sdbuild.build.statcache import Digest
from sdbuild.plan.model import Step
from sdbuild.storage.atomic import write_atomic
from sdbuild.storage.memory import recall, remember
from sdbuild.storage.regular import read_regular

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
        """Root of the cache; `.dvc/cache` unless `cache.dir` says otherwise."""
        for name in ("config.local", "config"):
            parser = configparser.ConfigParser(interpolation=None)
            try:
                parser.read(self._project.root / ".dvc" / name, encoding="utf-8")
                return (self._project.root / ".dvc" / parser["cache"]["dir"]).resolve()
            except (KeyError, configparser.Error):
                continue
        return self._project.root / ".dvc" / "cache"

    def has(self, md5: str) -> bool:
        """Whether a file's or folder's content is in the cache; of a folder all files."""
        if not md5.endswith(".dir"):
            return self.path(md5).is_file()
        files = self.files(md5)
        return files is not None and all(self.path(inner).is_file() for inner in files.values())

    def path(self, md5: str) -> Path:
        """Where the content of a file is kept, or would be."""
        return self.folder / "files" / "md5" / md5[:2] / md5[2:]

    def files(self, md5: str) -> dict[str, str] | None:
        """MD5 of each file of a folder by its path in it; None where the cache does not know the folder."""
        try:
            return {row["relpath"]: row["md5"] for row in json.loads(read_regular(self.path(md5)))}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def clear(self, md5s: Iterable[str]) -> None:
        """Put aside what lies in the places of objects and is no file: it would be opened, and a pipe waited for."""
        for md5 in md5s:
            for each in (md5, *(self.files(md5) or {}).values()) if md5.endswith(".dir") else (md5,):
                path = self.path(each)
                if os.path.lexists(path) and not path.is_file():
                    if path.is_dir() and not path.is_symlink():
                        path.rename(path.with_name(f"{path.name}.{secrets.token_hex(4)}.aside"))
                    else:
                        path.unlink()

    def copy(self, md5: str, target: Path) -> None:
        """Put a file or folder into place by plain copies.

        Raises:
            OSError: it is not in the cache, or cannot be written; what was there before is untouched then.
        """
        files = self.files(md5) if md5.endswith(".dir") else None
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
            try:
                entry = load_yaml(read_regular(path).decode())
                if all(self.has(out["md5"]) for out in entry["outs"]):
                    return dict(entry)
            except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError, RecursionError):
                continue
        return None

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
            entry = dict(load_yaml(content.decode()))
            outs = [out["path"] for out in entry["outs"]]
            key = run_key(entry["cmd"], entry.get("deps", ()), entry["params"], outs)
            right = f"{key[:2]}/{key}/{_digest(entry)}" == name
        except (ValueError, yaml.YAMLError, KeyError, TypeError):
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
        try:
            entry = load_yaml(read_regular(self.run_file(name)).decode())
            outs, deps = (tuple(str(row["md5"]) for row in entry.get(part, ())) for part in ("outs", "deps"))
            return Named(outs, deps)
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
            return None

    def _runs(self, key: str) -> Path:
        return self.folder / "runs" / key[:2] / key


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
