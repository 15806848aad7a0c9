"""Distributions of timesteps, against diffusers and the densities of the paper (Esser et al. 2024)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from sdbuild.families.contract import FlowSchedule, NoiseSchedule
from sdbuild.training.timesteps import chooser, cosmap, logit_normal, mode, shifted, timestep

NUMBERS = (np.arange(20_000) + 0.5) / 20_000
SCHEDULE = NoiseSchedule(
    alphas_cumprod=torch.linspace(0.99, 0.01, 1000, dtype=torch.float64), prediction_type="epsilon"
)
PLAIN: dict[str, Any] = {"kind": "uniform", "shift": 1.0, "low": 0.0, "high": 1.0}


def density(shares: list[float]) -> tuple[Any, Any]:
    """Share of the numbers in each of 20 parts, per width, and the parts' middles."""
    counts, edges = np.histogram(shares, bins=20, range=(0, 1))
    return counts / len(shares) * 20, (edges[1:] + edges[:-1]) / 2


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.8)])
def test_logit_normal(mean: float, std: float) -> None:
    found, middles = density([logit_normal(number, mean=mean, std=std) for number in NUMBERS])
    logits = np.log(middles / (1 - middles))
    expected = np.exp(-((logits - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi) * middles * (1 - middles))
    assert found[1:-1] == pytest.approx(expected[1:-1], abs=0.03)
    theirs = compute_density_for_timestep_sampling(
        "logit_normal", 50_000, logit_mean=mean, logit_std=std, generator=torch.Generator().manual_seed(0)
    )
    quantiles = [logit_normal(number, mean=mean, std=std) for number in (0.1, 0.5, 0.9)]
    assert np.quantile(theirs.numpy(), [0.1, 0.5, 0.9]) == pytest.approx(quantiles, abs=0.01)


@pytest.mark.parametrize("scale", [-0.5, 0.0, 1.29])
def test_mode_is_that_of_diffusers(scale: float) -> None:
    theirs = compute_density_for_timestep_sampling(
        "mode", 5, mode_scale=scale, generator=torch.Generator().manual_seed(3)
    )
    numbers = torch.rand(5, generator=torch.Generator().manual_seed(3))
    assert [mode(number, scale=scale) for number in numbers.tolist()] == pytest.approx(theirs.tolist(), abs=1e-6)


def test_cosmap_has_the_density_that_sd3_weighs_with() -> None:
    found, middles = density([cosmap(number) for number in NUMBERS])
    expected = compute_loss_weighting_for_sd3("cosmap", torch.tensor(middles))
    assert found == pytest.approx(expected.numpy(), abs=0.01)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_the_shift_is_that_of_diffusers(shift: float) -> None:
    plain = FlowMatchEulerDiscreteScheduler().sigmas
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift).sigmas
    assert [shifted(float(share), shift) for share in plain] == pytest.approx(theirs.tolist(), abs=1e-6)


def test_the_range_is_applied_last() -> None:
    settings: dict[str, Any] = {"kind": "logit-normal", "mean": 0.0, "std": 1.0, "shift": 3.0, "low": 0.2, "high": 0.6}
    chosen = [timestep(number, 1000, **settings) for number in (0.0, 0.5, 1 - 2**-53)]
    assert chosen == [200, int((0.2 + 0.4 * 0.75) * 1000), 599]
    assert [timestep(number, 1000, **PLAIN) for number in (0.0, 0.5, 1 - 2**-53)] == [0, 500, 999]


def test_the_base_decides_by_default() -> None:
    assert chooser({"kind": "base"}, SCHEDULE) is None
    choose = chooser(PLAIN, SCHEDULE)
    assert choose is not None
    assert choose(0.25) == 250
    flow = chooser({"kind": "base"}, FlowSchedule(timesteps=1000, density={"shift": 3.0}))
    assert flow is not None
    assert flow(0.5) == 750


@pytest.mark.parametrize("kind", ["uniform", "logit-normal", "mode", "cosmap"])
def test_every_number_is_a_timestep(kind: str) -> None:
    own: dict[str, Any] = {"logit-normal": {"mean": 0.0, "std": 10.0}, "mode": {"scale": 1.29}}.get(kind, {})
    chosen = [timestep(number, 7, **{**PLAIN, "kind": kind}, **own) for number in (0.0, 1e-17, 0.3, 0.999, 1 - 2**-53)]
    assert all(0 <= each < 7 for each in chosen)
