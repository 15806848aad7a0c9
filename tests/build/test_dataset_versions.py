"""Datasets after `git pull` and switches of branches, files that `.dvcignore` names, and settings that views follow."""

from __future__ import annotations

import json
import shutil
from io import StringIO
from pathlib import Path

import pytest

from sdbuild.build.engine import Engine
from sdbuild.build.oracle import recorded_parameters
from sdbuild.build.project import Project
from sdbuild.console import Console
from sdbuild.recipe.load import load_project
from tests.build.team import Team, local_remote, tracked
from tests.conftest import Work

CATS = "datasets/cats"
POINTER = f"{CATS}.dvc"


@pytest.fixture(scope="module")
def tracked_template(built_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tracked(built_template, tmp_path_factory.mktemp("tracked") / "project")


@pytest.fixture
def team(tmp_path: Path) -> Team:
    return Team(tmp_path, local_remote(tmp_path / "store"))


def share(work: Work, number: int, caption: str) -> None:
    """Write a caption, build, and give it to the others."""
    work.write(f"{CATS}/000{number}.txt", caption)
    work.doit("cat:captions")
    work.sdbuild("push")
    work.git("add", ".")
    work.git("commit", "--quiet", "-m", caption)
    work.git("push", "--quiet")


def captions(work: Work) -> str:
    return work.read("build/cat/captions.jsonl").decode()


def trigger(work: Work, word: str) -> None:
    work.recipe(datasets=[{"path": CATS, "trigger": word, "holdout": 1}])


def test_a_version_that_is_not_checked_out_is_no_edit(team: Team, tracked_template: Path) -> None:
    anna = team.found(tracked_template)
    anna.sdbuild("push")
    ben = team.join("ben")
    ben.sdbuild("pull")
    first = ben.git("rev-parse", "HEAD").out.strip()
    share(anna, 1, "a better caption")

    ben.git("pull", "--quiet")
    pointer = ben.read(POINTER)
    older = f"{CATS} holds an older version than {POINTER} names"
    for command in ("plan", "check", "push"):
        assert older in ben.sdbuild(command).out, command
    assert older in ben.doit("cat:images").out, "nothing needs the pictures, and the user is told"
    trigger(ben, "toy")
    result = ben.doit("cat:captions")
    assert set(result.ran) == {"cat:captions"}
    assert "doit checked out the named one" in result.out
    assert ben.read(POINTER) == pointer
    assert ben.read(f"{CATS}/0001.txt").strip() == b"a better caption"
    assert "toy a better caption" in captions(ben)

    # an edit, taken back: saved, and the pointer follows
    ben.write(f"{CATS}/0002.txt", "mine")
    ben.doit("cat:captions")
    assert ben.read(POINTER) != pointer
    ben.git("checkout", "--quiet", "--", "recipes", POINTER)
    assert "checked out the named one" in ben.doit("cat:captions").out, "the checkout took the version back"
    ben.write(f"{CATS}/0002.txt", "mine")
    ben.doit("cat:captions")
    ben.dvc("checkout", "--quiet")
    ben.write(f"{CATS}/0002.txt", anna.read(f"{CATS}/0002.txt"))
    assert ben.doit("cat:captions").ran == {}
    assert ben.read(POINTER) == pointer, "the pointer follows an edit that is taken back"

    # another branch, and back
    ben.git("checkout", "--quiet", "-f", first)
    old = ben.read(POINTER)
    trigger(ben, "doll")
    ben.doit("cat:captions")
    assert ben.read(POINTER) == old
    assert "a better caption" not in captions(ben)
    ben.git("checkout", "--quiet", "-f", "main")
    ben.doit("cat:captions")
    ben.sdbuild("pull")

    # DVC itself saves what lies there; a step that it runs then refuses to go on
    share(anna, 2, "of anna")
    ben.git("pull", "--quiet")
    pointer = ben.read(POINTER)
    ben.dvc("repro", "cat-images")
    assert "holds an older version than the last commit's" in ben.sdbuild("step", "cat:captions", code=2).err
    ben.git("checkout", "--quiet", "-f", "main")
    assert ben.read(POINTER) == pointer
    ben.sdbuild("pull")

    # edits on top of a version that is not the one that the pointer names: nothing is touched, both are named
    share(anna, 1, "the best caption")
    ben.write(f"{CATS}/0003.txt", "of ben")
    ben.git("pull", "--quiet")
    pointer, lock = ben.read(POINTER), ben.read("dvc.lock")
    for result in (ben.doit("cat:captions", code=2), ben.sdbuild("check", code=2)):
        assert f"{CATS}: the folder holds edits (0003.txt) of version " in result.err
        assert f"`dvc pull --force {POINTER}`" in result.err
    told = json.loads(ben.sdbuild("plan", "--json", code=2).out)
    assert "0003.txt" in told["problems"][0]
    assert all(step["blocked"] for step in told["steps"])
    assert "cat:images cannot run" in ben.sdbuild("why", "cat").out
    assert ben.read(POINTER) == pointer
    assert ben.read("dvc.lock") == lock
    assert ben.read(f"{CATS}/0003.txt") == b"of ben"
    assert "the folder holds edits" in ben.sdbuild("push").out
    ben.dvc("pull", "--quiet", "--force", POINTER)
    ben.write(f"{CATS}/0003.txt", "of ben")
    ben.doit("cat:captions")
    assert "of ben" in captions(ben)
    assert "the best caption" in captions(ben)


def test_captions_in_git_and_pictures_in_dvc(built: Work, tmp_path: Path) -> None:
    built.git("rm", "-r", "--quiet", "--cached", CATS)
    built.write("datasets/.dvcignore", "*.txt\n")
    built.dvc("add", "--quiet", CATS)
    assert built.doit().ran == {}
    built.git("add", ".")
    built.git("add", "--force", *(f"{CATS}/000{number}.txt" for number in range(4)))
    built.git("commit", "--quiet", "-m", "Captions in git")
    assert "up to date" in built.dvc("status").out
    before = built.read(f"{CATS}/0001.txt")
    pointer = built.read(POINTER)

    built.write(f"{CATS}/0001.txt", "a purple zebra")
    plan = built.plan()
    assert plan["cat:captions"]["reasons"] == ["1 caption changed"]
    assert plan["cat:images"]["state"] == plan["cat:latents"]["state"] == "fresh"
    assert built.doit("cat:text").ran == {"cat:captions": 1, "cat:text": 1}
    assert "a purple zebra" in captions(built)
    assert built.git("status", "--porcelain", "datasets").out.split() == ["M", f"{CATS}/0001.txt"]
    assert built.read(POINTER) == pointer
    assert "cat-captions" not in built.dvc("status").out
    built.git("commit", "--quiet", "-a", "-m", "Zebra")

    built.dvc("remote", "add", "--quiet", "--default", "store", str(tmp_path / "store"))
    built.git("commit", "--quiet", "-a", "-m", "Remote")
    built.sdbuild("push")
    clone = built.copy(tmp_path / "other")
    for name in ("datasets", "build", "dvc.lock", ".sdbuild", ".dvc/cache"):
        clone.run("rm", "-rf", name)
    clone.git("checkout", "--quiet", "--", ".")
    assert clone.read(f"{CATS}/0001.txt") == b"a purple zebra"
    assert not (clone.root / f"{CATS}/0001.png").exists()
    assert clone.doit("cat:text").ran == {}, "only captions are there, and that is no edit"
    assert clone.read(POINTER) == pointer

    built.write(f"{CATS}/0001.txt", before)
    assert built.doit("cat:text").ran == {}
    assert "a purple zebra" not in captions(built)

    (built.root / f"{CATS}/0003.png").unlink()
    built.write(f"{CATS}/notes.txt", "of nobody's")
    assert "cat:captions" in built.doit("cat:captions").ran, "DVC keeps the pictures, though git keeps files there"
    assert built.read(POINTER) != pointer
    built.git("checkout", "--quiet", "--", POINTER)
    built.write(f"{CATS}/0003.txt", "not committed")
    built.doit("cat:captions")
    assert (built.root / f"{CATS}/0003.png").exists()
    assert built.read(f"{CATS}/0003.txt") == b"not committed"
    assert built.read(f"{CATS}/notes.txt") == b"of nobody's"

    built.write("datasets/.dvcignore", "")
    built.write(f"{CATS}/0002.txt", "both")
    assert "git keeps 4 files of it too, such as datasets/cats/0000.txt" in built.doit("cat:captions", code=2).err


def test_datasets_that_dvc_keeps_together(built: Work, tmp_path: Path) -> None:
    """A build saves what it was built from, and an older version is no edit, there too."""
    built.git("rm", "-r", "--quiet", "--cached", CATS)
    built.dvc("add", "--quiet", "datasets")
    built.git("add", ".")
    built.git("commit", "--quiet", "-m", "All datasets")
    before = built.read("datasets.dvc")
    built.write(f"{CATS}/0000.txt", "other words")
    assert "cat:captions" in built.doit("cat:captions").ran
    assert built.read("datasets.dvc") != before
    assert "datasets.dvc" not in built.dvc("status").out
    built.git("commit", "--quiet", "-a", "-m", "Other words")

    built.git("checkout", "--quiet", "HEAD~1")
    for told in (built.sdbuild("plan", code=2).err, built.sdbuild("check", code=2).err, built.doit(code=2).err):
        assert "datasets holds an older version than datasets.dvc names" in told
    assert built.read(f"{CATS}/0000.txt") == b"other words"
    assert built.read("datasets.dvc") == before
    built.dvc("checkout", "--quiet", "datasets.dvc")
    assert built.doit("cat:captions").ran == {}

    shutil.rmtree(built.root / "datasets")
    assert "`dvc pull datasets.dvc` brings that" in built.doit(code=2).err


def test_a_dataset_is_renamed(built: Work) -> None:
    (built.root / CATS).rename(built.root / "datasets/my cats")
    data = {"path": "datasets/my cats", "trigger": "sks", "holdout": 1}
    built.recipe(datasets=[data])
    plan = built.plan()
    unsure = {name for name, step in plan.items() if step.get("perhaps")}
    assert unsure == {"cat:text", "cat:train", "cat:samples"}
    assert built.doit().ran == {"cat:images": 0, "cat:captions": 0, "cat:latents": 0}
    built.write("datasets/my cats/0000.txt", "other words")
    built.recipe(datasets=[data], train={"steps": 6})
    assert not any(step.get("perhaps") for step in built.plan().values())


def test_views_are_those_of_the_settings(built: Work) -> None:
    """After any change of a setting, what is recorded as read is what is read."""
    data = {"path": CATS, "trigger": "sks", "holdout": 1}
    for change in (
        {"trigger": "toy"},
        {"caption": {"from": "template", "text": "a {stem}"}},
        {"caption": {"from": "filename"}},
        {"tags": {"shuffle": True}},
        {"holdout": 2},
        {"lines": True},
    ):
        built.recipe(datasets=[data | change])
        built.doit("cat:text", "cat:latents")
        engine = Engine(Project(built.root), load_project(built.root), Console(StringIO(), StringIO()))
        for kind in ("images", "captions", "latents", "text"):
            step = engine.steps[f"cat:{kind}"]
            recorded = recorded_parameters(engine.oracle.entry(step), step)["reads"]
            assert recorded == engine.oracle.reads.all(step), (change, kind)
        engine.close()
    built.recipe(datasets=[data | {"trigger": "toy"}])
    built.doit("cat:text")
    caption = built.read(f"{CATS}/0002.txt")
    built.write(f"{CATS}/0002.txt", "other")
    built.doit("cat:text")
    built.write(f"{CATS}/0002.txt", caption)
    assert built.doit("cat:text").ran == {}, "an edit that is taken back is restored"
