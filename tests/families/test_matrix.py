"""Every family through the same table: what it computes is what diffusers computes, and it trains, saves and draws."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from sdbuild import families
from sdbuild.families.contract import Family, NoiseSchedule
from sdbuild.training.objective import Objective
from tests.adapters import inject
from tests.tiny import PIPELINES, make_pipeline

CASES = [*PIPELINES, "sd3-without-t5"]
LORA = {"kind": "lora", "rank": 2, "alpha": 2.0, "targets": "default", "text_encoder": False, "dropout": 0.0}
SHAPES = {
    "sd1": {"hidden": (77, 32)},
    "sd2": {"hidden": (77, 32)},
    "sdxl": {"hidden": (77, 64), "pooled": (24,)},
    "sd3": {"hidden": (77, 64), "pooled": (56,), "t5": (256, 72)},
    "sd3-without-t5": {"hidden": (77, 64), "pooled": (56,)},
}
"""Of one caption's condition."""
ARCHITECTURES = {
    "sd1": ("stable-diffusion-v1", "sd_v1"),
    "sd2": ("stable-diffusion-v2-768-v", "sd_v2_v"),
    "sdxl": ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
    "sd3": ("stable-diffusion-3-medium", "sd3-medium"),
    "sd3-without-t5": ("stable-diffusion-3-medium", "sd3-medium"),
}
GEOMETRY = torch.tensor([[80, 64, 0, 8, 64, 64], [64, 64, 0, 0, 64, 64]])


