"""The objective against diffusers' schedulers and the papers' formulas in numpy."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from sdbuild.families.contract import FlowSchedule, NoiseSchedule, PredictionType
from sdbuild.training.objective import Objective

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULER = DDPMScheduler(**BETAS)
ALPHAS = SCHEDULER.alphas_cumprod.numpy().astype(np.float64)
CHANCE = torch.Generator().manual_seed(0)
X, NOISE, GUESS = torch.randn(3, 3, 4, 4, 4, generator=CHANCE)
TIMESTEPS = torch.tensor([0, 500, 999])
CPU = torch.device("cpu")


def objective(kind: str = "epsilon", **settings: Any) -> Objective:
    schedule = NoiseSchedule(alphas_cumprod=SCHEDULER.alphas_cumprod.double(), prediction_type="epsilon")
    return Objective.of(schedule, CPU, prediction=cast("PredictionType", kind), **settings)


def means(values: Tensor) -> list[float]:
    return [float(np.mean(record)) for record in values.double().numpy()]


def test_noisy_is_add_noise() -> None:
    expected = SCHEDULER.add_noise(X, NOISE, TIMESTEPS)
    assert torch.allclose(objective().noisy(X, NOISE, TIMESTEPS), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("epsilon", NOISE),
        ("v_prediction", SCHEDULER.get_velocity(X, NOISE, TIMESTEPS)),
        ("sample", X),
        ("flow", NOISE - X),
    ],
)
def test_the_loss_is_the_squared_distance_to_the_target(kind: str, target: Tensor) -> None:
    assert objective(kind).losses(target, X, NOISE, TIMESTEPS).max() < 1e-10
    found = objective(kind).losses(GUESS, X, NOISE, TIMESTEPS)
    assert found.tolist() == pytest.approx(means((GUESS - target).square()), rel=1e-5)


def test_flow_mixes_as_diffusers_does() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    flow = Objective.of(FlowSchedule(timesteps=1000, density={}), CPU)
    assert flow.prediction == "flow"
    times = scheduler.timesteps.flip(0)[TIMESTEPS]  # falling, from 1000 to 1
    assert torch.allclose(flow.noisy(X, NOISE, TIMESTEPS), scheduler.scale_noise(X, times, NOISE), atol=1e-6)
    assert torch.equal(objective("flow").spread, flow.spread)


def test_the_last_timestep_becomes_noise_alone() -> None:
    scheduler = DDPMScheduler(**BETAS, rescale_betas_zero_snr=True)
    zero = objective("v_prediction", zero_terminal_snr=True)
    assert torch.allclose(zero.signal.square(), scheduler.alphas_cumprod, atol=2e-6)
    assert float(zero.signal[-1]) == 0
    assert float(zero.spread[-1]) == 1
    assert zero.signal[0] == pytest.approx(ALPHAS[0] ** 0.5)
    assert torch.equal(zero.noisy(X, NOISE, TIMESTEPS)[2], NOISE[2])
    expected = means((GUESS + X).square())[2]  # v = -x where there is no signal
    assert float(zero.losses(GUESS, X, NOISE, TIMESTEPS)[2]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("epsilon", lambda snr: np.minimum(snr, 5) / snr),
        ("v_prediction", lambda snr: np.minimum(snr, 5) / (snr + 1)),
        ("sample", lambda snr: np.minimum(snr, 5)),
    ],
)
def test_min_snr(kind: str, weight: Any) -> None:
    """Hang et al. 2023: w = min(SNR, γ) for x, over SNR for ε, over SNR + 1 for v."""
    expected = weight(ALPHAS / (1 - ALPHAS))
    found = objective(kind, weighting={"kind": "min-snr", "gamma": 5.0})
    assert found.weights.numpy() == pytest.approx(expected, rel=1e-4)
    plain = objective(kind).losses(GUESS, X, NOISE, TIMESTEPS)
    weighed = (plain.double().numpy() * expected[TIMESTEPS.numpy()]).tolist()
    assert found.losses(GUESS, X, NOISE, TIMESTEPS).tolist() == pytest.approx(weighed, rel=1e-4)


def test_debiased_estimation() -> None:
    """Yu et al. 2024: 1 / √SNR for ε."""
    expected = np.sqrt((1 - ALPHAS) / ALPHAS)
    assert objective(weighting={"kind": "debiased"}).weights.numpy() == pytest.approx(expected, rel=1e-4)


def test_debiased_estimation_for_v_is_kohyas() -> None:
    """1 / (SNR + 1), which is 1 - ᾱ: the paper has no v."""
    found = objective("v_prediction", weighting={"kind": "debiased"})
    assert found.weights.numpy() == pytest.approx(1 - ALPHAS, rel=1e-4)


WEIGHED: list[dict[str, Any]] = [{"kind": "uniform"}, {"kind": "min-snr", "gamma": 5.0}, {"kind": "debiased"}]


@pytest.mark.parametrize("weighting", WEIGHED, ids=lambda w: w["kind"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_timestep_where_drawing_begins_is_trained(kind: str, weighting: dict[str, Any]) -> None:
    """Zero terminal SNR, by the recipe or by the base's scheduler: weights are finite, and none is zero."""
    rescaled = DDPMScheduler(**BETAS, rescale_betas_zero_snr=True).alphas_cumprod.double()
    base = NoiseSchedule(alphas_cumprod=rescaled, prediction_type=cast("PredictionType", kind))
    of_the_base = Objective.of(base, CPU, weighting=weighting)
    for found in (of_the_base, objective(kind, weighting=weighting, zero_terminal_snr=True)):
        assert float(found.signal[-1]) == 0
        assert float(found.weights[-1]) == 1
        assert bool(torch.isfinite(found.weights).all())
        assert bool((found.weights > 0).all())


