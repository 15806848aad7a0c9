"""`sdbuild compare`: ranks, figures and a picture."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from PIL import Image

from sdbuild.report.compare import MOST_COLUMNS, Candidate, Comparison, rank
from tests.conftest import Work

ONE, TWO, THREE = "cat@rank-1", "cat@rank-2", "cat@rank-3"


def compared(work: Work, *names: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(work.sdbuild("compare", *names, "--json").out)
    return found


def test_variants_are_ranked_by_validation_loss(swept: Work) -> None:
    metrics = {name: json.loads(swept.read(f"build/{name}/metrics.json")) for name in (ONE, TWO)}
    order = sorted(metrics, key=lambda name: float(metrics[name]["validation_loss"]["adapter"]))
    swept.recipe(matrix={"method.rank": [1, 2, 3]})
    found = compared(swept, "cat")
    assert found["ranked_by"] == "validation_loss"
    assert [(row["recipe"], row["rank"], row["state"]) for row in found["recipes"]] == [
        (order[0], 1, "built"),
        (order[1], 2, "built"),
        (THREE, None, "not built"),
    ]
    for row in found["recipes"][:2]:
        assert row["settings"] == {"method.rank": int(row["recipe"][-1])}
        assert row["validation_loss"] == metrics[row["recipe"]]["validation_loss"]
        assert row["bytes"] == len(swept.adapter(row["recipe"]))
        assert row["seconds_per_step"] == pytest.approx(metrics[row["recipe"]]["seconds"] / 4)
    assert found["recipes"][2]["validation_loss"] is None

    text = swept.sdbuild("compare", "cat").out.splitlines()
    assert text[0].split()[:2] == ["recipe", "method.rank"]
    assert text[1].split()[:3] == ["1", order[0], order[0][-1]]
    assert text[3].split() == ["not", "built", THREE, "3"]
    assert f"1 not built: `doit {THREE}`" in text
    assert text[-1] == f"grids: {found['picture']}"
    with Image.open(swept.root / found["picture"]) as picture:
        drawn = picture.convert("RGB")
    with Image.open(swept.root / f"build/{order[1]}/samples/grid.png") as picture:
        grid = picture.convert("RGB")
    assert drawn.width > 2 * grid.width, "the better one on the left"
    corner = drawn.width - grid.width - 12, drawn.height - grid.height - 12
    assert drawn.crop((*corner, drawn.width - 12, drawn.height - 12)).tobytes() == grid.tobytes()

    shutil.rmtree(swept.root / "build")
    assert compared(swept, "cat") == found, "what DVC keeps is enough"
    swept.recipe(matrix={"method.rank": [1, 2, 3]}, train={"learning_rate": 5e-4})
    changed = compared(swept, TWO, ONE)
    assert [(row["recipe"], row["state"]) for row in changed["recipes"]] == [(TWO, "stale"), (ONE, "stale")]
    assert changed["picture"] is None


def test_names_that_cannot_be_compared(work: Work) -> None:
    assert "cat is one recipe; name another to compare it with" in work.sdbuild("compare", "cat", code=3).err
    assert "no recipe dog" in work.sdbuild("compare", "cat", "dog", code=3).err
    work.recipe("dog", train={"steps": 3, "seed": 1})
    found = compared(work, "cat", "dog")
    assert [row["settings"] for row in found["recipes"]] == [
        {"train.seed": 0, "train.steps": 4},
        {"train.seed": 1, "train.steps": 3},
    ]
    assert "2 not built: `doit cat dog`" in work.sdbuild("compare", "cat", "dog").out


def candidate(name: str, train: float | None, **parts: Any) -> Candidate:
    return Candidate(recipe=name, state="built", train_loss=train, **{"settings": {}, **parts})


def test_without_a_hold_out_the_training_loss_counts() -> None:
    held = candidate("a", 0.5, validation_loss={"base": 0.7, "adapter": 0.1})
    absent = Candidate(recipe="x", state="not built", settings={})
    measure, ranked = rank([absent, held, candidate("b", 0.2), candidate("c", float("nan")), candidate("d", None)])
    assert measure == "train_loss"
    assert [(each.recipe, each.rank) for each in ranked] == [("b", 1), ("a", 2), ("c", 3), ("d", 4), ("x", None)]
    notes = list(Comparison(measure=measure, candidates=ranked, picture=None).notes())
    assert notes[0] == "ranked by the training loss, since not all have a hold-out (datasets[].holdout)"


def test_what_was_measured_differently_is_said() -> None:
    losses = ({"base": 0.7, "adapter": 0.3}, {"base": 0.6, "adapter": 0.2})
    settings = {f"train.{key}": 1 for key in "abcde"}
    assert len(settings) > MOST_COLUMNS
    measure, ranked = rank(
        [candidate(name, 1, validation_loss=loss, settings=settings) for name, loss in zip("ab", losses, strict=True)]
    )
    found = Comparison(measure=measure, candidates=ranked, picture=None)
    assert [each.recipe for each in found.candidates] == ["b", "a"]
    assert "the base's losses differ" in list(found.notes())[1]
    assert "they differ in 5 settings; --json has them" in found.notes()
    columns, rows = found.table()
    assert "train.a" not in columns
    assert {len(row) for row in rows} == {len(columns)}
