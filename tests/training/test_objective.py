"""Formulas against diffusers' schedulers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from sdbuild.families.contract import NoiseSchedule, PredictionType
from sdbuild.training.objective import Objective, snr

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
CHANCE = torch.Generator().manual_seed(0)
X, NOISE = torch.randn(2, 3, 4, 4, 4, generator=CHANCE)
TIMESTEPS = torch.tensor([0, 500, 999])


def objective(kind: PredictionType = "epsilon") -> Objective:
    schedule = NoiseSchedule(alphas_cumprod=SCHEDULER.alphas_cumprod.double(), prediction_type=kind)
    return Objective.of(schedule, torch.device("cpu"))


def test_noisy_is_add_noise() -> None:
    expected = SCHEDULER.add_noise(X, NOISE, TIMESTEPS)
    assert torch.allclose(objective().noisy(X, NOISE, TIMESTEPS), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "target"),
    [("epsilon", NOISE), ("v_prediction", SCHEDULER.get_velocity(X, NOISE, TIMESTEPS)), ("sample", X)],
)
def test_the_loss_is_the_squared_distance_to_the_target(kind: PredictionType, target: torch.Tensor) -> None:
    assert objective(kind).losses(target, X, NOISE, TIMESTEPS).max() < 1e-10
    expected = (X - target).square().mean(dim=(1, 2, 3))
    assert torch.allclose(objective(kind).losses(X, X, NOISE, TIMESTEPS), expected, atol=1e-5)


def test_signal_to_noise_ratio() -> None:
    assert snr(torch.tensor([0.5, 0.8])).tolist() == pytest.approx([1, 4])


def test_weights_see_each_records_ratio() -> None:
    plain = objective()
    weighted = Objective(
        alphas_cumprod=plain.alphas_cumprod,
        prediction_type="epsilon",
        weighting=lambda ratio, kind: ratio.clamp(max=5) / ratio,
    )
    ratio = snr(SCHEDULER.alphas_cumprod[TIMESTEPS])
    expected = plain.losses(X, X, NOISE, TIMESTEPS) * (5 / ratio).clamp(max=1)
    assert torch.allclose(weighted.losses(X, X, NOISE, TIMESTEPS), expected, rtol=1e-4)
