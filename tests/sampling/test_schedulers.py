"""Samplers that go with what an adapter has learned to predict."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from sdbuild.errors import DataError
from sdbuild.sampling.schedulers import SCHEDULERS, make_scheduler
from sdbuild.training.objective import TARGETS, flow_levels, zero_terminal

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers

BASE = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
KINDS = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample", "flow": "flow"}
WAYS = [
    (name, prediction, zero)
    for (name, scheduler), prediction, zero in product(SCHEDULERS.items(), KINDS, (False, True))
    if prediction in scheduler.predictions and not (zero and prediction in ("epsilon", "flow"))
]


@pytest.mark.parametrize(("name", "prediction", "zero"), WAYS)
def test_a_denoiser_that_knows_the_picture_draws_it(name: str, prediction: str, zero: bool) -> None:
    """By the training's own formulas of what is shown and predicted, whatever the base predicted before."""
    picture = torch.tensor([[0.5, -1.0, 2.0]])
    scheduler = make_scheduler(name, BASE.config, prediction=prediction, zero_terminal_snr=zero)
    scheduler.set_timesteps(12)
    signal, spread = levels(prediction, zero)
    if zero:
        assert int(scheduler.timesteps[0]) == 999, "drawing does not begin where there is noise alone"
    chance = torch.Generator().manual_seed(1)
    x = torch.randn(picture.shape, generator=chance) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        shown = scheduler.scale_model_input(x, timestep)
        at = max(0, min(999, round(float(timestep)) - (prediction == "flow")))
        noise = (shown - signal[at] * picture) / spread[at]
        said = TARGETS[KINDS[prediction]](picture, noise, signal[at], spread[at])  # type: ignore[index]
        extra = {"generator": chance} if name != "ddim" else {}
        x = scheduler.step(said, timestep, x, **extra).prev_sample
    assert torch.allclose(x, picture, atol=0.08), x


@pytest.mark.parametrize("name", SCHEDULERS)
def test_as_many_steps_as_there_are_timesteps(name: str) -> None:
    """Each timestep once, also where a base counts them from below and with an offset, as Stable Diffusion does."""
    config = {**BASE.config, "timestep_spacing": "leading", "steps_offset": 1, "_use_default_values": []}
    scheduler = make_scheduler(name, config, steps=1000)
    scheduler.set_timesteps(1000)
    assert [round(float(timestep)) for timestep in scheduler.timesteps] == list(range(999, -1, -1))
    few = make_scheduler(name, config, steps=20)
    assert few.config.timestep_spacing == "leading"


def levels(prediction: str, zero: bool) -> tuple[Tensor, Tensor]:
    if prediction == "flow":
        return 1 - flow_levels(1000), flow_levels(1000)
    alphas = BASE.alphas_cumprod.double()
    alphas = zero_terminal(alphas) if zero else alphas
    return alphas.sqrt(), (1 - alphas).sqrt()


@pytest.mark.parametrize(
    ("name", "prediction", "known"),
    [("euler-a", "x0", r"ddim or ddpm or euler or dpm\+\+"), ("euler", "flow", r"dpm\+\+")],
)
def test_samplers_that_cannot_draw_it_are_named(name: str, prediction: str, known: str) -> None:
    with pytest.raises(DataError, match=f"sample.scheduler: {name} does not draw where {prediction} .* use {known}$"):
        make_scheduler(name, BASE.config, prediction=prediction)
