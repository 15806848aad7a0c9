"""What DVC does for a build: restoring and recording steps. The only module that imports DVC.

DVC hashes and stores outs, keeps the run-cache and talks to remotes. Inputs were hashed by the oracle before the step
ran, so a picture that changes meanwhile is not recorded as the one that was read; `dvc.lock` is written here, because
DVC rewrites it stage by stage through a slow YAML library.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from dvc.exceptions import DvcException
from dvc.repo import Repo, lock_repo
from dvc.rwlock import RWLOCK_FILE
from dvc.stage import PipelineStage, create_stage
from dvc.stage.loader import StageLoader
from dvc.stage.serialize import to_single_stage_lockfile
from scmrepo.exceptions import SCMError

from sdbuild.build.cache import LocalCache
from sdbuild.build.checkout_checks import check_cache, check_folders, guard_cache, lists_are_here, out_problems
from sdbuild.build.dvc_config import DvcConfig
from sdbuild.build.dvcignore import left_to_git
from sdbuild.build.lockfile import Entry, LockFile
from sdbuild.build.project import Project, working_directory
from sdbuild.build.remote import Remote
from sdbuild.build.statcache import Digest
from sdbuild.build.tracked import DataFile
from sdbuild.console import Console
from sdbuild.errors import DataError, Problem, RemoteError, StepError, UsageError, reason
from sdbuild.plan.model import Step
from sdbuild.storage.atomic import TEMPORARY
from sdbuild.storage.regular_files import find_special

Answer = TypeVar("Answer")

"""Names that DVC gives to files that are not whole."""


class History:
    """DVC's view of a project; one call at a time, since DVC's own locks are not made for threads."""

    def __init__(self, project: Project, lock: LockFile, order: Sequence[str], console: Console | None = None) -> None:
        self._project = project
        self._lock = lock
        self._order = order
        self._cache = LocalCache(project)
        self._mutex = threading.RLock()
        self._repo: Any = None
        self._remote: Remote | None = None
        self._alone = False
        self._told: set[Problem] = set()
        self._console = console
        _hush()

    def restore(self, step: Step, entry: Entry) -> bool:
        """Bring a recorded run's outs into place, from the cache or else the remote, and record it.

        Returns:
            False if neither has all of them; nothing has been touched then.
        """
        with self._open() as repo:
            stage = self._stage(repo, step, entry)
            outs = [out["md5"] for out in entry["outs"]]
            origin = "dvc.lock" if self._lock.stages().get(step.stage) == entry else "a run in the run-cache"
            try:
                for _ in range(2):  # DVC drops damaged objects when it looks at them
                    self._download(outs)
                    if problems := self._refused(stage.outs, f"{origin}, {step.stage}"):
                        self._tell(problems)
                        return False
                    if stage.outs_cached():
                        break
                else:
                    return False
                _sweep(self._project.root / step.folder)
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
            check_folders(self._project, [step.folder, f"{step.folder}/.gitignore"])
            try:
                stage.save_outs()
                links = stage.outs[0].cache.cache_types[:1]
                stage.commit(relink=links in (["hardlink"], ["symlink"]))
                self._check_saved(stage)
                self._finish(stage, step)
            except (DvcException, OSError) as error:
                raise StepError(f"{step.name}: its outs could not be saved: {reason(error)}") from error

    def renew(self, step: Step, entry: Entry, deps: Mapping[str, Digest]) -> None:
        """Record newer versions of inputs of which the step reads nothing that changed."""
        with self._open() as repo:
            renewed = {**entry, "deps": [_row(path, deps[path]) for path in sorted(deps)]}
            self._finish(self._stage(repo, step, renewed), step)

    def find_run(self, step: Step, deps: Mapping[str, Digest], parameters: Mapping[str, Any]) -> Entry | None:
        """A run of a step on the same inputs that somebody has pushed, with the objects that its outs are made of.

        One request where there is none.
        """
        key = self._cache.key_of(step, deps, parameters)
        with self._open():
            names = self._ask(lambda remote: remote.runs(key)) or set()
            contents = self._ask(lambda remote: remote.read_runs(names)) or {}
            for name, content in contents.items():
                entry = self._cache.keep_run(name, content)
                if entry is not None and self._is_there(entry):
                    return entry
        return None

    def adopt(self, step: Step, entry: Entry) -> None:
        """Record a run whose outs are on the remote and stay there until a step needs them."""
        with self._open() as repo:
            self._finish(self._stage(repo, step, entry), step)

    def fetch_data(self, path: str) -> bool:
        """Bring a tracked dataset into place, from the cache or else the remote."""
        file = DataFile.read(self._project, f"{path}.dvc")
        with self._open():
            if file is None or file.plain:
                self._download(file.md5s if file else ())
            else:
                self._ask(lambda _: self.leave_to_dvc("fetch", [file.path]))
            return self.checkout([f"{path}.dvc"]) and (self._project.root / path).exists()

    def problems(self, targets: Sequence[str]) -> list[Problem]:
        """Why what `.dvc` files or stages keep must not be put into place, whoever wrote them and their lists."""
        found: list[Problem] = []
        with self._open() as repo:
            for target in targets:
                is_file = target.endswith(".dvc")
                try:
                    stages = list(repo.stage.collect(target))
                except (DvcException, OSError, ValueError, TypeError, KeyError) as error:  # of whatever is in the file
                    if is_file:
                        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
                        found.append(Problem(file=target, message=f"DVC refuses it ({reason}); restore it with git"))
                    continue
                for stage in stages:
                    found += self._refused(stage.outs, target if is_file else f"dvc.lock, {target}")
        return list({problem.message: problem for problem in reversed(found)}.values())[::-1]

    def checkout(self, targets: Sequence[str]) -> bool:
        """Bring files of the cache into place; False if DVC refuses, because what is there is nowhere else.

        Raises:
            DataError: what the targets name would land elsewhere, or a pipe lies there; nothing has been touched.
        """
        for target in targets:
            if target.endswith(".dvc"):
                self._refuse_special(target.removesuffix(".dvc"))
        if problems := self.problems(targets):
            raise DataError(problems)
        with self._open() as repo:
            try:
                for target in targets:  # a target that is none makes DVC look at everything
                    if not lists_are_here(repo.stage.collect(target)):
                        return False
                repo.checkout(targets=list(targets))
            except (DvcException, OSError):
                return False
            return True

    def present(self, md5s: Collection[str]) -> set[str]:
        """Which objects the remote has, none where there is no remote or it is in trouble."""
        with self._mutex, working_directory(self._project.root):
            return self._ask(lambda remote: remote.present(md5s)) or set()

    def fetch(self, md5s: Collection[str]) -> None:
        """Bring single objects into the cache, as far as the remote has them; a folder's list comes without its files.

        What a past state holds is read this way; a remote that is absent or out of reach brings nothing.
        """
        with self._open():
            self._ask(lambda remote: remote.download_single(md5s))

    def leave_to_dvc(self, verb: Literal["push", "fetch"], targets: Sequence[str]) -> None:
        """Push or fetch what DVC alone knows how to: imports, remotes of their own, older formats.

        Raises:
            RemoteError: it failed.
            DataError: what they name would land elsewhere.
        """
        if verb == "fetch" and (problems := self.problems(targets)):
            raise DataError(problems)
        with self._open() as repo:
            self.remote().leave_to_dvc(lambda: getattr(repo, verb)(targets=list(targets)))

    def save_data(self, path: str) -> None:
        """Keep the present content of a tracked dataset, so that its state can come back.

        Raises:
            DataError: there is a pipe, a socket or a device in it, which DVC would wait for.
            StepError: DVC cannot save it.
        """
        self._refuse_special(path)
        with self._open() as repo:
            beside = (Path(path).parent / ".gitignore").as_posix()
            check_folders(self._project, [path, f"{path}.dvc", beside])
            try:
                with left_to_git(self._project.root, path, repo.scm):
                    repo.add([path])
            except (DvcException, OSError) as error:
                raise StepError(f"{path} could not be saved to DVC's cache: {reason(error)}") from error

    def _refuse_special(self, path: str) -> None:
        root = self._project.root
        found = [(place.relative_to(root), kind) for place, kind in find_special(root / path)]
        if found:
            remedy = f"which DVC cannot keep; move it out of {path}"
            raise DataError(Problem(file=str(place), message=f"is {kind}, {remedy}") for place, kind in found)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep DVC's own commands in other processes from changing the cache meanwhile."""
        with self._open():
            yield

    def close(self) -> None:
        """Close DVC's databases."""
        with self._mutex:
            if self._repo is not None:
                self._repo.close()
                self._repo = None

    def remote(self) -> Remote:
        """The project's default remote.

        Raises:
            UsageError: none is configured.
        """
        with self._mutex:
            if self._remote is None:
                self._remote = Remote(self._repository(), self._cache)
            return self._remote

    def _repository(self) -> Any:
        if self._repo is None:
            check_cache(self._project)
            try:
                self._repo = Repo(str(self._project.root), _wait_for_lock=True)
            except (DvcException, SCMError, ValueError, sqlite3.Error) as error:
                what = next(iter(str(error).splitlines()), "") or type(error).__name__
                remedy = "mend .dvc/config, or `sdbuild init .` sets up what is lacking"
                raise UsageError(f"DVC cannot open this project: {what}; {remedy}") from error
            guard_cache(self._repo.cache.local)
            guard_cache(self._repo.cache.legacy)
        return self._repo

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        with self._mutex, working_directory(self._project.root), lock_repo(self._repository()):
            _drop_torn(Path(self._repo.tmp_dir) / RWLOCK_FILE)
            try:
                yield self._repo
            except (DvcException, SCMError, sqlite3.Error) as error:
                what = next(iter(str(error).splitlines()), "") or type(error).__name__
                raise StepError(f"DVC: {what}") from error

    def _ask(self, question: Callable[[Remote], Answer]) -> Answer | None:
        """Ask the remote; None where there is none, or once it was in trouble, which is told in one line."""
        if self._alone:
            return None
        try:
            return question(self.remote())
        except UsageError:
            self._alone = True
        except RemoteError as error:
            self._alone = True
            if self._console is not None:
                self._console.warn(f"{error}; going on without it")
        return None

    def _is_there(self, entry: Entry) -> bool:
        """Whether the remote has what an entry's outs are made of."""
        outs = {str(out["md5"]) for out in entry["outs"]}
        return outs <= (self._ask(lambda remote: remote.present(outs)) or set())

    def _download(self, md5s: Iterable[str]) -> None:
        md5s = list(md5s)
        self._cache.clear(md5s)
        lacking = [md5 for md5 in md5s if not self._cache.has(md5)]
        if lacking:
            with self._console.transfer("fetching") if self._console else contextlib.nullcontext() as show:
                self._ask(lambda remote: remote.download(lacking, show))

    def _refused(self, outs: Iterable[Any], origin: str) -> list[Problem]:
        return list(out_problems(self._project.root, outs, origin, DvcConfig(self._project.root).remote))

    def _tell(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            if problem not in self._told and self._console is not None:
                self._console.warn(str(problem))
            self._told.add(problem)

    def _check_saved(self, stage: Any) -> None:
        """DVC passes over objects that it could not copy, e.g. to a full disk."""
        lost = [str(out) for out in stage.outs if not self._cache.has(out.hash_info.value)]
        if lost:
            free = shutil.disk_usage(self._cache.folder).free
            raise OSError(f"{lost[0]} did not get into DVC's cache {self._cache.folder} ({free >> 20} MiB free)")

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
        folder = (self._project.root / step.folder).parent
        if folder.resolve() != self._project.root.resolve() / folder.name:
            for out in stage.outs:  # `build` is the user's link to another disk, behind which git sees nothing
                out.ignore = _nothing
        return stage

    def _finish(self, stage: Any, step: Step) -> None:
        entry = json.loads(json.dumps(to_single_stage_lockfile(stage)))
        self._cache.remember_run(entry)
        self._lock.write({step.stage: entry}, self._order)


def create_repository(root: Path, *, subfolder: bool) -> None:
    """Put a folder under DVC; `subfolder` for one inside a larger git repository."""
    _hush()
    Repo.init(str(root), subdir=subfolder).close()


def _drop_torn(locks: Path) -> None:
    """Remove DVC's list of who reads and writes what, if it is only half there; the repository's lock is held.

    DVC writes it in place, several times a step. After a kill at that moment it refuses all work until it is removed.
    """
    try:
        json.loads(locks.read_bytes())
    except FileNotFoundError:
        return
    except ValueError:
        locks.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove temporary files that a killed checkout left among the outs; the repository's lock is held."""
    for path in folder.glob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _hush() -> None:
    """Keep DVC's own words off the screen; what matters is said by exceptions."""
    for name in ("dvc", "dvc_data", "dvc_objects", "dvc_render", "scmrepo"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _nothing() -> None:
    """In place of asking git to ignore an out."""


def _row(path: str, digest: Digest) -> dict[str, Any]:
    row: dict[str, Any] = {"path": path, "hash": "md5", "md5": digest.md5, "size": digest.size}
    if digest.files is not None:
        row["nfiles"] = digest.files
    return row
