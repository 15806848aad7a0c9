"""`sdbuild gc`: what no kept state needs goes; what one does is restored without running."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdbuild.build.cache import LocalCache
from sdbuild.build.kept import find_kept
from sdbuild.build.project import Project
from sdbuild.build.space import find_garbage
from sdbuild.data.items import ItemStore
from tests.conftest import Work

RATES = {"first": 1e-3, "second": 5e-4, "third": 2e-3}


def commit(work: Work, message: str) -> None:
    work.git("add", ".")
    work.git("commit", "--quiet", "-m", message)


@pytest.fixture(scope="module")
def states(built_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with three committed states of one recipe."""
    work = Work(built_template).copy(tmp_path_factory.mktemp("states") / "project")
    for name in ("second", "third"):
        work.recipe(train={"learning_rate": RATES[name]})
        work.doit()
        commit(work, name)
    return work.root


@pytest.fixture
def work(states: Path, tmp_path: Path) -> Work:
    return Work(states).copy(tmp_path / "project")


def files(*folders: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()}


def told(text: str) -> int:
    """The bytes that a command speaks of."""
    found = re.search(r"\(([\d,]+) bytes\)", text)
    return int(found[1].replace(",", "")) if found else 0


def recorded(work: Work, revision: str) -> str:
    """MD5 of the adapter in a state."""
    text = work.git("show", f"{revision}:dvc.lock").out
    found = re.search(r"path: build/cat/adapter\n\s+hash: md5\n\s+md5: (\S+)", text)
    assert found
    return found[1]


def test_old_states_go_and_kept_ones_come_back(work: Work) -> None:
    cache, items = work.root / ".dvc/cache", work.root / ".sdbuild/items"
    first, second = recorded(work, "HEAD~2"), recorded(work, "HEAD~1")
    before = files(cache, work.root / ".sdbuild")
    assert "nothing else" in work.sdbuild("gc").out, "all three are among the last ten"
    work.git("tag", "v1", "HEAD~2")
    assert told(work.sdbuild("gc", "--keep", "1").out) > 0
    assert told(work.sdbuild("gc", "--keep", "2").out) == 0, "a tag keeps the first"
    work.git("tag", "--delete", "v1")
    result = work.sdbuild("gc", "--keep", "2", "--items")
    assert "would come free" in result.out
    assert "cat:train" in result.out
    assert "cat:latents" not in result.out
    assert files(cache) == {path: size for path, size in before.items() if path.is_relative_to(cache)}

    import torch

    ItemStore(items / "latents").add({"ab" * 32: {"mean": torch.zeros(9)}})
    work.write(".sdbuild/runs/gone/train/state.safetensors", b"x" * 1000)
    work.write(".sdbuild/logs/gone/train.log", b"x" * 10)
    work.write(".sdbuild/runs/cat/train/state.safetensors", b"x" * 1000)
    announced = told(work.sdbuild("gc", "--keep", "2", "--items").out)
    assert announced > told(result.out) + 1010
    watched = (cache, items, work.root / ".sdbuild/runs", work.root / ".sdbuild/logs")
    before = files(*watched)
    freed = told(work.sdbuild("gc", "--keep", "2", "--items", "--delete").out)
    assert announced == freed == sum(before.values()) - sum(files(*watched).values())
    assert (work.root / ".sdbuild/runs/cat/train/state.safetensors").exists()
    assert "nothing else" in work.sdbuild("gc", "--keep", "2", "--items").out

    local = LocalCache(Project(work.root))
    assert not local.path(first).exists()
    assert local.has(second)
    assert "up to date" in work.dvc("status").out
    assert work.doit().ran == {}
    work.recipe(train={"learning_rate": RATES["second"]})
    result = work.doit()
    assert result.ran == {}
    assert "restored without running: cat:train, cat:samples" in result.out
    work.recipe(train={"learning_rate": RATES["first"]})
    plan = work.plan()
    assert plan["cat:train"]["action"] == "run"
    assert {step["action"] for name, step in plan.items() if name not in ("cat:train", "cat:samples")} == {"none"}


def test_what_is_not_committed_is_kept(work: Work) -> None:
    """Whatever lies in the working tree was wanted last, even if no commit has it."""
    work.recipe(train={"learning_rate": RATES["first"]})
    assert work.doit().ran == {}
    before = recorded(work, "HEAD~2")
    work.sdbuild("gc", "--keep", "0", "--delete")
    assert LocalCache(Project(work.root)).has(before)
    shutil.rmtree(work.root / "build/cat/adapter")
    assert work.doit().ran == {}


def test_killed_at_any_moment(work: Work) -> None:
    """After each deletion, what is left of the run-cache and the lists of folders is whole."""
    project = Project(work.root)
    cache = LocalCache(project)
    shutil.copytree(work.root / ".dvc/cache", work.root.parent / "cache")
    named = find_kept(project, 1).md5s

    def whole() -> Iterator[bool]:
        for name, run in LocalCache(project).named_by(cache.runs()).items():
            yield all(cache.has(md5) for md5 in run.outs) and bool(name)
        for path in (cache.folder / "files/md5").glob("*/*.dir"):
            yield all(cache.has(row["md5"]) for row in json.loads(path.read_bytes()))

    garbage = list(find_garbage(project, cache, named, items=False))
    assert sum(each.is_run for each in garbage) == 4
    for number, each in enumerate(garbage):
        each.remove(each.path)
        assert all(whole())
        if number % 4 == 0:
            rest = list(find_garbage(project, cache, named, items=False))
            assert [other.path for other in rest] == [other.path for other in garbage[number + 1 :]]


def test_a_folder_whose_list_is_damaged_stops_everything(work: Work) -> None:
    path = LocalCache(Project(work.root)).path(recorded(work, "HEAD"))
    os.chmod(path, 0o644)
    path.write_text("[{")
    (work.root / ".dvc/cache" / path.parent.name / path.name).unlink()
    before = files(work.root / ".dvc/cache")
    assert "is damaged" in work.sdbuild("gc", "--keep", "1", "--delete", code=1).err
    assert files(work.root / ".dvc/cache") == before


def test_a_cache_outside_the_project_may_be_others(work: Work, tmp_path: Path) -> None:
    (work.root / ".dvc/cache").rename(tmp_path / "cache")
    work.dvc("cache", "dir", "--local", str(tmp_path / "cache"))
    assert "--shared-cache" in work.sdbuild("gc", code=3).err
    assert told(work.sdbuild("gc", "--shared-cache", "--keep", "1").out) > 0
    assert "negative" in work.sdbuild("gc", "--keep", "-1", code=3).err


def test_links_into_the_cache(work: Work) -> None:
    """A file that has another name elsewhere frees nothing, and that name keeps its content."""
    cache = LocalCache(Project(work.root))
    files_in = cache.files(recorded(work, "HEAD~2"))
    assert files_in
    path = cache.path(files_in["cat.safetensors"])
    os.link(path, work.root / "mine.safetensors")
    content = path.read_bytes()
    before = told(work.sdbuild("gc", "--keep", "2").out)
    assert told(work.sdbuild("gc", "--keep", "2", "--delete").out) == before
    assert work.read("mine.safetensors") == content
    assert not path.exists()
