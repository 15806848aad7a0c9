"""`plan` promises what is there, `doit` does what it said, `push` says what it could not, `gc` judges what it sees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.build.team import Team, local_remote, objects, tracked
from tests.conftest import Result, Work


@pytest.fixture(scope="module")
def tracked_template(built_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tracked(built_template, tmp_path_factory.mktemp("tracked") / "project")


@pytest.fixture
def team(tmp_path: Path) -> Team:
    return Team(tmp_path, local_remote(tmp_path / "store"))


def actions(work: Work) -> dict[str, str]:
    return {name.removeprefix("cat:"): step["action"] for name, step in work.plan().items()}


def did(result: Result) -> set[str]:
    """The steps that ran."""
    return {name.removeprefix("cat:") for name in result.ran}


def promised(work: Work) -> set[str]:
    """The steps that `plan` says will run."""
    return {name for name, action in actions(work).items() if action == "run"}


def test_plan_tells_what_the_cache_has_and_what_it_has_not(built: Work) -> None:
    for out in ("adapter", "samples", "latents"):
        shutil.rmtree(built.root / "build/cat" / out)
    found = actions(built)
    assert found["train"] == found["samples"] == found["latents"] == "restore"
    assert "will be restored" in built.sdbuild("why", "cat:train").out

    # Without the cache, what the training reads has to be made again, too.
    shutil.rmtree(built.root / ".dvc/cache")
    assert actions(built) == {
        "images": "none", "captions": "none", "latents": "run", "text": "none", "train": "run", "samples": "run"
    }  # fmt: skip
    reasons = built.plan()["cat:latents"]["reasons"]
    assert reasons == ["absent: build/cat/latents, which cat:train reads"]
    assert did(built.doit()) == {"latents", "train", "samples"}
    assert promised(built) == set()


def test_plan_tells_what_the_remote_has(team: Team, tracked_template: Path) -> None:
    anna = team.found(tracked_template)
    anna.git("push", "--quiet")
    bert = team.join("b")

    # Nobody has pushed: everything runs, and the pictures cannot be had.
    plan = bert.plan()
    assert plan["cat:train"]["action"] == plan["cat:samples"]["action"] == "run"
    assert any("datasets/cats is neither" in reason for reason in plan["cat:images"]["reasons"])
    assert "datasets/cats" in bert.doit(code=2).err

    anna.sdbuild("push")
    assert actions(bert) == {
        "images": "none", "captions": "none", "latents": "none", "text": "none", "train": "fetch", "samples": "fetch"
    }  # fmt: skip
    assert "will be fetched" in bert.sdbuild("why", "cat:train").out
    assert "fetch" in bert.sdbuild("plan").out

    # What a step that runs reads is fetched for it.
    bert.recipe(train={"seed": 1})
    found = actions(bert)
    assert {found[name] for name in ("latents", "captions", "text")} == {"fetch"}
    assert found["train"] == found["samples"] == "run"
    bert.recipe()

    # A remote that lost it, and one that is gone.
    md5 = next(row["md5"] for row in lock_outs(bert, "cat-train") if row["path"].endswith("adapter"))
    path = objects(team.store)[md5]
    path.rename(path.with_suffix(".away"))
    assert actions(bert)["train"] == "run"
    path.with_suffix(".away").rename(path)
    team.store.rename(team.folder / "away")
    result = bert.sdbuild("plan", "--json")
    assert json.loads(result.out)["steps"][4]["action"] == "run"
    assert "no such folder" in result.err
    (team.folder / "away").rename(team.store)
    assert did(bert.doit()) == promised(bert) == set()


def lock_outs(work: Work, stage: str) -> list[dict[str, str]]:
    import yaml

    found: list[dict[str, str]] = yaml.safe_load(work.read("dvc.lock"))["stages"][stage]["outs"]
    return found


def test_push_says_what_it_could_not(team: Team, tracked_template: Path) -> None:
    anna = team.found(tracked_template)
    shutil.rmtree(anna.root / ".dvc/cache")
    assert anna.doit().out == "everything is up to date\n"
    said = anna.sdbuild("push", code=1)
    assert "everything that is here" not in said.out
    for path in ("build/cat/adapter", "build/cat/samples", "datasets/cats"):
        assert path in said.err
    assert "dvc commit" in said.err

    # The only copy stays where it is.
    cleaned = anna.doit("clean", "cat")
    assert "build/cat/adapter is left" in cleaned.out
    assert anna.adapter()

    anna.dvc("commit", "--force", "--quiet")
    assert "pushed" in anna.sdbuild("push").out
    assert actions(team.join("b"))["train"] == "fetch"
    assert "removing build/cat/adapter" in anna.doit("clean", "cat").out
    assert anna.doit().ran == {}


def test_gc_does_not_judge_a_history_of_which_a_part_is_not_here(built: Work, tmp_path: Path) -> None:
    built.write("dvc.lock", built.read("dvc.lock") + b"\n")
    built.git("commit", "--quiet", "-am", "More")
    built.git("config", "uploadpack.allowFilter", "true")
    url = f"file://{built.root}"
    clones = {
        "shallow": ("--depth", "1"),
        "no blobs": ("--filter=blob:none",),
        "no trees": ("--filter=tree:0",),
        "sparse": ("--filter=blob:none", "--sparse"),
    }
    remedies = {"shallow": "git fetch --unshallow"}
    for name, options in clones.items():
        clone = Work(tmp_path / name)
        built.git("clone", "--quiet", *options, url, str(clone.root))
        if name == "sparse":
            clone.git("sparse-checkout", "add", "recipes", ".dvc", "datasets")
        for arguments in ((), ("--delete",)):
            said = clone.sdbuild("gc", *arguments, code=3).err
            remedy = remedies.get(name, "git fetch --refetch --no-filter")
            assert remedy in said, name
            assert "nothing was deleted" in said
        clone.git(*remedy.split()[1:])
        clone.sdbuild("gc")


def test_gc_does_not_judge_a_grafted_or_damaged_history(built: Work) -> None:
    built.git("commit", "--quiet", "--allow-empty", "-m", "More")
    first = built.git("rev-parse", "HEAD~1").out.strip()
    head = built.git("rev-parse", "HEAD").out.strip()
    built.git("replace", "--graft", head)
    assert "grafted" in built.sdbuild("gc", code=3).err
    built.git("replace", "--delete", head)
    built.sdbuild("gc")
    built.write(".git/info/grafts", f"{head}\n")
    assert "grafted" in built.sdbuild("gc", code=3).err
    (built.root / ".git/info/grafts").unlink()
    blob = built.git("rev-parse", f"{first}:dvc.lock").out.strip()
    path = built.root / ".git/objects" / blob[:2] / blob[2:]
    path.unlink()
    assert "nothing was deleted" in built.sdbuild("gc", code=3).err
