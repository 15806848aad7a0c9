"""Every family through the steps: from pictures and captions to an adapter, stopped or not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from sdbuild import families
from sdbuild.plan.compile import plan
from sdbuild.recipe.load import load_recipe
from sdbuild.sampling.draw import BaseAlone, Sample, Settings, draw
from sdbuild.steps import captions, images, latents, text, train
from sdbuild.steps.contract import Inputs
from tests.conftest import Work
from tests.original import copy_configurations, make_single
from tests.tiny import PIPELINES, make_pictures, make_pipeline
from tests.training.material import Listener

RECIPE: dict[str, Any] = {
    "base": {"model": "base"},
    "datasets": [{"path": "datasets/cats", "holdout": 1}],
    "images": {"resolution": 64, "buckets": {"step": 16}, "flip": True},
    "method": {"kind": "lora", "rank": 2},
    "train": {"steps": 4, "batch": 2, "checkpoint_every": 1, "caption_dropout": 0.2, "validate": 1},
}
TEXTS = {
    "sd1": {"text_encoder"},
    "sd2": {"text_encoder"},
    "sdxl": {"text_encoder", "text_encoder_2"},
    "sd3": {"text_encoder", "text_encoder_2"},
}
"""Text encoders that can be adapted."""


@pytest.fixture(scope="module", params=PIPELINES)
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose steps before training are done."""
    root = tmp_path_factory.mktemp(request.param)
    make_pipeline(root / "base", family=request.param)
    make_pictures(root / "datasets/cats", 3, size=(96, 64))
    (root / "recipes").mkdir()
    return root


def specs(project: Path, **changes: Any) -> Mapping[str, Mapping[str, Any]]:
    content = {**RECIPE, **{name: {**RECIPE[name], **change} for name, change in changes.items()}}
    (project / "recipes/cat.yaml").write_text(yaml.safe_dump(content))
    return {step.kind: step.spec for step in plan(load_recipe(Path("recipes/cat.yaml"), project))}


def prepared(project: Path, **changes: Any) -> tuple[Mapping[str, Any], Inputs]:
    """Run the steps before training; the training's spec and inputs."""
    found, out, listener = specs(project, **changes), project / "out", Listener(project / "work")
    inputs = Inputs(project=project, base=project / "base")
    out.mkdir(exist_ok=True)
    for module, kind in ((images, "images"), (captions, "captions"), (latents, "latents"), (text, "text")):
        if kind in found and not (out / kind).exists():
            given: dict[str, Any] = {
                name: out / f"{name}.jsonl" for name in ("images", "captions") if (out / f"{name}.jsonl").exists()
            }
            module.run(found[kind], Inputs(project=project, base=inputs.base, **given), out, listener)
    return {**found["train"], "reads": {"base": "0"}}, Inputs(
        project=project,
        base=inputs.base,
        captions=out / "captions.jsonl",
        latents=out / "latents",
        text=out / "text" if "text" in found else None,
    )


def trained(spec: Mapping[str, Any], inputs: Inputs, folder: Path, stop_at: int | None = None) -> bytes:
    out = folder / f"out-{stop_at}"
    out.mkdir(parents=True)
    if stop_at is not None:
        with pytest.raises(RuntimeError, match="stopped"):
            train.run(spec, inputs, out, Listener(folder, stop_at=stop_at))
        out = folder / "resumed"
        out.mkdir()
    train.run(spec, inputs, out, Listener(folder))
    return (out / "adapter/cat.safetensors").read_bytes()


def test_a_stopped_training_ends_with_the_same_bytes(project: Path, tmp_path: Path) -> None:
    spec, inputs = prepared(project)
    assert trained(spec, inputs, tmp_path / "straight") == trained(spec, inputs, tmp_path / "stopped", stop_at=2)
    metrics = json.loads((tmp_path / "straight/out-None/metrics.json").read_text())
    assert metrics["validation_loss"]["base"] != metrics["validation_loss"]["adapter"]


