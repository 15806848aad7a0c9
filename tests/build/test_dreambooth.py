"""DreamBooth through the command line: class pictures are items like others."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.conftest import Work

PRIOR = {"from": "pictures", "prompt": "cat", "pictures": 3, "steps": 2, "guidance": 2}

LAST = {"cat:train", "cat:extract", "cat:samples"}


def recipe(work: Work, **prior: Any) -> None:
    work.recipe(method=None)
    method = {"kind": "dreambooth", "prior": {**PRIOR, **prior}, "extract": {"rank": 2}}
    path = "recipes/cat.yaml"
    work.write(path, work.read(path).decode() + yaml.safe_dump({"method": method}))


def todo(work: Work) -> dict[str, tuple[int, int]]:
    return {name: (row["items"]["total"], row["items"]["todo"]) for name, row in work.plan().items()}


@pytest.mark.row("change the prompt of `method.prior` with class pictures")
@pytest.mark.row("ask for more class pictures")
def test_class_pictures_are_drawn_once_and_come_back(work: Work) -> None:
    recipe(work)
    counted = todo(work)
    assert list(counted) == [
        f"cat:{kind}" for kind in ("images", "captions", "prior", "latents", "text", "train", "extract", "samples")
    ]
    assert counted["cat:prior"] == (3, 3)
    assert counted["cat:latents"] == (7, 7)
    assert counted["cat:text"] == (5, 5)
    first = work.doit().ran
    assert {name: first[name] for name in ("cat:prior", "cat:latents", "cat:text")} == {
        "cat:prior": 3,
        "cat:latents": 7,
        "cat:text": 5,
    }
    pictures = sorted(path.name for path in (work.root / "build/cat/prior").iterdir())
    assert pictures == ["00000.png", "00001.png", "00002.png", "index.jsonl"]
    assert sorted(path.name for path in (work.root / "build/cat/extracted").iterdir()) == [
        "cat.safetensors",
        "pytorch_lora_weights.safetensors",
    ]
    assert json.loads(work.read("build/cat/extract.json"))["rank"] == 2
    listed = json.loads(work.read("build/cat/samples/samples.json"))
    assert [row["file"] for row in listed["extracted"]] == ["extracted/00-seed0-strength1.png"]
    with Image.open(work.root / "build/cat/samples/grid.png") as grid:
        assert grid.width > 3 * 32
    metrics = json.loads(work.read("build/cat/metrics.json"))
    assert (metrics["pictures"], metrics["class_pictures"]) == (3, 3)
    assert {step["action"] for step in work.plan().values()} == {"none"}
    assert "up to date" in work.dvc("status").text
    before = {name: work.read(f"build/cat/prior/{name}") for name in pictures}
    adapter = work.adapter()

    recipe(work, prompt="a dog")
    counted = todo(work)
    assert counted["cat:images"][1] == counted["cat:captions"][1] == 0
    assert counted["cat:prior"] == (3, 3)
    assert counted["cat:latents"] == (7, 3)
    assert counted["cat:text"] == (5, 1)
    ran = work.doit().ran
    assert {name: count for name, count in ran.items() if name not in LAST} == {
        "cat:prior": 3,
        "cat:latents": 3,
        "cat:text": 1,
    }
    assert ran.keys() >= LAST
    assert work.adapter() != adapter

    recipe(work, pictures=4)
    assert todo(work)["cat:prior"] == (4, 1)
    recipe(work)
    assert work.doit().ran == {}
    assert {name: work.read(f"build/cat/prior/{name}") for name in pictures} == before
    assert work.adapter() == adapter

    assert "method.prior" not in work.sdbuild("check").text
    recipe(work, prompt="a sks cat")
    text = work.sdbuild("check").text
    assert "cat: method.prior.prompt 'a sks cat' holds datasets[0].trigger 'sks'" in text