@dataclass(frozen=True)
class Case:
    """A base and its family."""

    name: str
    folder: Path
    family: Family
    pipeline: Any
    """Diffusers' own."""

    @property
    def channels(self) -> int:
        return 16 if self.family.name == "sd3" else 4


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name = request.param
    folder = make_pipeline(
        tmp_path_factory.mktemp(name), family=name.partition("-")[0], t5=not name.endswith("without-t5")
    )
    absent: Any = {"text_encoder_3": None, "tokenizer_3": None} if name.endswith("without-t5") else {}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return Case(name, folder, families.load(folder), pipeline)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def condition(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Of two captions, as training sees it."""
    encoder = case.family.load_text()
    items = [encoder.encode(text) for text in ("a cat", "")]
    found = {name: torch.stack([item[name] for item in items]).to(dtype) for name in items[0]}
    return found | ({"geometry": GEOMETRY} if families.describe(case.folder).geometry else {})


def test_it_is_found_out(case: Case) -> None:
    assert families.detect(case.folder) == case.family.name == case.name.partition("-")[0]
    assert (case.family.modelspec_architecture, case.family.ss_base_model_version) == ARCHITECTURES[case.name]
    assert case.family.vae_factor == 8
    assert case.family.multiple == (16 if case.family.name == "sd3" else 8)


def test_latents_are_the_vaes_own_and_come_back(case: Case) -> None:
    pixels = noise(1, 3, 80, 64).clamp(-1, 1)
    encoder = case.family.load_vae()
    mean, logvar = encoder.encode(pixels)
    vae = case.pipeline.vae
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist
        decoded = vae.decode(mean[None]).sample
    assert mean.shape == (case.channels, 10, 8)
    assert torch.equal(mean, expected.mean[0])
    assert torch.equal(logvar, expected.logvar[0])
    scaled = case.family.scale(mean)
    torch.testing.assert_close(scaled, (mean - (vae.config.shift_factor or 0)) * vae.config.scaling_factor)
    torch.testing.assert_close(encoder.decode(scaled[None]), decoded)


@pytest.mark.parametrize("text", ["a cat", "", "long " * 100])
def test_texts_are_the_pipelines_own(case: Case, text: str) -> None:
    item = case.family.load_text().encode(text)
    assert {name: tuple(tensor.shape) for name, tensor in item.items()} == SHAPES[case.name]
    pipeline = case.pipeline
    with torch.no_grad():
        match case.family.name:
            case "sd1" | "sd2":
                expected = {"hidden": pipeline.encode_prompt(text, "cpu", 1, False)[0]}
            case "sdxl":
                found = pipeline.encode_prompt(text, device="cpu", do_classifier_free_guidance=False)
                expected = {"hidden": found[0], "pooled": found[2]}
            case _:
                found = pipeline.encode_prompt(text, text, text, device="cpu", do_classifier_free_guidance=False)
                expected = {"hidden": found[0][:, :77, :64], "pooled": found[2], "t5": found[0][:, 77:]}
    for name, tensor in item.items():
        assert torch.equal(tensor, expected[name][0]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_predictions_are_the_networks_own(case: Case, dtype: torch.dtype) -> None:
    denoiser = case.family.load_denoiser(dtype)
    noisy, timesteps = noise(2, case.channels, 8, 8).to(dtype), torch.tensor([3, 900])
    seen = condition(case, dtype)
    with torch.no_grad():
        prediction = denoiser.predict(noisy, timesteps, seen)
        network = copy.deepcopy(getattr(case.pipeline, denoiser.component)).to(dtype)
        expected = network(**arguments(case, noisy, timesteps, seen)).sample
    assert prediction.dtype == dtype
    bound = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(prediction, expected, atol=bound, rtol=bound)


def arguments(case: Case, noisy: Tensor, timesteps: Tensor, seen: Mapping[str, Tensor]) -> dict[str, Any]:
    """What diffusers' training scripts give the network."""
    if case.family.name == "sd3":
        hidden = torch.nn.functional.pad(seen["hidden"], (0, 72 - 64))
        behind = seen.get("t5", torch.zeros(2, 256, 72))
        hidden = torch.cat([hidden, behind.to(hidden.dtype)], dim=-2)
        sigmas = (timesteps + 1).float()  # as schedulers have them, in half formats too
        pooled = {"pooled_projections": seen["pooled"]}
        return {"hidden_states": noisy, "timestep": sigmas, "encoder_hidden_states": hidden, **pooled}
    found: dict[str, Any] = {"sample": noisy, "timestep": timesteps, "encoder_hidden_states": seen["hidden"]}
    if case.family.name == "sdxl":
        found["added_cond_kwargs"] = {"text_embeds": seen["pooled"], "time_ids": seen["geometry"].float()}
    return found


def test_the_objective_is_the_schedulers_own(case: Case) -> None:
    schedule = case.family.noise_schedule()
    objective = Objective.of(schedule, torch.device("cpu"))
    x, spread, prediction = (noise(3, case.channels, 8, 8, seed=seed) for seed in (1, 2, 3))
    timesteps = torch.tensor([0, 500, 999])
    if isinstance(schedule, NoiseSchedule):
        own = diffusers.DDPMScheduler.from_pretrained(case.folder / "scheduler", local_files_only=True)
        noisy = own.add_noise(x, spread, timesteps)
        velocity = own.config.prediction_type == "v_prediction"
        target = own.get_velocity(x, spread, timesteps) if velocity else spread
    else:
        own = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=schedule.timesteps)
        noisy = own.scale_noise(x, own.timesteps.flip(0)[timesteps], spread)
        target = spread - x
    torch.testing.assert_close(objective.noisy(x, spread, timesteps), noisy, atol=1e-6, rtol=0)
    losses = (prediction - target).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(objective.losses(prediction, x, spread, timesteps), losses, atol=1e-6, rtol=1e-6)


