"""The SD1 family against diffusers' and transformers' own calls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from sdbuild.families import load
from sdbuild.families.contract import NoiseSchedule
from tests.tiny import make_pipeline


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_latents_are_the_vaes_own(base: Path) -> None:
    pixels = noise(1, 3, 72, 56).clamp(-1, 1)
    encoder = load(base).load_vae()
    mean, logvar = encoder.encode(pixels)
    vae = AutoencoderKL.from_pretrained(base / "vae", local_files_only=True)
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist
        decoded = vae.decode(mean[None]).sample
    assert mean.shape == (4, 9, 7)
    assert mean.dtype == logvar.dtype == torch.float32
    assert torch.equal(mean, expected.mean[0])
    assert torch.equal(logvar, expected.logvar[0])
    scaled = encoder.scale(mean)
    assert torch.equal(scaled, load(base).scale(mean))
    torch.testing.assert_close(scaled, mean * vae.config.scaling_factor)
    torch.testing.assert_close(encoder.decode(scaled[None]), decoded)


def test_predictions_are_the_unets_own(base: Path) -> None:
    noisy, hidden, timesteps = noise(2, 4, 8, 8), noise(2, 77, 32, seed=1), torch.tensor([3, 900])
    prediction = load(base).load_denoiser().predict(noisy, timesteps, {"hidden": hidden})
    unet = UNet2DConditionModel.from_pretrained(base / "unet", local_files_only=True)
    with torch.no_grad():
        assert torch.equal(prediction, unet(noisy, timesteps, hidden).sample)


@pytest.mark.parametrize("text", ["", "a cat", "Ein Kätzchen 猫 🐱", "long " * 100])
def test_conditions_are_the_text_encoders_own(base: Path, text: str) -> None:
    encoder = load(base).load_text()
    hidden = encoder.encode(text)["hidden"]
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer", local_files_only=True)
    ids = tokenizer(text, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    model = CLIPTextModel.from_pretrained(base / "text_encoder", local_files_only=True)
    with torch.no_grad():
        assert torch.equal(hidden, model(ids).last_hidden_state[0])
    assert hidden.shape == (77, 32)
    assert torch.equal(encoder.tokenize(text)["text_encoder"], ids[0])


def test_tokens_are_counted_before_the_cut(base: Path) -> None:
    encoder = load(base).load_text()
    assert encoder.max_tokens == 77
    assert encoder.count_tokens("") == 2
    assert encoder.count_tokens("x " * 100) == 102


def test_gradients_flow_through_conditions(base: Path) -> None:
    encoder = load(base).load_text()
    module = encoder.modules["text_encoder"]
    assert not any(parameter.requires_grad for parameter in module.parameters())
    module.requires_grad_(True)
    tokens = {name: ids[None] for name, ids in encoder.tokenize("a cat").items()}
    total = encoder.condition(tokens)["hidden"].sum()
    gradients = torch.autograd.grad(total, list(module.parameters()), allow_unused=True)
    assert any(gradient is not None for gradient in gradients)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_noise_schedule_is_the_bases(tmp_path: Path, kind: str) -> None:
    family = load(make_pipeline(tmp_path / "tiny", prediction_type=kind))
    schedule = family.noise_schedule()
    own = DDIMScheduler.from_pretrained(tmp_path / "tiny/scheduler", local_files_only=True)
    assert isinstance(schedule, NoiseSchedule)
    assert schedule.prediction_type == kind
    assert schedule.timesteps == 1000
    assert schedule.alphas_cumprod.dtype == torch.float64
    assert torch.equal(schedule.alphas_cumprod.float(), own.alphas_cumprod)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_loads_in_a_type_frozen(base: Path, dtype: torch.dtype) -> None:
    family = load(base)
    text = family.load_text(dtype).modules["text_encoder"]
    for module in (family.load_vae(dtype).module, text, family.load_denoiser(dtype).module):
        assert {parameter.dtype for parameter in module.parameters()} == {dtype}
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert not module.training
    mean, _ = family.load_vae(dtype).encode(noise(1, 3, 64, 64))
    assert mean.dtype == torch.float32
    assert family.load_text(dtype).encode("a cat")["hidden"].dtype == torch.float32


def test_nothing_is_printed(base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline = load(base).pipeline()
    pipeline("a cat", num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_tiny_bases_are_reproducible(base: Path, tmp_path: Path) -> None:
    again = make_pipeline(tmp_path / "again")
    files = [path.relative_to(base) for path in base.rglob("*") if path.is_file()]
    assert all((base / file).read_bytes() == (again / file).read_bytes() for file in files)
    other = make_pipeline(tmp_path / "other", seed=1)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (base / weights).read_bytes() != (other / weights).read_bytes()
