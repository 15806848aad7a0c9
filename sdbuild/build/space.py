"""`sdbuild gc`: what of the cache no kept state needs, and deleting it.

Entries of the run-cache go first, then lists of folders, then files: whenever the process is killed, nothing that is
left names what is gone, and the next deletion resumes there.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from sdbuild.build.cache import LocalCache
from sdbuild.build.kept import Kept, find_kept
from sdbuild.build.lockfile import LockFile, load_yaml
from sdbuild.build.project import BuildLock, Project
from sdbuild.console import Console
from sdbuild.data.items import ItemStore
from sdbuild.errors import RecipeError, StepError, UsageError
from sdbuild.plan.compile import plan
from sdbuild.recipe.load import read_project
from sdbuild.recipe.names import group_of

_OBJECT = re.compile(r"[0-9a-f]{32}(\.dir)?")
_COMMAND = "sdbuild step "
_OTHER = "other data"
_REFS = {
    ("branch", "branches"): "refs/heads/",
    ("remote branch", "remote branches"): "refs/remotes/",
    ("tag", "tags"): "refs/tags/",
    ("experiment", "experiments"): "refs/exps/",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """A file or folder that can go."""

    path: Path
    size: int
    """Bytes that come free; of a file that has other names none."""
    what: str
    """Whose it is, for people: a step or a dataset."""
    is_run: bool = False
    """An entry of the run-cache: a run that can be restored no more."""
    remove: Callable[[Path], None]


def collect_garbage(
    project: Project, console: Console, *, states: int, delete: bool, items: bool = False, shared: bool = False
) -> int:
    """Tell what no kept state needs, or delete it; the bytes that come free.

    Args:
        project: whose cache it is.
        console: is told.
        states: how many last states of each recipe every branch keeps.
        delete: do it; without, nothing is touched.
        items: also items of the item store that no kept state was made of.
        shared: the cache lies outside the project and may be cleaned nevertheless.

    Raises:
        UsageError: the project is not under git, or its cache is one that other projects may use.
        StepError: git or the cache cannot be read, or something could not be deleted.
    """
    cache = LocalCache(project)
    if not shared and not cache.folder.resolve().is_relative_to(project.root):
        raise UsageError(
            f"the cache {cache.folder} lies outside the project; other projects that use it are not known here, "
            "and --shared-cache deletes what only they need too"
        )
    with _alone(project, console) if delete else contextlib.nullcontext():
        kept = find_kept(project, states)
        garbage = list(find_garbage(project, cache, kept.md5s, items=items))
        for each in garbage if delete else ():
            try:
                each.remove(each.path)
            except OSError as error:
                raise StepError(f"{each.path} could not be deleted: {error.strerror}; the cache is whole") from error
    for line in _kept_words(kept, states):
        console.say(line)
    freed = _tell(console, garbage, deleted=delete)
    for name in _left_by_recipes(project):
        console.say(f"build/{name} belongs to no recipe any more; delete the folder if nobody needs it")
    return freed


def find_garbage(project: Project, cache: LocalCache, named: Collection[str], *, items: bool) -> Iterator[Garbage]:
    """What can go where the named objects stay, in the order in which it has to.

    Raises:
        StepError: a folder's list that is needed is damaged.
    """
    needed = _with_files(cache, named)
    runs = cache.named_by(cache.runs())
    owners: dict[str, str] = {}
    for name in sorted(name for name, run in runs.items() if not needed.issuperset(run.outs)):
        path = cache.run_file(name)
        step, owned = _owned(cache, path)
        owners |= owned
        yield _file(path, step, is_run=True)
    gone = [(path, md5) for path, md5 in _objects(cache) if md5 not in needed]
    for path, md5 in sorted(gone, key=lambda each: (not each[1].endswith(".dir"), each[0])):
        yield _file(path, owners.get(md5, _OTHER))
    yield from _left_by_steps(project)
    if items:
        yield from _items(project, cache, needed)


@contextlib.contextmanager
def _alone(project: Project, console: Console) -> Iterator[None]:
    """Keep builds, and DVC's own commands, from adding to the cache meanwhile."""
    from sdbuild.build.history import History

    guard = BuildLock(project, waiting=console.say)
    guard.acquire()
    try:
        with contextlib.closing(History(project, LockFile(project), ())) as history, history.exclusive():
            yield
    finally:
        guard.release()


def _with_files(cache: LocalCache, named: Collection[str]) -> set[str]:
    """MD5s, with those of the files in folders."""
    needed = set(named)
    for md5 in named:
        files = _listed(cache, md5)
        if files is None and any(path.exists() for path in _places(cache, md5)):
            raise StepError(f"{cache.path(md5)} is damaged; delete it, and `dvc fetch` brings it if the remote has it")
        needed |= files or set()
    return needed


def _listed(cache: LocalCache, md5: str) -> set[str] | None:
    """MD5s of a folder's files, none of a file; None where its list is not here or damaged."""
    if not md5.endswith(".dir"):
        return set()
    for path in _places(cache, md5):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            return {row["md5"] for row in json.loads(path.read_bytes())}
    return None