def test_text_encoders_are_trained(project: Path, tmp_path: Path) -> None:
    spec, inputs = prepared(project, method={"text_encoder": True}, base={"clip_skip": 2})
    assert spec["clip_skip"] == 2
    trained(spec, inputs, tmp_path)
    adapter = load_file(tmp_path / "out-None/adapter/pytorch_lora_weights.safetensors")
    changed = {name.partition(".")[0] for name, tensor in adapter.items() if "lora_B" in name and tensor.abs().sum()}
    assert changed >= TEXTS[families.detect(project / "base")]
    assert changed & {"unet", "transformer"}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers
def test_captions_left_out_are_what_grids_lead_away_from(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoded empty text, or zeros where the base's pipeline has them: Stable Diffusion XL."""
    family = families.load(project / "base")
    pipeline, denoiser = family.pipeline(), family.load_denoiser()
    drawn: list[torch.Tensor] = []
    getattr(pipeline, denoiser.component).register_forward_pre_hook(
        lambda _, inputs, named: drawn.append(named["encoder_hidden_states"].chunk(2)[0]), with_kwargs=True
    )
    settings = Settings(scheduler="euler", steps=1, guidance=4.0, negative="", width=64, height=64)
    list(draw(pipeline, BaseAlone(), family, [Sample(prompt="a cat", seed=0, strength=0)], settings))
    seen: list[torch.Tensor] = []
    predict: Any = type(denoiser).predict

    def noted(self: Any, noisy: Any, timesteps: Any, condition: Mapping[str, torch.Tensor]) -> Any:
        seen.append(condition["hidden"].detach())
        return predict(self, noisy, timesteps, condition)

    monkeypatch.setattr(type(denoiser), "predict", noted)
    for text_encoder in (False, True):
        seen.clear()
        settings_of = {"train": {"caption_dropout": 1.0, "steps": 1}, "method": {"text_encoder": text_encoder}}
        spec, inputs = prepared(project, **settings_of)
        trained(spec, inputs, tmp_path / str(text_encoder))
        if family.name == "sd3":  # whose pipeline has T5's states in the same tensor
            drawn[0] = family.load_text().encode("")["hidden"][None]
        assert torch.allclose(seen[0], drawn[0].expand_as(seen[0]), atol=1e-5)
        assert bool(seen[0].any()) is (family.name != "sdxl")
        assert bool(seen[-1].any()), "held-out pictures keep their captions"


def test_one_file_builds_what_its_folder_builds(work: Work) -> None:
    make_pipeline(work.root / "base", family="sdxl", seed=3)
    copy_configurations(work.root / "base", work.root / "config")
    make_single(work.root / "base", work.root / "one.safetensors", "sdxl")
    work.recipe()
    assert set(work.doit().ran) == {
        f"cat:{kind}" for kind in ("images", "captions", "latents", "text", "train", "samples")
    }
    adapter = work.adapter()
    work.recipe(base={"model": "one.safetensors", "config": "config", "family": "sdxl"})
    again = work.doit()
    assert again.ran == {}
    assert "converting the base one.safetensors" in again.out
    work.recipe(base={"model": "one.safetensors", "config": "config"}, train={"seed": 1})
    assert set(work.doit().ran) == {"cat:train", "cat:samples"}
    changed = work.adapter()
    work.recipe(base={"model": "base"}, train={"seed": 1})
    assert work.doit().ran == {}
    assert work.adapter() == changed != adapter


def test_bases_that_are_not_what_the_recipe_says(work: Work) -> None:
    work.recipe(base={"model": "base", "family": "sd3", "t5": False})
    result = work.doit(code=2)
    assert result.err.splitlines() == [
        "recipes/cat.yaml:3: base.family: is sd3, but the base is Stable Diffusion 1 (sd1); mend or remove it",
        "recipes/cat.yaml:4: base.t5: Stable Diffusion 1 has no T5; remove it",
    ]
    assert work.sdbuild("check", code=2).err.splitlines() == result.err.splitlines()
    work.write("lora.safetensors", b"\x02\0\0\0\0\0\0\0{}")
    work.recipe(base={"model": "lora.safetensors"})
    result = work.doit(code=2)
    assert "lora.safetensors: holds no tensors" in result.err
    assert result.out.count("converting the base") == 1
    assert work.sdbuild("check", code=2).err == result.err
    make_single(work.root / "base", work.root / "one.safetensors", "sd1")
    work.recipe(base={"model": "one.safetensors"})
    assert "is a Stable Diffusion 1 of a size of its own" in work.sdbuild("check", code=2).err
    copy_configurations(work.root / "base", work.root / "config")
    work.recipe(base={"model": "one.safetensors", "config": "config", "family": "sd2"})
    said = "recipes/cat.yaml:4: base.family: is sd2, but the base is Stable Diffusion 1 (sd1); mend or remove it\n"
    assert work.sdbuild("check", code=2).err == said
    make_pipeline(work.root / "flow", family="sd3")
    work.recipe(base={"model": "flow"}, images={"resolution": 40})
    said = work.sdbuild("check", code=2).err
    assert said.startswith(
        "recipes/cat.yaml:8: images.resolution: 40 is not divisible by 16, as the base needs; choose"
    )
    work.recipe(base={"model": "flow", "clip_skip": 9}, sample={"scheduler": "ddim"}, images={"buckets": {"step": 16}})
    result = work.doit(code=2)
    assert result.ran == {}
    assert re.sub(r"(?<=yaml):\d+", "", result.err).splitlines() == [
        "recipes/cat.yaml: base.clip_skip: is 9, but the base's text encoders have 2 layers to choose; lower it",
        "recipes/cat.yaml: sample.scheduler: ddim does not draw with flows; use euler or dpm++",
    ]
    assert work.sdbuild("check", code=2).err == result.err
    (work.root / "flow/transformer/diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    assert "is damaged (cut short" in work.sdbuild("check", code=2).err


def test_layers_that_the_base_does_not_have(work: Work) -> None:
    work.recipe(method={"targets": ["attn2.to_qq"]})
    result = work.doit(code=2)
    assert "method.targets: 'attn2.to_qq' matches no linear layer or convolution of this base (did you" in result.err
    assert not {"cat:latents", "cat:train"} & result.ran.keys()


def test_another_vae_encodes_pictures_anew_and_no_captions(built: Work) -> None:
    make_pipeline(built.root / "other", seed=5)
    built.recipe(base={"model": "base", "vae": "other/vae"})
    assert set(built.doit().ran) == {"cat:latents", "cat:train", "cat:samples"}
    built.recipe(base={"model": "base"})
    assert built.doit().ran == {}
    built.recipe(base={"model": "base", "clip_skip": 2})
    assert set(built.doit().ran) == {"cat:text", "cat:train", "cat:samples"}


@pytest.mark.parametrize("family", PIPELINES)
def test_half_formats_see_the_very_timestep(family: str, tmp_path: Path) -> None:
    """As sampling does: a network that is told 1000 for 998 learns another noise level."""
    base = families.load(make_pipeline(tmp_path / "base", family=family))
    denoiser, text = base.load_denoiser(torch.bfloat16), base.load_text()
    condition = {name: tensor[None].to(torch.bfloat16) for name, tensor in text.encode("a cat").items()}
    condition["geometry"] = torch.tensor([[64, 64, 0, 0, 64, 64]])
    seen: list[float] = []
    network: Any = denoiser.module
    for name, module in network.named_modules():
        if name.endswith("time_proj") and not name.startswith("add"):
            module.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0].tolist()))
    schedule = base.noise_schedule()
    first = 1 if family == "sd3" else 0
    with torch.no_grad():
        for timestep in (500, 501, 997):
            noisy = torch.zeros(1, network.config.in_channels, 8, 8, dtype=torch.bfloat16)
            denoiser.predict(noisy, torch.tensor([timestep]), condition)
    assert schedule.timesteps == 1000
    assert seen == [timestep + first for timestep in (500, 501, 997)]
