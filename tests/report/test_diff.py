"""`sdbuild diff` through the command line."""

from __future__ import annotations

import json
import shutil
from typing import Any

from PIL import Image

from tests.conftest import Work
from tests.report.conftest import CATS


def found(work: Work, *arguments: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(work.sdbuild("diff", "--json", *arguments).out)
    return content


def test_two_commits(told: Work) -> None:
    shown = told.sdbuild("diff", "HEAD~1", "HEAD").out
    old, new = (told.git("rev-parse", "--short", name).out.strip() for name in ("HEAD~1", "HEAD"))
    for line in (
        f"{old} (Build) -> {new} (Slower\\x1b[31m)",
        f"    + {CATS}/new.png  sks a green field",
        f"    ~ {CATS}/0001.png",
        f"    {CATS}/0003.png -> {CATS}/moved.png",
        f"    {CATS}/0000.png: sks a [-red-]{{+blue+}} {{+[bold]+}}cat",
        "    train.learning_rate: 0.001 -> 0.0005",
        f"  grids: .sdbuild/diff/cat-{old}-{new}.png",
    ):
        assert line in shown.splitlines()
    assert "    validation_loss.adapter: 0." in shown
    with (
        Image.open(told.root / f".sdbuild/diff/cat-{old}-{new}.png") as beside,
        Image.open(told.root / "build/cat/samples/grid.png") as grid,
    ):
        assert beside.width > 2 * grid.width
        corner = beside.width - grid.width - 12, beside.height - grid.height - 12
        right = beside.crop((*corner, corner[0] + grid.width, corner[1] + grid.height))
        assert right.tobytes() == grid.convert("RGB").tobytes()
    again = found(told, "HEAD", "HEAD~1")
    [recipe] = again["recipes"]
    assert again["new"]["name"] == old
    assert recipe["pictures"]["removed"] == [f"{CATS}/new.png"]
    assert recipe["settings"] == {"train.learning_rate": {"old": 0.0005, "new": 0.001}}
    assert recipe["captions"][0]["new"] == "sks a red cat"
    assert (told.root / recipe["grids"]).is_file()


def test_against_what_is_built_here(told: Work) -> None:
    assert "nothing differs" in told.sdbuild("diff").out
    assert found(told)["recipes"] == []
    told.recipe(train={"learning_rate": 0.1})
    assert "edited since the last build: cat; `sdbuild plan`" in told.sdbuild("diff").out
    [recipe] = found(told, "HEAD~1")["recipes"]
    assert recipe["settings"]["train.learning_rate"]["new"] == 0.0005
    assert recipe["grids"].endswith("-working.png")


def test_a_recipe_in_one_state_only_and_names_that_nothing_has(told: Work) -> None:
    told.write("dvc.lock", b"schema: '2.0'\nstages: {}\n")
    shown = told.sdbuild("diff").out
    assert "cat is gone" in shown
    assert "grids" not in shown
    told.git("commit", "--quiet", "--all", "-m", "None")
    assert "cat is new" in told.sdbuild("diff", "HEAD", "HEAD~1").out
    assert found(told, "HEAD", "HEAD~1")["recipes"][0]["event"] == "added"
    refused = told.sdbuild("diff", "HEAD~1", "--recipe", "cta", code=3).err
    assert "no recipe cta" in refused
    assert "did you mean cat?" in refused
    assert told.sdbuild("diff", "HEAD~9", code=3).err.startswith("no revision HEAD~9;")
    assert "no revision --all" in told.sdbuild("diff", "--", "--all", code=3).err


def test_grids_that_are_not_here(told: Work) -> None:
    shutil.rmtree(told.root / ".dvc/cache/files")
    shown = told.sdbuild("diff", "HEAD~1").out
    assert "grids: not here; `sdbuild pull` brings it" in shown
    assert "not here: pictures, captions, metrics; `sdbuild pull` brings it" in shown
    assert found(told, "HEAD~1")["recipes"][0]["grids"] is None
