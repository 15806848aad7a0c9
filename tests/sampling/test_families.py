"""Grids of every family: diffusers' own pictures, and what goes beyond them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sdbuild import families
from sdbuild.errors import DataError
from sdbuild.families.contract import Family
from sdbuild.families.sources import bring, problems
from sdbuild.methods.pipeline import PipelineLora, load_lora
from sdbuild.plan.model import Base
from sdbuild.sampling.draw import Sample, Settings, draw
from sdbuild.sampling.schedulers import make_scheduler
from tests.adapters import inject
from tests.tiny import PIPELINES, make_pipeline, make_refiner

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers

LORA = {"kind": "lora", "rank": 2, "alpha": 2.0, "targets": "default", "text_encoder": False, "dropout": 0.0}
SETTINGS = Settings(scheduler="euler", steps=2, guidance=4.0, negative="", width=64, height=48)


@pytest.fixture(scope="module", params=PIPELINES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp(request.param), family=request.param)


def make_adapter(folder: Path, family: Family) -> Path:
    denoiser, text = family.load_denoiser(), family.load_text()
    adapter = inject({denoiser.component: denoiser.module, **text.modules}, LORA)
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=chance) * 0.3)
    name = "pytorch_lora_weights.safetensors"
    save_file({key: t.contiguous() for key, t in adapter.export(family.key_map, "mine")[name].items()}, folder / name)
    return folder / name


def ours(
    pipeline: Any, family: Family, prompt: str = "a cat", strength: float = 0.0, adapter: Any = None, **changes: Any
) -> Any:
    settings = Settings(**({name: getattr(SETTINGS, name) for name in SETTINGS.__slots__} | changes))
    strengths = adapter or PipelineLora(pipeline, "none")
    ((_, image),) = draw(pipeline, strengths, family, [Sample(prompt=prompt, seed=3, strength=strength)], settings)
    return np.asarray(image)


def theirs(base: Path, lora: Path | None, **arguments: Any) -> Any:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(base, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    if "FlowMatch" not in type(pipeline.scheduler).__name__:
        pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    if lora is not None:
        pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    chance = torch.Generator().manual_seed(3)
    said = {"prompt": "a cat", "width": 64, "height": 48, "num_inference_steps": 2, "guidance_scale": 4.0, **arguments}
    return np.asarray(pipeline(**said, generator=chance).images[0])


def same(one: Any, other: Any) -> bool:
    """Whether pictures are equal; sums over weights at another place in memory may round one level otherwise."""
    return int(np.abs(one.astype(int) - other.astype(int)).max()) <= 1


def test_pictures_are_those_of_diffusers(base: Path, tmp_path: Path) -> None:
    family = families.load(base)
    pipeline = family.pipeline()
    plain = theirs(base, None)
    assert same(ours(pipeline, family), plain)
    assert same(ours(pipeline, family, negative="dark"), theirs(base, None, negative_prompt="dark"))
    lora = make_adapter(tmp_path, family)
    adapter = load_lora(pipeline, lora)
    with_adapter = ours(pipeline, family, strength=1.0, adapter=adapter)
    assert same(with_adapter, theirs(base, lora))
    assert same(ours(pipeline, family, strength=0.0, adapter=adapter), plain)
    assert not same(with_adapter, plain)


def test_every_layer_may_be_adapted_and_drawn_with(base: Path) -> None:
    """Pipelines ask some layers for their width."""
    ranked = {"rank": 2, "alpha": 2.0}
    kinds: list[dict[str, Any]] = [
        {"kind": "lora", **ranked},
        {"kind": "lora", **ranked, "dora": True},
        {"kind": "lora", "rank": 1, "alpha": 1.0, "orthogonal": "both"},
        {"kind": "loha", **ranked},
        {"kind": "lokr", **ranked},
        {"kind": "glora", **ranked},
        {"kind": "oft", "block": 2},
        {"kind": "ia3"},
    ]
    for method in kinds:
        family = families.load(base)
        pipeline = family.pipeline()
        adapter = inject({family.denoiser: getattr(pipeline, family.denoiser)}, method | {"targets": ["*"]})
        ours(pipeline, family, strength=1.0, adapter=adapter, steps=1, width=16, height=16)


def test_an_earlier_layer_of_the_text_encoders(base: Path) -> None:
    family, usual = families.load(base, clip_skip=2), families.load(base)
    text = family.load_text()
    found = text.encode("a cat")["hidden"]
    first: Any = text.modules["text_encoder"]
    with torch.no_grad():
        states = first(text.tokenize("a cat")["text_encoder"][None], output_hidden_states=True).hidden_states
        if family.name in ("sd1", "sd2"):
            expected = getattr(first, "text_model", first).final_layer_norm(states[-2])[0]
        else:
            expected = states[-3][0]
    assert torch.equal(found[:, :32], expected)
    assert not np.array_equal(ours(family.pipeline(), family), ours(usual.pipeline(), usual))


def test_weights_and_long_prompts(base: Path) -> None:
    for clip_skip in (1, 2):
        family = families.load(base, clip_skip=clip_skip)
        pipeline = family.pipeline()
        text = family.load_text()
        plain, item = text.weigh([("a ", 1.0), ("cat", 1.0)], 1), text.encode("a cat")
        assert all(torch.equal(tensor[0], item[name]) for name, tensor in plain.items())
    before = ours(pipeline, family, "a cat")
    assert np.array_equal(before, ours(pipeline, family, "a (cat:1.0)"))
    assert not np.array_equal(before, ours(pipeline, family, "a (cat:2)"))
    assert not np.array_equal(before, ours(pipeline, family, "a cat", negative="(dark:1.5)"))
    assert ours(pipeline, family, scheduler="dpm++").shape == (48, 64, 3)
    long = "a very long prompt " * 8
    assert text.chunks([(long, 1.0)]) == 2
    condition = text.weigh([(long, 1.0)], 2)
    assert condition["hidden"].shape[:2] == (1, 154)
    assert not np.array_equal(ours(pipeline, family, long), ours(pipeline, family, long[:-8] + "picture"))


def test_a_refiner_finishes_pictures(tmp_path: Path) -> None:
    base = make_pipeline(tmp_path / "base", family="sdxl")
    make_refiner(tmp_path / "refiner", seed=4)
    folder = bring(Base(model="base", refiner="refiner"), tmp_path)
    family = families.load(folder)
    pipeline = family.pipeline()
    picture = ours(pipeline, family, steps=4, refine_from=0.5)
    first = diffusers.StableDiffusionXLPipeline.from_pretrained(base, local_files_only=True)
    first.scheduler = diffusers.EulerDiscreteScheduler.from_config(first.scheduler.config)
    second = diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=first.vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=first.text_encoder_2,
        tokenizer_2=first.tokenizer_2,
        unet=diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "refiner/unet", local_files_only=True),
        scheduler=diffusers.EulerDiscreteScheduler.from_config(first.scheduler.config),
        requires_aesthetics_score=True,
    )
    said = {"prompt": "a cat", "num_inference_steps": 4, "guidance_scale": 4.0}
    chance = torch.Generator().manual_seed(3)
    latents = first(**said, width=64, height=48, denoising_end=0.5, output_type="latent", generator=chance).images
    expected = np.asarray(second(**said, image=latents, denoising_start=0.5, generator=chance).images[0])
    assert same(picture, expected)
    assert not same(picture, ours(pipeline, families.load(base), steps=4))
    text = family.text_of(family.refiner(pipeline))
    own = second.encode_prompt("a cat", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    weighed = text.weigh([("a cat", 1.0)], 1)
    assert torch.equal(weighed["hidden"], own[0])
    assert torch.equal(weighed["pooled"], own[2])
    heavy = ours(pipeline, family, "a (cat:1.5), " + "very " * 80 + "long", steps=4, refine_from=0.5)
    assert heavy.shape == picture.shape
    assert not same(picture, heavy)
    assert [
        str(problem) for problem in problems(Base(model="x", refiner="refiner"), make_pipeline(tmp_path / "x"))
    ] == ["base.refiner: Stable Diffusion 1 has no refiner; remove it"]


def test_what_is_no_refiner_of_the_base(tmp_path: Path) -> None:
    make_pipeline(tmp_path / "base", family="sdxl")
    make_refiner(tmp_path / "refiner")
    for other in ("base", "sd1"):
        make_pipeline(tmp_path / "sd1")
        folder = bring(Base(model="base", refiner=other), tmp_path)
        with pytest.raises(DataError, match=r"base.refiner: is not Stable Diffusion XL's refiner, or not one of this"):
            families.load(folder)
    weights = tmp_path / "refiner/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:900])
    with pytest.raises(DataError, match=r"refiner/unet/.* is damaged \(cut short"):
        families.load(bring(Base(model="base", refiner="refiner"), tmp_path))


def test_a_refiner_computes_where_the_base_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pipeline(tmp_path / "base", family="sdxl")
    make_refiner(tmp_path / "refiner")
    family = families.load(bring(Base(model="base", refiner="refiner"), tmp_path))
    pipeline = family.pipeline()
    # As with networks that wait in the main memory: the pipeline is there, and computes elsewhere.
    monkeypatch.setattr(type(pipeline), "_execution_device", torch.device("meta"))
    assert pipeline.device == torch.device("cpu")
    assert family.refiner(pipeline).unet.device == torch.device("meta")


def test_flows_have_samplers_of_their_own() -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    euler, other = make_scheduler("euler", config), make_scheduler("dpm++", config)
    for scheduler in (euler, other):
        scheduler.set_timesteps(4)
    assert euler.config.shift == 3.0
    # Both walk down the flow's shifted levels.
    levels = [float(sigma) for sigma in other.sigmas]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == pytest.approx(1, abs=1e-2)
    with pytest.raises(DataError, match=r"sample.scheduler: ddim does not draw with flows; use euler or dpm\+\+"):
        make_scheduler("ddim", config)
