"""The samples step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdbuild.steps import samples
from tests.steps.stage import Stage
from tests.tiny import make_lora, make_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers

SPEC: dict[str, Any] = {
    "version": 1,
    "name": "mine",
    "prompts": ["a cat", "ein Kätzchen 猫"],
    "seeds": [0, 3],
    "strengths": [0.0, 0.5, 1.0],
    "scheduler": "dpm++",
    "steps": 2,
    "guidance": 2.0,
    "negative": "",
    "resolution": 64,
    "method": {"kind": "lora"},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stage, Path, Path]:
    root = tmp_path_factory.mktemp("samples")
    stage = Stage(root / "project", make_pipeline(root / "base"))
    adapter = make_lora(root / "adapter", stage.base).parent
    items, out = stage.run(samples, SPEC, adapter=adapter)
    assert (items.total, items.computed) == (12, 12)
    return stage, out / "samples", adapter


def test_every_picture_is_listed(done: tuple[Stage, Path, Path]) -> None:
    stage, folder, _ = done
    listed = json.loads((folder / "samples.json").read_text())
    assert listed["version"] == 1
    assert listed["settings"]["scheduler"] == "dpm++"
    assert listed["pictures"][1] == {
        "file": "00-seed0-strength0.5.png",
        "prompt": "a cat",
        "seed": 0,
        "strength": 0.5,
    }
    names = {row["file"] for row in listed["pictures"]}
    assert len(names) == 12
    assert {path.name for path in folder.iterdir()} == {*names, "grid.png", "samples.json"}
    assert stage.told == [(number, 12, "pictures") for number in range(13)]


def test_pictures_carry_their_parameters(done: tuple[Stage, Path, Path]) -> None:
    _, folder, _ = done
    for row in json.loads((folder / "samples.json").read_text())["pictures"]:
        with Image.open(folder / row["file"]) as picture:
            assert picture.size == (64, 64)
            first, facts = picture.info["parameters"].splitlines()
        lora = f" <lora:mine:{row['strength']:g}>" if row["strength"] else ""
        assert first == row["prompt"] + lora
        assert facts == f"Steps: 2, Sampler: DPM++ 2M, CFG scale: 2, Seed: {row['seed']}, Size: 64x64"


def test_the_grid_shows_all(done: tuple[Stage, Path, Path]) -> None:
    _, folder, _ = done
    with Image.open(folder / "grid.png") as grid, Image.open(folder / "01-seed3-strength1.png") as last:
        enlarged = np.asarray(last.resize((192, 192), Image.Resampling.NEAREST))
        assert np.array_equal(np.asarray(grid)[-200:-8, -200:-8], enlarged)
        assert grid.height > 4 * 192


def test_the_same_again_is_the_same_bytes(done: tuple[Stage, Path, Path]) -> None:
    stage, folder, adapter = done
    _, out = stage.run(samples, SPEC, adapter=adapter)
    for path in folder.iterdir():
        assert path.read_bytes() == (out / "samples" / path.name).read_bytes()