def _places(cache: LocalCache, md5: str) -> tuple[Path, Path]:
    """Where an object is kept by DVC 3, and by DVC 2, which has a copy of each list still."""
    return cache.path(md5), cache.folder / md5[:2] / md5[2:]


def _objects(cache: LocalCache) -> Iterator[tuple[Path, str]]:
    for root in (cache.folder / "files" / "md5", cache.folder):
        for path in root.glob("[0-9a-f][0-9a-f]/*"):
            md5 = path.parent.name + path.name
            if _OBJECT.fullmatch(md5) and path.is_file():
                yield path, md5


def _owned(cache: LocalCache, run: Path) -> tuple[str, dict[str, str]]:
    """The step that an entry of the run-cache is of, and whose each object is that it names."""
    try:
        entry = load_yaml(run.read_text(encoding="utf-8"))
        step = str(entry["cmd"]).removeprefix(_COMMAND)
        rows = [(row["md5"], row["path"]) for row in entry.get("deps", ()) if not row["path"].startswith("build/")]
        rows += [(row["md5"], step) for row in entry["outs"]]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return _OTHER, {}
    return step, {inner: owner for md5, owner in rows for inner in (md5, *(_listed(cache, md5) or ()))}


def _file(path: Path, what: str, *, is_run: bool = False) -> Garbage:
    status = path.lstat()
    size = status.st_size if status.st_nlink == 1 else 0

    return Garbage(path=path, size=size, what=what, is_run=is_run, remove=_remove_file)


def _remove_file(path: Path) -> None:
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # others lie there
        path.parent.rmdir()


def _left_by_steps(project: Project) -> Iterator[Garbage]:
    """Checkpoints, logs and unfinished outs of steps that there are no more."""
    try:
        loaded = read_project(project.root)
    except RecipeError:  # which steps there are is not known
        return
    steps = {step.name for recipe in loaded.recipes for step in plan(recipe)}
    for place in ("runs", "tmp", "logs"):
        for path in sorted((project.private / place).glob("*/*")):
            unread = group_of(path.parent.name) in loaded.unread
            if not unread and f"{path.parent.name}:{path.stem}" not in steps:
                inside = [path, *path.rglob("*")] if path.is_dir() else [path]
                size = sum(each.lstat().st_size for each in inside if not each.is_dir())
                yield Garbage(path=path, size=size, what=".sdbuild, steps that are gone", remove=_remove_all)


def _left_by_recipes(project: Project) -> list[str]:
    """Folders of outs whose recipe is gone; adapters may be in use, so they are told and never deleted."""
    try:
        loaded = read_project(project.root)
        names = {recipe.name for recipe in loaded.recipes}
        folders = (path.name for path in (project.root / "build").iterdir() if path.is_dir())
        return sorted(name for name in folders if name not in names and group_of(name) not in loaded.unread)
    except (RecipeError, OSError):
        return []


def _remove_all(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _items(project: Project, cache: LocalCache, needed: Collection[str]) -> Iterator[Garbage]:
    """Shards of the item store with items that no kept latents or texts have."""
    wanted: set[str] = set()
    folders = (cache.files(md5) or {} for md5 in needed if md5.endswith(".dir"))
    for files in folders:
        for path in (cache.path(md5) for name, md5 in files.items() if name == "index.jsonl"):
            with contextlib.suppress(
                OSError, ValueError, KeyError, TypeError, RecursionError
            ):  # then its items are made again
                wanted |= {json.loads(line)["key"] for line in path.read_text(encoding="utf-8").splitlines()}
    for folder in sorted(path for path in project.items.glob("*") if path.is_dir()):
        store = ItemStore(folder)
        for shard, size in store.surplus(wanted).items():
            remove = partial(_drop_items, store, wanted)
            yield Garbage(path=folder / shard, size=size, what=".sdbuild, items", remove=remove)


def _drop_items(store: ItemStore, wanted: Collection[str], path: Path) -> None:
    store.drop_surplus(path.name, wanted)


def _kept_words(kept: Kept, states: int) -> Iterator[str]:
    found = {
        kind: sum(name.startswith(prefix) and not name.endswith("/HEAD") for name in kept.refs)
        for kind, prefix in _REFS.items()
    }
    heads = [f"{count} {kind if count == 1 else plural}" for (kind, plural), count in found.items() if count]
    yield f"kept: {', '.join(['the working tree', *heads])}; of each branch the last {states} states of every recipe"


def _tell(console: Console, garbage: Collection[Garbage], *, deleted: bool) -> int:
    total = sum(each.size for each in garbage)
    if not garbage:
        console.say("there is nothing else in the cache")
        return 0
    rows: dict[str, list[Garbage]] = {}
    for each in garbage:
        rows.setdefault(each.what, []).append(each)
    console.table(
        ("deleted" if deleted else "not needed", "runs", "files", "size"),
        (
            (what, str(sum(each.is_run for each in found) or ""), str(len(found)), _amount(sum(e.size for e in found)))
            for what, found in sorted(rows.items())
        ),
    )
    amount = f"{_amount(total)} ({total:,} bytes)"
    console.say(f"{amount} freed" if deleted else f"{amount} would come free; `sdbuild gc --delete` deletes it")
    return total


def _amount(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"