def test_min_snr_is_the_same_training_whatever_is_predicted() -> None:
    """A guess of ε, turned into the x and v that it implies, has the same weighted loss."""
    signal, spread = (table[TIMESTEPS].view(-1, 1, 1, 1) for table in (objective().signal, objective().spread))
    noisy = objective().noisy(X, NOISE, TIMESTEPS)
    x = (noisy - spread * GUESS) / signal
    guesses = {"epsilon": GUESS, "sample": x, "v_prediction": signal * GUESS - spread * x}
    losses = [
        objective(kind, weighting=WEIGHED[1]).losses(guess, X, NOISE, TIMESTEPS) for kind, guess in guesses.items()
    ]
    assert torch.allclose(losses[0], losses[1], rtol=2e-3)
    assert torch.allclose(losses[0], losses[2], rtol=2e-3)


@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
@pytest.mark.parametrize("kind", ["huber", "smooth-l1"])
def test_robust_losses(kind: str, schedule: str) -> None:
    """Khrapov et al. 2024, as in diffusers' example of the scheduled Huber loss."""
    found = objective(loss={"kind": kind, "delta": 0.1, "schedule": schedule}).losses(GUESS, X, NOISE, TIMESTEPS)
    for record, timestep in enumerate(TIMESTEPS.tolist()):
        sigma = ((1 - ALPHAS[timestep]) / ALPHAS[timestep]) ** 0.5
        delta = {
            "constant": 0.1,
            "exponential": np.exp(np.log(0.1) * timestep / 1000),
            "snr": (1 - 0.1) / (1 + sigma) ** 2 + 0.1,
        }[schedule]
        error = (GUESS - NOISE)[record].double().numpy()
        expected = 2 * (np.sqrt(error**2 + delta**2) - delta) * (delta if kind == "huber" else 1)
        assert float(found[record]) == pytest.approx(expected.mean(), rel=1e-5)


def test_a_mask_weighs_places_and_its_size_does_not_count() -> None:
    mask = torch.zeros(3, 1, 4, 4)
    mask[0, 0, 1, 2], mask[1, 0, :2] = 1, 0.5
    found = objective().losses(GUESS, X, NOISE, TIMESTEPS, mask).tolist()
    errors = (GUESS - NOISE).square().double().numpy()
    assert found == pytest.approx([errors[0, :, 1, 2].mean(), errors[1, :, :2].mean(), 0], rel=1e-5)
    everything = objective().losses(GUESS, X, NOISE, TIMESTEPS, torch.ones(3, 1, 4, 4))
    assert torch.allclose(everything, objective().losses(GUESS, X, NOISE, TIMESTEPS))
