"""Predictions for published models at full size, from their configurations alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sdbuild.data.records import CaptionRecord, ImageRecord
from sdbuild.methods import METHODS
from sdbuild.plan.compile import plan
from sdbuild.recipe.models import Recipe as RecipeModel
from sdbuild.report.memory import words
from sdbuild.steps.fit import helpful
from sdbuild.steps.prediction import Forecaster, changed, outline
from sdbuild.steps.probe import Recipe, adapter_files, predict
from sdbuild.steps.trial import measure
from sdbuild.training.machine import Machine
from tests.families.test_published import LORAS, SIZES
from tests.published import write_outline
from tests.tiny import make_pipeline

SIDES = {"sd1": 512, "sdxl": 1024, "sd3-medium": 1024}
DENOISERS = {"sd1": "unet", "sdxl": "unet", "sd3-medium": "transformer"}
BUFFERS = {"sd3-medium": 192 * 192 * 1536}
"""Numbers of networks that are no parameters: places of patches."""
EVERYTHING = [
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.*", "proj_in", "proj_out"),
    *("time_emb_proj", "conv_shortcut", "time_embedding.*"),
    *("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
]
"""All linear layers and 1×1 convolutions of Stable Diffusion 1."""
PUBLISHED = {8: 11, 16: 21, 32: 41, 64: 82, 128: 163}
"""MiB of published adapters of Stable Diffusion 1.5 in float16, by rank."""


def recipe_of(base: Path, side: int, **sections: Any) -> Recipe:
    """A recipe on two pictures of one size."""
    content = {
        "name": "cat",
        "base": {"model": "base"},
        "datasets": [{"path": "cats"}],
        "images": {"resolution": side},
        "method": {"kind": "lora", "rank": 4, "alpha": 4, "targets": "attention"},
        "sample": {"prompts": ["a cat"]},
        **sections,
    }
    images = [
        ImageRecord(
            path=f"cats/{number}.png",
            dataset=0,
            digest=f"{number:064x}",
            width=side,
            height=side,
            bucket=(side, side),
            resize=(side, side),
            crop=(0, 0),
            split="train",
        )
        for number in range(2)
    ]
    captions = [
        CaptionRecord(digest=image.digest, dataset=0, text="a cat", origin="sidecar", split="train") for image in images
    ]
    steps: dict[str, Any] = {step.kind: step.spec for step in plan(RecipeModel.model_validate(content))}
    return Recipe(steps=steps, base=base, images=images, captions=captions)


@pytest.mark.parametrize("name", SIDES)
def test_published_models_are_predicted_at_full_size(name: str, tmp_path: Path) -> None:
    base, side = write_outline(tmp_path / "base", name), SIDES[name]
    found = predict(recipe_of(base, side, train={"batch": 1}), torch.device("cuda"))
    assert found["parameters"] == {"base": SIZES[name][DENOISERS[name]], "trained": LORAS[name]}
    assert found["largest"] == {"width": side, "height": side, "records": 1}
    rows = {row["name"]: row for row in found["settings"]}
    own = rows["this recipe"]["memory"]
    weights = 4 * SIZES[name][DENOISERS[name]]
    beside = 4 * BUFFERS.get(name, 0)
    assert own["base"] == pytest.approx(weights + beside, rel=0.001)
    assert own["adapter"] == 4 * LORAS[name]
    assert own["optimizer"] == pytest.approx(8 * LORAS[name], rel=0.01)
    assert own["activations"] > 0
    assert rows["this recipe"]["total"] == sum(own.values())
    half, packed = rows["precision: bfloat16"], rows["precision: bfloat16, base_precision: nf4"]
    assert half["memory"]["base"] == pytest.approx((weights + beside) / 2, rel=0.001)
    assert packed["memory"]["base"] < 0.8 * half["memory"]["base"]
    assert half["memory"]["activations"] < own["activations"]
    assert rows["gradient_checkpointing: true"]["memory"]["activations"] < own["activations"] / 2
    assert rows["optimizer: adamw-8bit"]["memory"]["optimizer"] < own["optimizer"]
    whole = rows["full fine-tune"]["memory"]
    assert whole["base"] == pytest.approx(beside, abs=1e6)
    assert whole["adapter"] == pytest.approx(weights, rel=0.001)
    assert whole["optimizer"] == pytest.approx(2 * weights, rel=0.01)
    disk = {row["step"]: row for row in found["disk"]}
    channels = 16 if name.startswith("sd3") else 4
    assert disk["latents"]["out"] == pytest.approx(2 * 2 * 4 * channels * (side // 8) ** 2, rel=0.01)
    assert disk["latents"]["count"] == 2
    assert disk["text"]["count"] == 1
    files = disk["adapter"]["files"]
    assert files["pytorch_lora_weights.safetensors"] == pytest.approx(4 * LORAS[name], rel=0.03)
    assert disk["adapter"]["out"] == sum(files.values()), "kohya's joins what attention has apart, with more numbers"
    assert disk["checkpoints"]["private"] == pytest.approx(2 * 3 * 4 * LORAS[name], rel=0.01)


def test_adapters_are_as_large_as_published_ones(tmp_path: Path) -> None:
    base = write_outline(tmp_path / "base", "sd1")
    for rank, published in PUBLISHED.items():
        method = {"rank": rank, "targets": EVERYTHING, "text_encoder": True, "save_precision": "float16"}
        recipe = recipe_of(base, 512, method={"kind": "lora", **method})
        size = adapter_files(recipe, outline(recipe.train, base))["cat.safetensors"]
        assert size / 2**20 == pytest.approx(published, rel=0.1), rank


def test_what_the_size_of_a_file_goes_by(tmp_path: Path) -> None:
    """With patterns, and parts, of text encoders, which other settings that are predicted do not have."""
    method = {"rank": 2, "targets": ["to_k", "q_proj"], "text_encoder": True, "save_precision": "float16"}
    parts = [{"modules": "text_encoder*", "rank": 1}]
    recipe = recipe_of(make_pipeline(tmp_path), 64, method={"kind": "lora", **method, "parts": parts})
    found = predict(recipe, torch.device("cpu"))
    (said,) = (line for line in words(found) if line.startswith("cat.safetensors: "))
    size, rest = said.removeprefix("cat.safetensors: ").split(" KiB ")
    assert 0 < int(size) < 100
    assert rest == "in float16 (method.save_precision), for targets to_k, q_proj and text encoders"
    rows = {row["name"]: row["memory"] for row in found["settings"]}
    assert "method.text_encoder: false" not in rows
    assert rows["gradient_checkpointing: true"]["activations"] < rows["this recipe"]["activations"]
    largest = recipe.largest
    forecaster = Forecaster(recipe.base, largest, torch.device("cpu"))
    enough = forecaster.memory(changed(recipe.train, {"train.gradient_checkpointing": True})).total
    first, *_ = helpful(recipe.train, forecaster, Machine(kind="cuda", has=enough, free=enough))
    assert first == "each of these makes it fit, from the cheapest on:"


def test_settings_change_what_they_should(tmp_path: Path) -> None:
    recipe = recipe_of(write_outline(tmp_path / "base", "sd1"), 512, train={"batch": 4})
    assert recipe.largest.records == 4, "with two pictures too: batches are whole"
    forecaster = Forecaster(recipe.base, recipe.largest, torch.device("cpu"))
    plain = forecaster.memory(recipe.train)
    averaged = forecaster.memory(changed(recipe.train, {"train.ema": {"decay": 0.9}}))
    assert averaged.adapter == 2 * plain.adapter
    assert averaged.activations == plain.activations
    text = forecaster.memory(changed(recipe.train, {"method.text_encoder": True}))
    assert text.base - plain.base == pytest.approx(4 * SIZES["sd1"]["text_encoder"], rel=0.01)
    alone = forecaster.memory(changed(recipe.train, {"train.batch": 1}))
    assert alone.activations == pytest.approx(plain.activations / 4, rel=0.15)
    smaller = forecaster.resized(0.5).memory(recipe.train)
    assert smaller.activations < plain.activations / 3


TOKENS = {"tokens": [{"token": "<cat>", "vectors": 2}]}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2},
    "loha": {"rank": 2},
    "lokr": {"rank": 2},
    "glora": {"rank": 2},
    "oft": {},
    "ia3": {},
    "full": {"text_encoder": True},
    "partial": {"layers": ["conv_in"]},
    "dreambooth": {"prior": {"from": "prediction", "prompt": "a cat"}},
    "dreambooth_lora": {"rank": 2, "prior": {"from": "pictures", "prompt": "a cat", "pictures": 3}},
    "textual_inversion": TOKENS,
    "pivotal": {**TOKENS, "lora": {"kind": "lora", "rank": 2}},
    "hypernetwork": {},
}


def test_every_method_is_predicted(tmp_path: Path) -> None:
    base = tmp_path / "base"
    make_pipeline(base)
    assert KINDS.keys() == METHODS.keys()
    for kind, settings in KINDS.items():
        recipe = recipe_of(base, 64, method={"kind": kind, **settings}, train={"steps": 10})
        memory = Forecaster(base, recipe.largest, torch.device("cpu")).memory(recipe.train)
        assert memory.adapter > 0, kind
        assert memory.activations > 0, kind
        assert memory.optimizer >= 2 * memory.adapter, kind


@pytest.mark.parametrize("kind", ["dreambooth", "dreambooth_lora"])
def test_a_prior_is_counted_and_measured(kind: str, tmp_path: Path) -> None:
    base = make_pipeline(tmp_path / "base")
    recipe = recipe_of(base, 64, method={"kind": kind, **KINDS[kind]}, train={"steps": 10, "batch": 2})
    disk = {row["step"]: row["count"] for row in predict(recipe, torch.device("cpu"))["disk"]}
    assert (disk.get("prior", 0), disk["latents"]) == ((3, 5) if kind == "dreambooth_lora" else (0, 2))
    assert measure(recipe.train, base, recipe.largest).seconds > 0
    if kind == "dreambooth":  # the base's weights lie beside those that are trained
        plain = recipe_of(base, 64, method={"kind": "full"}, train={"steps": 10, "batch": 2})
        kept, free = (
            Forecaster(base, each.largest, torch.device("cuda")).memory(each.train).base for each in (recipe, plain)
        )
        assert kept - free == Forecaster(base, recipe.largest, torch.device("cpu")).memory(recipe.train).adapter
