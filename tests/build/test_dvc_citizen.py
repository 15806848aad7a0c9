"""DVC's own commands on what is compiled and recorded: plots, metrics, parameters, experiments, artifacts."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.build.team import Team, local_remote
from tests.conftest import Work

LOSS, GRID = "build/cat/loss.csv", "build/cat/samples/grid.png"
RATE = "steps.train.train.learning_rate"


@pytest.fixture
def team(tmp_path: Path) -> Team:
    return Team(tmp_path, local_remote(tmp_path / "store"))


@pytest.fixture
def anna(team: Team, built_template: Path) -> Work:
    """The first member; what she has built is pushed."""
    work = team.found(built_template)
    work.sdbuild("push")
    return work


def asked(work: Work, *command: str) -> Any:
    """The answer of a command of DVC as JSON."""
    return json.loads(work.dvc(*command, "--json").out)


def test_two_states_side_by_side(built: Work) -> None:
    before = {"loss": built.read(LOSS), "grid": built.read(GRID)}
    built.recipe(train={"learning_rate": 5e-4})
    built.doit()

    shown = asked(built, "plots", "show")
    assert set(shown["data"]) == {LOSS, GRID}, "each plot once, by the file that it shows"
    assert not shown.get("errors")

    (drawn,) = asked(built, "plots", "diff", "HEAD")["data"][LOSS]
    assert drawn["type"] == "vega"
    curves = {"HEAD": before["loss"], "workspace": built.read(LOSS)}
    values = drawn["content"]["data"]["values"]
    for revision, text in curves.items():
        rows = [(row["step"], row["loss"]) for row in csv.DictReader(io.StringIO(text.decode()))]
        assert [(row["step"], row["loss"]) for row in values if row["rev"] == revision] == rows
    axes = json.dumps(drawn["content"])
    assert '"field": "step"' in axes
    assert '"field": "loss"' in axes

    built.dvc("plots", "diff", "HEAD", "--out", "page")
    pictures = {path.name.split("_")[0]: path.read_bytes() for path in (built.root / "page/static").glob("*grid.png")}
    assert pictures == {"HEAD": before["grid"], "workspace": built.read(GRID)}
    assert "loss" in (built.root / "page/index.html").read_text()

    metrics = asked(built, "metrics", "diff")["build/cat/metrics.json"]
    assert metrics["validation_loss.adapter"]["diff"] != 0
    assert "validation_loss.base" not in metrics, "the same base on the same pictures"
    parameters = asked(built, "params", "diff")["build/cat/recipe.json"]
    assert parameters == {RATE: {"old": 0.001, "new": 0.0005, "diff": -0.0005}}


def test_an_experiment_goes_from_clone_to_clone(team: Team, anna: Work) -> None:
    ben = team.join("ben")
    ben.sdbuild("pull")
    ben.recipe(train={"learning_rate": 5e-4})
    assert set(ben.doit().ran) == {"cat:train", "cat:samples"}
    ben.dvc("exp", "save", "--name", "slower")
    shown = ben.dvc("exp", "show", "--csv", "--only-changed").out
    assert "0.0005" in next(line for line in shown.splitlines() if line.startswith("slower"))
    assert ben.doit().ran == {}, "saving an experiment makes nothing stale"
    ben.dvc("exp", "push", "origin", "slower")

    anna.dvc("exp", "pull", "origin", "slower")
    anna.dvc("exp", "apply", "slower")
    assert anna.doit().out == "everything is up to date\n"
    assert anna.adapter() == ben.adapter()
    assert b"0.0005" in anna.read("recipes/cat.yaml")
    assert "up to date" in anna.dvc("status").out


def test_what_an_experiment_trained_is_not_trained_again(built: Work) -> None:
    adapter = built.adapter()
    built.dvc("exp", "run", "--name", "slower", "--set-param", f"build/cat/recipe.json:{RATE}=0.0005")
    tried = built.adapter()
    assert tried != adapter
    assert built.doit().ran == {}
    assert built.adapter() == adapter, "the recipe says what is built"
    built.recipe(train={"learning_rate": 5e-4})
    assert built.doit().ran == {}, "the run-cache knows the experiment's run"
    assert built.adapter() == tried
    assert "Data and pipelines are up to date" in built.dvc("repro").out


def test_an_adapter_by_its_name(team: Team, anna: Work) -> None:
    anna.git("tag", "--annotate", "cat@v1.0.0", "--message", "Cat")
    anna.git("push", "--quiet", "origin", "cat@v1.0.0")
    (team.folder / "elsewhere").mkdir()
    stranger = Work(team.folder / "elsewhere")
    stranger.dvc("artifacts", "get", str(team.hub), "cat")
    assert stranger.read("cat.safetensors") == anna.adapter()
    stranger.dvc("artifacts", "get", str(team.hub), "cat", "--rev", "v1.0.0", "--out", "first.safetensors")
    assert stranger.read("first.safetensors") == anna.adapter()
    stranger.dvc("get", str(team.hub), "build/cat/adapter/cat.safetensors", "--rev", "main", "--out", "untagged")
    assert stranger.read("untagged") == anna.adapter()
