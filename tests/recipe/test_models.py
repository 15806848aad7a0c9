from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from sdbuild.recipe.messages import explain
from sdbuild.recipe.models import Recipe

SMALL: dict[str, Any] = {"name": "cat", "base": {"model": "emoji-64"}, "datasets": [{"path": "datasets/cat"}]}


def test_all_defaults_are_visible_when_resolved() -> None:
    assert Recipe.model_validate(SMALL).resolved() == {
        "name": "cat",
        "base": {
            "model": "emoji-64",
            **dict.fromkeys(("revision", "variant", "family", "vae", "refiner", "config", "prediction_type")),
            "clip_skip": 1,
            "t5": True,
            "allow_pickle": False,
        },
        "datasets": [
            {
                "path": "datasets/cat",
                "caption": {"from": "sidecar"},
                "trigger": "",
                "lines": False,
                "tags": None,
                "mask": None,
                "resolutions": None,
                "repeats": 1,
                "weight": None,
                "holdout": 0,
            }
        ],
        "images": {
            "resolution": 512,
            "buckets": {"step": 64, "max_aspect": 2.0},
            "crop": "center",
            "crops": 1,
            "flip": False,
            "background": "white",
            "on_error": "fail",
            "vae_tiling": False,
        },
        "method": {
            "kind": "lora",
            "rank": 16,
            "alpha": 16.0,
            "targets": "default",
            "text_encoder": False,
            "dropout": 0.0,
            "rank_dropout": 0.0,
            "module_dropout": 0.0,
            "save_precision": "float32",
            "parts": [],
            "rank_stabilised": False,
            "dora": False,
            "dora_axis": None,
            "orthogonal": False,
            "timestep_ranks": None,
        },
        "train": {
            "steps": 1000,
            "batch": 4,
            "accumulate": 1,
            "processes": 1,
            "learning_rate": 1e-4,
            "learning_rates": {"denoiser": None, "text_encoder": None, "embeddings": None},
            "lora_plus_ratio": 1.0,
            "optimizer": "adamw",
            "weight_decay": 0.01,
            "schedule": "constant",
            "power": 2.0,
            "cycles": 1,
            "warmup": 0,
            "prediction": "base",
            "loss": {"kind": "l2"},
            "weighting": {"kind": "uniform"},
            "timesteps": {"kind": "base"},
            "noise": {
                "offset": 0.0,
                "pyramid": 0.0,
                "pyramid_levels": 6,
                "perturbation": 0.0,
                "zero_terminal_snr": False,
            },
            "ema": None,
            "precision": "float32",
            "base_precision": None,
            "gradient_checkpointing": False,
            "compile": False,
            "seed": 0,
            "caption_dropout": 0.0,
            "clip": 1.0,
            "rising_loss": 3.0,
            "checkpoint_every": 100,
            "validate": 4,
            **dict.fromkeys(("validate_every", "early_stop", "save_every", "save_most")),
            "trackers": [],
        },
        "sample": None,
        "remote": {"lookup": "auto"},
    }


def test_what_is_resolved_is_json_and_a_recipe_again() -> None:
    recipe = Recipe.model_validate(
        {**SMALL, "sample": {"prompts": ["a"]}, "method": {"kind": "lora", "targets": ["x"]}}
    )
    assert Recipe.model_validate(json.loads(json.dumps(recipe.resolved()))) == recipe


def test_alpha_follows_the_rank() -> None:
    recipe = Recipe.model_validate({**SMALL, "method": {"kind": "lora", "rank": 8}})
    assert recipe.resolved()["method"]["alpha"] == 8.0


def test_recipes_are_frozen() -> None:
    recipe = Recipe.model_validate(SMALL)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.train.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("caption", "resolved"),
    [
        ({"from": "sidecar"}, {}),
        ({"from": "filename"}, {}),
        ({"from": "template", "text": "{trigger} {stem}, {{x}}"}, {}),
        ({"from": "jsonl"}, {"file": "metadata.jsonl", "name_key": "file_name", "text_key": "text"}),
    ],
)
def test_captioners(caption: dict[str, str], resolved: dict[str, str]) -> None:
    recipe = Recipe.model_validate({**SMALL, "datasets": [{"path": "datasets/cat", "caption": caption}]})
    assert recipe.resolved()["datasets"][0]["caption"] == {**caption, **resolved}


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ({"from": "template", "text": "{cat}"}, "unknown placeholder {cat}; use {stem}, {folder}, {trigger}"),
        ({"from": "template", "text": "{stem.__class__}"}, "unknown placeholder"),
        ({"from": "template", "text": "{stem!r:>9}"}, "placeholder {stem} takes no format"),
        ({"from": "template", "text": "{"}, "write {{ and }} for braces"),
        ({"from": "jsonl", "file": "../x"}, "is not the name of a file in the dataset's folder"),
    ],
)
def test_bad_captioners(caption: dict[str, str], reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({**SMALL, "datasets": [{"path": "datasets/cat", "caption": caption}]})
    ((_, message),) = explain(caught.value)
    assert reason in message
