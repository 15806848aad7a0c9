"""What a build leaves, in the hands of other tools: nothing of ours but the files."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops
from safetensors import safe_open

from tests.conftest import RECIPE, Work

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers
SAMPLE = RECIPE["sample"]


def pipeline(base: Path) -> Any:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    found = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, local_files_only=True)
    found.scheduler = DPMSolverMultistepScheduler.from_config(found.scheduler.config, use_karras_sigmas=False)
    found.set_progress_bar_config(disable=True)
    return found


def drawn(pipe: Any) -> Image.Image:
    """The first prompt of the recipe as any user of diffusers would draw it."""
    side = RECIPE["images"]["resolution"]
    result = pipe(
        prompt=SAMPLE["prompts"][0],
        negative_prompt="",
        num_inference_steps=SAMPLE["steps"],
        guidance_scale=SAMPLE["guidance"],
        width=side,
        height=side,
        generator=torch.Generator("cpu").manual_seed(SAMPLE["seeds"][0]),
    )
    picture: Image.Image = result.images[0]
    return picture


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        return picture


def same(one: Image.Image, other: Image.Image) -> bool:
    return ImageChops.difference(one.convert("RGB"), other.convert("RGB")).getbbox() is None


@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", "cat.safetensors"])
def test_diffusers_loads_the_adapter_and_draws_our_picture(
    built: Work, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    samples = built.root / "build/cat/samples"
    pipe = pipeline(built.root / "base")
    assert same(drawn(pipe), opened(samples / "00-seed0-strength0.png"))
    logging.getLogger("diffusers").propagate = True
    with caplog.at_level(logging.INFO):
        pipe.load_lora_weights(built.root / "build/cat/adapter", weight_name=file, local_files_only=True)
    said = caplog.text.lower()
    assert "unexpected keys" not in said
    assert "missing keys" not in said
    assert "no lora keys associated to unet" not in said
    ours = opened(samples / "00-seed0-strength1.png")
    theirs = drawn(pipe)
    if file == "pytorch_lora_weights.safetensors":
        assert same(theirs, ours)
    else:  # the strength is scaled in another place, which rounds otherwise
        assert max(ImageChops.difference(theirs, ours.convert("RGB")).tobytes()) <= 1


def test_the_adapter_says_what_it_was_made_from(built: Work) -> None:
    with safe_open(built.root / "build/cat/adapter/cat.safetensors", framework="pt") as file:
        metadata = file.metadata()
        keys = list(file.keys())
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["ss_network_dim"] == "2"
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert {"sdbuild.recipe", "sdbuild.recipe_digest", "sdbuild.data_digest", "sdbuild.base_digest"} <= set(metadata)
    assert all(key.startswith("lora_unet_") for key in keys)
    assert {key.rpartition(".")[2] for key in keys} == {"weight", "alpha"}


def test_metrics_and_losses(built: Work) -> None:
    metrics = json.loads(built.read("build/cat/metrics.json"))
    assert metrics["pictures"] == 3
    assert metrics["holdout"] == 1
    assert metrics["skipped"] == 0
    assert set(metrics["validation_loss"]) == {"base", "adapter"}
    with (built.root / "build/cat/loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    assert all(float(row["loss"]) > 0 for row in rows)


def test_pictures_carry_their_parameters(built: Work) -> None:
    picture = opened(built.root / "build/cat/samples/00-seed0-strength1.png")
    text = picture.info["parameters"]
    assert text.startswith("a cat")
    assert "Seed: 0" in text
    assert "Steps: 2" in text
