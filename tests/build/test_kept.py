"""What has to stay in the cache: everything that a state names in which the repository can be found again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from sdbuild.build.kept import find_kept
from sdbuild.build.lockfile import dump_yaml
from sdbuild.build.project import Project
from sdbuild.errors import StepError, UsageError
from tests.conftest import Work


def md5(name: str) -> str:
    return hashlib.md5(name.encode()).hexdigest()


def stage(recipe: str, *outs: str) -> dict[str, object]:
    return {"cmd": f"sdbuild step {recipe}:train", "outs": [{"path": "x", "md5": md5(out)} for out in outs]}


@pytest.fixture
def work(tmp_path: Path) -> Work:
    work = Work(tmp_path / "top" / "project")
    (work.root / "recipes").mkdir(parents=True)
    Work(tmp_path / "top").git("init", "--quiet", "--initial-branch=main")
    return work


def record(work: Work, **recipes: str) -> None:
    """Write a `dvc.lock` in which each recipe has one out."""
    stages = {f"{recipe}-train": stage(recipe, out) for recipe, out in recipes.items()}
    work.write("dvc.lock", dump_yaml({"schema": "2.0", "stages": stages}))


def commit(work: Work, **recipes: str) -> None:
    record(work, **recipes)
    work.git("add", ".")
    work.git("commit", "--quiet", "-m", "State")


def kept(work: Work, states: int, *names: str) -> set[str]:
    """Which of the names are kept."""
    found = find_kept(Project(work.root), states).md5s
    return {name for name in names if md5(name) in found}


def test_every_place_in_which_a_state_can_be_found(work: Work, tmp_path: Path) -> None:
    commit(work, a="old")
    work.write("data/cats.dvc", f"outs:\n- md5: {md5('cats')}.dir\n  size: 1\n  hash: md5\n  path: cats\n")
    commit(work, a="tagged")
    work.git("tag", "--annotate", "-m", "One", "v1")
    (work.root / "data/cats.dvc").unlink()
    commit(work, a="side")
    work.git("branch", "side")
    commit(work, a="experiment")
    work.git("update-ref", "refs/exps/01/2345/lucky-cat", "HEAD")
    commit(work, a="theirs")
    work.git("update-ref", "refs/remotes/origin/main", "HEAD")
    work.git("worktree", "add", "--quiet", "--detach", str(tmp_path / "tree"))
    tree = Work(tmp_path / "tree" / "project")
    commit(tree, a="detached")
    record(tree, a="elsewhere")
    work.git("reset", "--quiet", "--hard", "side~2")
    work.git("tag", "blob", work.git("hash-object", "-w", "dvc.lock").out.strip())
    commit(work, a="head")
    record(work, a="stashed index")
    work.git("add", ".")
    record(work, a="stashed")
    work.git("stash", "--quiet")
    record(work, a="index")
    work.git("add", ".")
    record(work, a="on disk")
    work.write("ignored/dogs.dvc", f'{{"outs": [{{"md5": "{md5("dogs")}", "path": "dogs"}}]}}')
    work.write(".dvc/tmp/exps/standalone/x/dvc.lock", f"outs:\n- md5: {md5('running')}\n")
    work.write(".dvc/cache/files/md5/00/dvc.lock", f"md5: {md5('no record')}")
    object_ = work.write(f".dvc/cache/files/md5/{md5('linked')[:2]}/{md5('linked')[2:]}", "x")
    (work.root / "link").symlink_to(object_)
    names = (
        *("tagged", "side", "experiment", "theirs", "detached", "elsewhere", "head", "stashed index", "stashed"),
        *("index", "on disk", "dogs", "running", "linked"),
    )
    assert kept(work, 0, *names, "old", "no record") == set(names)
    assert f"{md5('cats')}.dir" in find_kept(Project(work.root), 0).md5s
    assert kept(work, 10, "old") == {"old"}


def test_the_last_states_of_each_recipe(work: Work) -> None:
    commit(work, cat="cat 1", dog="dog 1", ant="ant 1")
    commit(work, cat="cat 1", dog="dog 2", ant="ant 1")
    commit(work, cat="cat 1", dog="dog 2", ant="ant 2")
    for number in range(2, 6):
        commit(work, cat=f"cat {number}", dog="dog 2")
    everything = [f"{recipe} {number}" for recipe in ("cat", "dog", "ant") for number in range(1, 6)]
    assert kept(work, 1, *everything) == {"cat 5", "dog 2"}
    assert kept(work, 2, *everything) == {"cat 5", "cat 4", "dog 2", "dog 1"}, "the states of one that rests last"
    assert kept(work, 5, *everything) == {*(f"cat {n}" for n in range(1, 6)), "dog 1", "dog 2", "ant 2"}
    work.git("checkout", "--quiet", "-b", "side", "HEAD~5")
    assert kept(work, 1, *everything) == {"cat 5", "dog 2", "cat 1", "ant 1"}
    record(work, cat="cat 9")
    text = work.read("dvc.lock").decode()
    work.write("dvc.lock", f"<<<<<<< ours\n{text}=======\n{text.replace(md5('cat 9'), md5('cat 3'))}>>>>>>> theirs\n")
    assert kept(work, 0, "cat 3", "cat 9") == {"cat 3", "cat 9"}, "both sides of a conflict"


def test_what_cannot_be_read_stops_everything(work: Work) -> None:
    commit(work, a="head")
    blob = work.git("rev-parse", "HEAD:project/dvc.lock").out.strip()
    (work.root.parent / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(StepError, match="nothing was deleted"):
        find_kept(Project(work.root), 0)


def test_a_project_without_git(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not under git"):
        find_kept(Project(tmp_path), 0)
