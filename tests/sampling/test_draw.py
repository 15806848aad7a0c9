"""Pictures against diffusers' own call."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL.Image import Image

from sdbuild.families import load
from sdbuild.families.contract import Family
from sdbuild.methods.full.spec import Full
from sdbuild.methods.hypernetwork.spec import Hypernetwork
from sdbuild.methods.lora.spec import Lora
from sdbuild.methods.pipeline import load_lora
from sdbuild.methods.textual_inversion.spec import TextualInversion
from sdbuild.recipe.models import Sample as SampleModel
from sdbuild.sampling.draw import Sample, Settings, draw, load_pipeline, parameters, samples
from sdbuild.sampling.schedulers import SCHEDULERS
from tests.tiny import make_lora, make_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers

SETTINGS = Settings(scheduler="dpm++", steps=3, guidance=4.0, negative="dark", width=64, height=48)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return make_lora(tmp_path_factory.mktemp("adapter"), base, text=True)


@pytest.fixture(scope="module")
def pipeline(base: Path, lora: Path) -> tuple[Any, Any, Family]:
    return loaded(base, lora)


class Nothing:
    """An adapter that is none."""

    def set_strength(self, strength: float) -> None:
        pass


def loaded(base: Path, lora: Path | None, **settings: Any) -> tuple[Any, Any, Family]:
    family = load(base, **settings)
    pipeline = family.pipeline()
    return pipeline, Nothing() if lora is None else load_lora(pipeline, lora), family


def picture(pipeline: tuple[Any, Any, Family], settings: Settings = SETTINGS, **what: Any) -> np.ndarray[Any, Any]:
    sample = Sample(**{"prompt": "a cat", "seed": 0, "strength": 1.0, **what})
    ((drawn, image),) = draw(*pipeline, [sample], settings)
    assert drawn == sample
    assert image.size == (64, 48)
    return np.asarray(image)


def own(base: Path, lora: Path | None, seed: int = 0) -> np.ndarray[Any, Any]:
    """The picture as users of diffusers draw it."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, local_files_only=True, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    if lora is not None:
        pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    image: Image = pipeline(
        "a cat",
        negative_prompt="dark",
        width=64,
        height=48,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(seed),
    ).images[0]
    return np.asarray(image)


def test_pictures_are_those_of_diffusers(base: Path, lora: Path, pipeline: tuple[Any, Any, Family]) -> None:
    assert np.array_equal(picture(pipeline), own(base, lora))
    assert np.array_equal(picture(pipeline, seed=7), own(base, lora, 7))


def test_strength_zero_is_the_base(base: Path, pipeline: tuple[Any, Any, Family]) -> None:
    assert np.array_equal(picture(pipeline, strength=0.0), own(base, None))


def test_strengths_differ_and_leave_no_trace(pipeline: tuple[Any, Any, Family]) -> None:
    before = picture(pipeline, strength=0.5)
    assert not np.array_equal(before, picture(pipeline, strength=1.0))
    assert not np.array_equal(before, picture(pipeline, strength=0.0))
    assert np.array_equal(before, picture(pipeline, strength=0.5))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_draws_by_seed(pipeline: tuple[Any, Any, Family], name: str) -> None:
    settings = Settings(scheduler=name, steps=2, guidance=1.0, negative="", width=64, height=48)
    first = picture(pipeline, settings)
    assert np.array_equal(first, picture(pipeline, settings))
    assert not np.array_equal(first, picture(pipeline, settings, seed=1))


def test_recipes_can_name_every_scheduler() -> None:
    assert set(get_args(SampleModel.model_fields["scheduler"].annotation)) == set(SCHEDULERS)


def test_samples_are_in_reading_order() -> None:
    wanted = samples(["a", "b"], [0, 1], [0, 1])
    assert [(one.prompt, one.seed, one.strength) for one in wanted][:5] == [
        ("a", 0, 0),
        ("a", 0, 1),
        ("a", 1, 0),
        ("a", 1, 1),
        ("b", 0, 0),
    ]


@pytest.mark.parametrize(
    ("strength", "negative", "text"),
    [
        (0.0, "", "a cat\nSteps: 3, Sampler: DPM++ 2M, CFG scale: 4, Seed: 5, Size: 64x48"),
        (
            0.5,
            "dark",
            "a cat <lora:mine:0.5>\nNegative prompt: dark\n"
            "Steps: 3, Sampler: DPM++ 2M, CFG scale: 4, Seed: 5, Size: 64x48",
        ),
    ],
)
def test_parameters_read_as_a1111s(strength: float, negative: str, text: str) -> None:
    settings = Settings(scheduler="dpm++", steps=3, guidance=4.0, negative=negative, width=64, height=48)
    sample = Sample(prompt="a cat", seed=5, strength=strength)
    assert parameters(sample, settings, "mine", mention=Lora.mention) == text
    for method in (Full, TextualInversion):
        assert "mine" not in parameters(sample, settings, "mine", mention=method.mention, whole=method is Full)
    assert Hypernetwork.mention.format(name="mine", strength=0.5) == " <hypernet:mine:0.5>"
    whole = Sample(prompt="a cat", seed=5, strength=1.0)
    last = parameters(whole, settings, "mine", mention=Full.mention, whole=True).splitlines()[-1]
    assert last.endswith("Size: 64x48, Model: mine")


class Recorder:
    """A family and its pipeline that write down where things are put."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def pipeline(self, device: str) -> Any:
        self.calls.append(("loaded on", device))
        return self

    def apply(self, pipeline: Any) -> Any:
        self.calls.append(("adapter", "added"))

    def enable_model_cpu_offload(self, device: torch.device) -> None:
        self.calls.append(("works on", str(device)))


@pytest.mark.parametrize(
    ("device", "offload", "calls"),
    [
        ("cuda", False, ["cuda", "added"]),
        ("cuda", True, ["cpu", "added", "cuda"]),
        ("cpu", True, ["cpu", "added"]),
    ],
)
def test_networks_wait_in_the_main_memory_where_that_is_asked_for(device: str, offload: bool, calls: list[str]) -> None:
    family: Any = Recorder()
    load_pipeline(family, torch.device(device), family.apply, offload=offload)
    assert [what for _, what in family.calls] == calls