def test_a_flows_timesteps_are_shifted_as_its_scheduler_says(tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path, family="sd3", t5=False, scheduler={"shift": 2.5})
    schedule = families.load(folder).noise_schedule()
    assert not isinstance(schedule, NoiseSchedule)
    assert schedule.density == {"kind": "logit-normal", "mean": 0.0, "std": 1.0, "shift": 2.5}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_step_lowers_the_loss(case: Case, dtype: torch.dtype) -> None:
    denoiser = case.family.load_denoiser(dtype)
    adapter = inject({denoiser.component: denoiser.module}, LORA)
    objective = Objective.of(case.family.noise_schedule(), torch.device("cpu"))
    x, spread, timesteps = (
        noise(2, case.channels, 8, 8, seed=1),
        noise(2, case.channels, 8, 8, seed=2),
        torch.tensor([100, 600]),
    )
    seen = condition(case, dtype)
    parameters = [parameter for _, parameter in adapter.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    losses = []
    for _ in range(4):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            prediction = denoiser.predict(objective.noisy(x, spread, timesteps).to(dtype), timesteps, seen)
        loss = objective.losses(prediction, x, spread, timesteps).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert losses[-1] < losses[0]


def test_text_encoders_can_be_adapted(case: Case) -> None:
    text = case.family.load_text()
    adapter = inject(text.modules, LORA | {"text_encoder": True})
    names = [name for name, _ in adapter.parameters()]
    assert {name.partition(".")[0] for name in names} == set(text.modules)
    tokens = {name: ids[None] for name, ids in text.tokenize("a cat").items()}
    torch.stack([tensor.float().square().sum() for tensor in text.condition(tokens).values()]).sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for name, p in adapter.parameters() if "layers.0" in name)
    assert any(p.grad.abs().sum() > 0 for _, p in adapter.parameters() if p.grad is not None)


def test_diffusers_loads_what_is_exported(case: Case, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    denoiser, text = case.family.load_denoiser(), case.family.load_text()
    modules = {denoiser.component: denoiser.module, **text.modules}
    adapter = inject(modules, LORA)
    with torch.no_grad():
        for index, (_, parameter) in enumerate(adapter.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=index) * 0.1)
    seen, noisy, timesteps = condition(case), noise(2, case.channels, 8, 8), torch.tensor([3, 900])
    with torch.no_grad():
        ours = denoiser.predict(noisy, timesteps, seen)
    for name, tensors in adapter.export(case.family.key_map, "mine").items():
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name)
    names = ["pytorch_lora_weights.safetensors"]
    names += ["mine.safetensors"] if case.family.name != "sd3" else []  # diffusers does not read kohya's of sd3
    for name in names:
        pipeline = case.family.pipeline()
        pipeline.load_lora_weights(tmp_path, weight_name=name, local_files_only=True)
        network = getattr(pipeline, denoiser.component)
        with torch.no_grad():
            theirs = network(**arguments(case, noisy, timesteps, seen)).sample
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)
        adapted = {
            part.partition("encoder.layers")[0] for part, _ in pipeline.text_encoder.named_modules() if "lora_A" in part
        }
        assert adapted, "the text encoder has no adapter"


def test_names_in_kohyas_files_go_there_and_back(case: Case) -> None:
    denoiser, text = case.family.load_denoiser(), case.family.load_text()
    modules = {denoiser.component: denoiser.module, **text.modules}
    adapter = inject(modules, LORA | {"targets": "all-linear"})
    with torch.no_grad():
        for index, (_, parameter) in enumerate(adapter.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=index))
    exported = adapter.export(case.family.key_map, "mine")
    state = exported["pytorch_lora_weights.safetensors"]
    back, alphas = case.family.key_map.from_kohya(exported["mine.safetensors"])
    assert set(alphas.values()) == {2.0}
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(back[name], tensor)
    for component, module in {denoiser.component: case.family.load_denoiser().module, **text.modules}.items():
        for path, part in module.named_modules():
            if isinstance(part, torch.nn.Linear | torch.nn.Conv2d) and "lora" not in path and "base_layer" not in path:
                own = path if component == denoiser.component else f"text_model.{path.removeprefix('text_model.')}"
                assert case.family.key_map.path(case.family.key_map.kohya(component, path)) == (component, own)
