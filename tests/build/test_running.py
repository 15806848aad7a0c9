"""Adapters kept on the way, validation and early stop, through the command line."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from tests.conftest import RECIPE, Work

WAY = {"save_every": 1, "save_most": 2, "validate_every": 2}


@pytest.fixture
def watched(built: Work) -> Work:
    """The built project, trained again with somebody looking on."""
    built.recipe(train=WAY, sample={"every": 2})
    return built


def test_adapters_on_the_way_are_outs_like_the_rest(watched: Work) -> None:
    before = watched.adapter()
    assert watched.plan()["cat:train"]["reasons"] == [
        "param train.save_every: (none) -> 1",
        "param train.save_most: (none) -> 2",
        "param train.validate_every: (none) -> 2",
        "its outs have other names",
    ]
    first = watched.doit()
    assert first.ran == {"cat:train": 4, "cat:samples": 3}, "two strengths, and the adapter of step 2"
    assert watched.adapter() == before, "looking on has changed the adapter"
    index = json.loads(watched.read("build/cat/adapters/index.json"))
    assert [row["step"] for row in index["adapters"]] == [2]
    head, *rows = watched.read("build/cat/validation.csv").decode().splitlines()
    assert (head, [row.split(",")[0] for row in rows]) == ("step,adapter,base", ["2", "4"])
    with Image.open(watched.root / "build/cat/samples/progress.png") as progress:
        assert progress.width > 3 * 192, "base, step 2 and the result"
    listed = json.loads(watched.read("build/cat/samples/samples.json"))
    assert [(row["step"], row["file"]) for row in listed["progress"]] == [
        (2, "step-000002/00-seed0-strength1.png"),
        (4, "00-seed0-strength1.png"),
    ]
    drawn = watched.read("build/cat/samples/step-000002/00-seed0-strength1.png")
    assert drawn != watched.read("build/cat/samples/00-seed0-strength1.png")
    assert watched.doit().ran == {}
    assert "up to date" in watched.dvc("status").out

    what = "build/cat/adapters/step-000002/cat-000002.safetensors"
    said = watched.sdbuild("why", what).out
    assert "after step 2 of 4" in said
    assert "the same bytes" in said

    saved = watched.read(what)
    shutil.rmtree(watched.root / "build/cat/adapters")
    assert watched.doit().ran == {}
    assert watched.read(what) == saved

    watched.recipe()
    assert watched.doit().ran == {}, "taken back"
    assert watched.adapter() == before


def test_an_early_end_is_said_and_recorded(built: Work) -> None:
    stop = {"steps": 8, "learning_rate": 1.0, "validate_every": 1, "early_stop": {"patience": 1}}
    built.recipe(train=stop, sample=None)
    result = built.doit()
    told = json.loads(built.read("build/cat/metrics.json"))
    assert told["stopped_early"]
    assert told["steps"] == told["best_step"] + 1 < 8
    assert f"cat:train: stopped after step {told['steps']} of 8: in 1 validation the loss did not fall" in result.out
    assert result.ran == {"cat:train": told["steps"]}
    assert built.doit().ran == {}


def test_what_does_not_go_together_is_told(work: Work) -> None:
    work.recipe(
        datasets=[{**RECIPE["datasets"][0], "holdout": 0}],
        train={"validate_every": 2, "save_every": 2},
        sample={"every": 3},
    )
    said = work.sdbuild("check", code=2).err
    assert "train.validate_every: no pictures are held out to validate on; set holdout of a dataset" in said
    assert "sample.every: 3 is not a multiple of train.save_every 2; choose one" in said


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_trackers_are_told_and_change_nothing(built: Work) -> None:
    before, lock = built.adapter(), built.read("dvc.lock")
    built.recipe(train={"trackers": ["tensorboard", "clearml"], "save_every": None})
    word = "train.trackers: clearml is not installed, so nothing is told to it: pip install clearml"
    assert f"recipes/cat.yaml: {word}" in built.sdbuild("check").out
    assert built.doit().ran == {}
    assert word in built.doit("-a", "cat:train").out
    assert built.adapter() == before
    assert built.sdbuild("plan").out.count(word) == 0, "nothing is to be trained"
    assert json.loads(built.read("build/cat/recipe.json"))["recipe"]["train"]["trackers"]
    assert b"trackers" not in lock + built.read("dvc.lock")

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = (built.root / ".sdbuild/trackers/tensorboard").iterdir()
    told = EventAccumulator(str(run)).Reload()
    rows = [line.split(",") for line in built.read("build/cat/loss.csv").decode().splitlines()[1:]]
    for tag, column in (("loss", 1), ("learning_rate", 2)):
        found = [(event.step, event.value) for event in told.Scalars(tag)]
        assert found == [(int(row[0]), pytest.approx(float(row[column]))) for row in rows]
