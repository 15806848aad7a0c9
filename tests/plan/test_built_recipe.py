"""The recipe that was built, from another one's `recipe.json` and the recorded parameters."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import yaml

from sdbuild.plan.built_recipe import as_built
from sdbuild.plan.compile import plan
from sdbuild.recipe.load import load_recipe
from sdbuild.recipe.models import Recipe
from tests.conftest import RECIPE

DATA: dict[str, Any] = {"path": "datasets/cats", "trigger": "sks"}
SAMPLE: dict[str, Any] = {"prompts": ["a cat"]}
CHANGES: list[dict[str, Any]] = [
    {},
    {"base": {"model": "emoji-64", "clip_skip": 2}},
    {"datasets": [DATA | {"trigger": "toy", "holdout": 2, "repeats": 3}]},
    {"datasets": [DATA | {"caption": {"from": "template", "text": "a cat"}, "weight": 2.0, "lines": True}]},
    {"datasets": [DATA | {"tags": {"shuffle": True}, "resolutions": [32, 64]}, DATA | {"path": "datasets/dogs"}]},
    {"datasets": [DATA | {"mask": {"from": "folder", "folder": "masks", "minimum": 0.1}}]},
    {"datasets": [DATA | {"caption": {"from": "openai", "model": "m", "replace": {"a": "b"}, "extra": {"c": 1}}}]},
    {"datasets": [DATA | {"caption": {"from": "openai", "model": "n", "instruction": "what?", "prefix": "see: "}}]},
    {"images": {"resolution": 64, "crop": "random", "crops": 2, "flip": True, "background": "black"}},
    {"images": {"resolution": 64, "vae_tiling": True}},
    {"method": {"kind": "lora", "rank": 8, "alpha": 1}},
    {"method": {"kind": "loha", "rank": 4}},
    {"method": {"kind": "dreambooth_lora", "prior": {"from": "pictures", "prompt": "cat", "weight": 0.5}}},
    {"method": {"kind": "dreambooth", "extract": {"rank": 4}}},
    {"train": {"steps": 9, "batch": 1, "noise": {"offset": 0.1}, "save_every": 3, "optimizer": "sgd", "compile": True}},
    {"train": {"steps": 4, "caption_dropout": 0.5}},
    {"sample": SAMPLE | {"seeds": [3], "guidance": 2.5, "measure": True}},
    {"sample": None},
]


def recipes(root: Path) -> list[Recipe]:
    for folder in ("recipes", "datasets/cats/masks", "datasets/dogs"):
        (root / folder).mkdir(parents=True)
    found = []
    for number, change in enumerate(CHANGES):
        content = {
            key: value
            for key, value in {**RECIPE, "base": {"model": "emoji-64"}, **change}.items()
            if value is not None
        }
        path = root / f"recipes/r{number}.yaml"
        path.write_text(yaml.safe_dump(content))
        found.append(load_recipe(path, root))
    return found


def test_any_recipe_is_found_again_behind_any_other(tmp_path: Path) -> None:
    """Without a grid, its settings cannot be known."""
    found = []
    for recipe in recipes(tmp_path):
        resolved = {key: value for key, value in recipe.resolved().items() if key != "name"}
        specs: dict[str, dict[str, Any]] = {step.kind: {**step.spec, "reads": {"base": "0"}} for step in plan(recipe)}
        found.append((resolved, specs))
    for (asked, steps), (built, recorded) in itertools.product(found, found):
        shown = as_built(asked, steps, recorded)
        for section in ("datasets", "images", "method", "train", "sample"):
            if section == "sample" and None in (asked["sample"], built["sample"]):
                continue
            if section == "method" and asked["method"]["kind"] != built["method"]["kind"]:
                assert built["method"].items() >= {"kind": built["method"]["kind"]}.items()
                apart = {"prior", "extract"}
                assert shown["method"].items() >= {k: v for k, v in built["method"].items() if k not in apart}.items()
                continue
            if section == "datasets":  # of another captioner, what is not stated is not known
                for mine, theirs, before in zip(shown[section], built[section], asked[section], strict=False):
                    if theirs["caption"]["from"] != before["caption"]["from"]:
                        assert theirs["caption"].items() >= mine["caption"].items()
                        mine["caption"] = theirs["caption"]
            assert shown[section] == built[section], (section, asked[section])
        assert shown["base"]["clip_skip"] == built["base"]["clip_skip"] or "text" not in recorded
