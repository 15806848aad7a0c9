"""`sdbuild push` and `sdbuild pull`: data, outs and the whole run-cache, to and from the remote."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from yaml import YAMLError

from sdbuild.build.cache import LocalCache, Named
from sdbuild.build.dataset_versions import Versions
from sdbuild.build.lockfile import LockFile, entry_problem, load_yaml
from sdbuild.build.merge import ensure_merge_driver
from sdbuild.build.project import BuildLock, Project
from sdbuild.build.statcache import StatCache
from sdbuild.build.tracked import DataFile, data_files
from sdbuild.console import Console
from sdbuild.errors import DataError, RemoteError

if TYPE_CHECKING:
    from sdbuild.build.history import History
    from sdbuild.build.remote import Remote, Transferred


STAGE = re.compile(r"[\w-]+")
"""Names of stages; what DVC would take for the file of another project has other letters."""


@dataclass(frozen=True, kw_only=True)
class _Present:
    """What the project names now: its data and what `dvc.lock` records."""

    data: list[DataFile]
    outs: dict[str, list[str]]
    """Outs by stage."""
    paths: dict[str, str] = field(default_factory=dict)
    """What is kept under an MD5, for messages."""
    inputs: set[str] = field(default_factory=set)


def push(project: Project, console: Console) -> None:
    """Copy to the remote what it lacks.

    Raises:
        UsageError: there is no default remote.
        RemoteError: the remote is in trouble, or something that is recorded is in no cache to be pushed from; what
            has arrived is of use, and the next push resumes there.
    """
    lock = LockFile(project)
    with closing(_history(project, lock, console)) as history:
        remote, cache, state = history.remote(), LocalCache(project), _present(project, lock)
        remote.prepare()
        named = cache.named_by(cache.runs())
        there, sent = _send_objects(remote, cache, _all(named, state), console)
        lost = [path for md5, path in state.paths.items() if md5 not in there]
        whole = {name for name, run in named.items() if there.issuperset(run.outs)}
        new = whole - remote.runs()
        with console.transfer("pushing runs") as show:
            runs = remote.write_runs(new, show)
        apart = [file.path for file in state.data if not file.plain]
        if apart:
            history.leave_to_dvc("push", apart)
    if sent.files or runs or not lost:
        console.say(_summary("pushed", "to", remote.name, sent, runs))
    for warning in _unsaved(project, state):
        console.warn(warning)
    if lost:
        raise RemoteError(*_lost(lost, remote.name))


def pull(project: Project, console: Console) -> None:
    """Bring what the remote has and this cache lacks, and put data and outs into place; edits by hand are kept.

    Raises:
        UsageError: there is no default remote.
        RemoteError: the remote is in trouble; what has arrived is of use, and the next pull resumes there.
    """
    lock = LockFile(project)
    guard = BuildLock(project, waiting=console.say)
    with closing(_history(project, lock, console)) as history:
        remote, cache = history.remote(), LocalCache(project)
        guard.acquire()
        ensure_merge_driver(project)
        try:
            state = _present(project, lock)
            with console.transfer("pulling runs") as show:
                found = remote.read_runs(remote.runs() - cache.runs(), show)
            new = [name for name, content in found.items() if cache.keep_run(name, content)]
            with console.transfer("pulling") as show:
                brought = remote.download(_all(cache.named_by(cache.runs()), state), show)
            apart = [file.path for file in state.data if not file.plain]
            if apart:
                history.leave_to_dvc("fetch", apart)
            console.say(_summary("pulled", "from", remote.name, brought, len(new)))
            for warning in _put_into_place(project, history, state, remote.name):
                console.warn(warning)
        finally:
            guard.release()


def _send_objects(
    remote: Remote, cache: LocalCache, wanted: Collection[str], console: Console
) -> tuple[set[str], Transferred]:
    """Send what the remote lacks; which of the wanted objects are there now, and what was sent."""
    there = remote.present(wanted)
    lists = {md5: cache.files(md5) for md5 in wanted if md5 not in there and md5.endswith(".dir")}
    folders = {md5: set(files.values()) for md5, files in lists.items() if files is not None}
    inner = set().union(*folders.values()) - there
    there |= remote.present(inner)
    loose = {md5 for md5 in wanted if not md5.endswith(".dir")}
    files = {md5 for md5 in inner | loose if md5 not in there and cache.path(md5).exists()}
    whole = {md5 for md5, files_in in folders.items() if files_in <= there | files}
    with console.transfer("pushing") as show:
        sent = remote.upload(files | whole, show)
    return there | files | whole, sent


def _put_into_place(project: Project, history: History, state: _Present, remote: str) -> Iterator[str]:
    """Check out data and outs; what could not be, in words.

    Raises:
        DataError: some would land elsewhere than in the project; nothing has been touched.
    """
    cache = LocalCache(project)
    versions = Versions(project, StatCache(project.root, project.stat_cache))
    planned = _planned(project)  # a record may be of a recipe that was deleted since
    ours = {name: outs for name, outs in state.outs.items() if name in planned and STAGE.fullmatch(name)}
    if problems := history.problems([*(file.path for file in state.data), *ours]):
        raise DataError(problems)
    for file in state.data:
        if file.plain and not all(cache.has(md5) for md5 in file.md5s):
            yield f"{file.data} is neither here nor on {remote}; `sdbuild push` where it is"
        elif not history.checkout([file.path]):
            yield f"{file.data} has changes that are saved nowhere; it is kept as it is, not as {file.path} says"
        elif named := versions.named(file.data):
            versions.note(file.data, named)
    complete = [name for name, outs in ours.items() if all(map(cache.has, outs))]
    if complete and not history.checkout(complete):
        yield "outs under build/ were changed by hand; they are kept until the next `doit` restores them"


def _unsaved(project: Project, state: _Present) -> Iterator[str]:
    """What lies in datasets and is not what their `.dvc` files name, which is what was pushed."""
    with closing(StatCache(project.root, project.stat_cache)) as stat:
        versions = Versions(project, stat)
        for file in state.data:
            found = versions.state(file.data)
            if found == "edited":
                yield f"{file.data} has changes that are not pushed: `doit` or `dvc add {file.data}` saves them first"
            elif words := versions.warning(file.data, found):
                yield words


def _present(project: Project, lock: LockFile) -> _Present:
    stages = {name: entry for name, entry in lock.stages().items() if entry_problem(entry) is None}
    state = _Present(
        data=list(data_files(project)),
        outs={name: [row["md5"] for row in entry.get("outs", [])] for name, entry in stages.items()},
    )
    for entry in stages.values():
        state.paths.update((row["md5"], row["path"]) for row in entry.get("outs", []))
        state.inputs.update(row["md5"] for row in entry.get("deps", []))
    for file in state.data:
        if file.plain:
            state.paths.update((md5, file.data) for md5 in file.md5s)
    return state


def _planned(project: Project) -> Collection[str]:
    """Stages of `dvc.yaml`, which is where DVC looks for them."""
    try:
        stages = load_yaml((project.root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, YAMLError, KeyError, TypeError):
        return ()
    return stages if isinstance(stages, dict) else ()


def _lost(paths: Iterable[str], remote: str) -> Iterator[str]:
    """What was not pushed, and how it can be."""
    shown = sorted(set(paths))
    yield f"not pushed, since neither this cache nor {remote} has it: {', '.join(shown)}"
    yield (
        "`dvc commit --force` saves the copies in this folder to the cache again; otherwise "
        "push from a clone that has them, or build them anew (`doit -a`)"
    )


def _all(named: dict[str, Named], state: _Present) -> set[str]:
    """Every object that runs, records and data name; inputs too, so that past versions of the data are shared."""
    runs = {md5 for run in named.values() for md5 in (*run.outs, *run.deps)}
    return runs | state.paths.keys() | state.inputs


def _history(project: Project, lock: LockFile, console: Console) -> History:
    from sdbuild.build.history import History

    return History(project, lock, (), console)


def _summary(done: str, direction: str, remote: str, moved: Transferred, runs: int) -> str:
    if not moved.files and not runs:
        return f"{remote} has everything that is here" if done == "pushed" else f"everything on {remote} is here"
    files = f"{moved.files} {'file' if moved.files == 1 else 'files'} ({_bytes(moved.size)})"
    return f"{done} {files} and {runs} {'run' if runs == 1 else 'runs'} {direction} {remote}"


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"
