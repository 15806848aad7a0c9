"""What DVC does for a build: restoring and recording steps. The only module that imports DVC.

DVC hashes and stores outs, keeps the run-cache and talks to remotes. Inputs were hashed by the oracle before the step
ran, so a picture that changes meanwhile is not recorded as the one that was read; `dvc.lock` is written here, because
DVC rewrites it stage by stage through a slow YAML library.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo, lock_repo
from dvc.stage import PipelineStage, create_stage
from dvc.stage.loader import StageLoader
from dvc.stage.serialize import to_single_stage_lockfile

from sdbuild.build.cache import LocalCache
from sdbuild.build.lockfile import Entry, LockFile
from sdbuild.build.project import Project, working_directory
from sdbuild.build.statcache import Digest
from sdbuild.errors import StepError
from sdbuild.plan.model import Step


class History:
    """DVC's view of a project; one call at a time, since DVC's own locks are not made for threads."""

    def __init__(self, project: Project, lock: LockFile, order: Sequence[str]) -> None:
        self._project = project
        self._lock = lock
        self._order = order
        self._cache = LocalCache(project)
        self._mutex = threading.RLock()
        self._repo: Any = None
        _hush()

    def restore(self, step: Step, entry: Entry) -> bool:
        """Bring a recorded run's outs into place, from the cache or else the remote, and record it.

        Returns:
            False if neither has all of them; nothing has been touched then.
        """
        with self._open() as repo:
            stage = self._stage(repo, step, entry)
            try:
                if not stage.outs_cached():
                    for objects in stage.get_used_objs().values():
                        repo.cloud.pull(objects)
                if not stage.outs_cached():
                    return False
                stage.checkout(force=True)
            except (DvcException, OSError):
                return False
            self._finish(stage, step)
            return True

    def record(self, step: Step, deps: Mapping[str, Digest], parameters: Mapping[str, Any]) -> None:
        """Save the outs of a step to the cache and write its entry in `dvc.lock`.

        Raises:
            StepError: an out cannot be saved, e.g. because the disk is full; the entry is as before.
        """
        entry = {
            "cmd": step.command,
            "deps": [_row(path, deps[path]) for path in sorted(deps)],
            "params": step.params(parameters),
        }
        with self._open() as repo:
            stage = self._stage(repo, step, entry)
            try:
                stage.save_outs()
                links = stage.outs[0].cache.cache_types[:1]
                stage.commit(relink=links in (["hardlink"], ["symlink"]))
            except (DvcException, OSError) as error:
                raise StepError(f"{step.name}: its outs could not be saved: {error}") from error
            self._finish(stage, step)

    def renew(self, step: Step, entry: Entry, deps: Mapping[str, Digest]) -> None:
        """Record newer versions of inputs of which the step reads nothing that changed."""
        with self._open() as repo:
            renewed = {**entry, "deps": [_row(path, deps[path]) for path in sorted(deps)]}
            self._finish(self._stage(repo, step, renewed), step)

    def fetch_data(self, path: str) -> bool:
        """Bring a tracked dataset into place, from the cache or else the remote."""
        with self._open() as repo:
            target = str(self._project.root / f"{path}.dvc")
            try:
                with contextlib.suppress(DvcException, OSError):
                    repo.fetch(targets=[target])
                repo.checkout(targets=[target])
            except (DvcException, OSError):
                return False
            return (self._project.root / path).exists()

    def fetch(self, md5s: Collection[str]) -> None:
        """Bring single objects into the cache, as far as the remote has them; a folder's list comes without its files.

        What a past state holds is read this way; a remote that is absent or out of reach brings nothing.
        """
        with self._open() as repo, contextlib.suppress(DvcException, OSError):
            remote = repo.cloud.get_remote_odb(command="pull")
            wanted = sorted(md5s)
            paths = [remote.oid_to_path(md5) for md5 in wanted]
            repo.cache.local.add(paths, remote.fs, wanted, on_error=lambda *_: None, verify=True)

    def save_data(self, path: str) -> None:
        """Keep the present content of a tracked dataset, so that its state can come back.

        Raises:
            StepError: DVC cannot save it.
        """
        with self._open() as repo:
            try:
                repo.add([path])
            except (DvcException, OSError) as error:
                raise StepError(f"{path} could not be saved to DVC's cache: {error}") from error

    def close(self) -> None:
        """Close DVC's databases."""
        with self._mutex:
            if self._repo is not None:
                self._repo.close()
                self._repo = None

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        with self._mutex, working_directory(self._project.root):
            if self._repo is None:
                self._repo = Repo(str(self._project.root), _wait_for_lock=True)
            with lock_repo(self._repo):
                yield self._repo

    def _stage(self, repo: Any, step: Step, entry: Mapping[str, Any]) -> Any:
        names: dict[str, list[str]] = {"out": [], "metric": [], "plot": []}
        for out in step.outs:
            names[out.kind].append(out.path)
        stage = create_stage(
            PipelineStage,
            repo,
            "dvc.yaml",
            name=step.stage,
            cmd=step.command,
            deps=[dep.path for dep in step.deps],
            params=[{step.params_file: [step.params_key]}],
            outs=names["out"],
            metrics=names["metric"],
            plots=names["plot"],
        )
        StageLoader.fill_from_lock(stage, entry)
        return stage

    def _finish(self, stage: Any, step: Step) -> None:
        entry = json.loads(json.dumps(to_single_stage_lockfile(stage)))
        self._cache.remember_run(entry)
        self._lock.write({step.stage: entry}, self._order)


def create_repository(root: Path, *, subfolder: bool) -> None:
    """Put a folder under DVC; `subfolder` for one inside a larger git repository."""
    _hush()
    Repo.init(str(root), subdir=subfolder).close()


def _hush() -> None:
    """Keep DVC's own words off the screen; what matters is said by exceptions."""
    for name in ("dvc", "dvc_data", "dvc_objects", "dvc_render", "scmrepo"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _row(path: str, digest: Digest) -> dict[str, Any]:
    row: dict[str, Any] = {"path": path, "hash": "md5", "md5": digest.md5, "size": digest.size}
    if digest.files is not None:
        row["nfiles"] = digest.files
    return row
