"""What the denoiser is taught: noisy latents, targets and losses.

Formulas take latents `x`, noise `ε` of the same shape [B, C, h, w], and the shares `signal` and `spread`
[B, 1, 1, 1] in which they are mixed, z = signal x + spread ε: √ᾱ and √(1-ᾱ) of DDPM, 1-σ and σ of flow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdbuild.families.contract import FlowSchedule, PredictionType, Schedule
from sdbuild.training.losses import MEASURES, WIDTHS, Measure, record_means
from sdbuild.training.weighting import WEIGHTINGS, snr, weights_of


def mix(x: Tensor, noise: Tensor, signal: Tensor, spread: Tensor) -> Tensor:
    """Forward process in one go, √ᾱ x + √(1-ᾱ) ε (Ho et al. 2020, eq. 4); (1-σ) x + σ ε (Esser et al. 2024, eq. 13)."""
    return signal * x + spread * noise


def epsilon(x: Tensor, noise: Tensor, signal: Tensor, spread: Tensor) -> Tensor:
    """The noise itself (Ho et al. 2020, eq. 14)."""
    return noise


def velocity(x: Tensor, noise: Tensor, signal: Tensor, spread: Tensor) -> Tensor:
    """v = √ᾱ ε - √(1-ᾱ) x (Salimans and Ho 2022, section 4 and appendix D)."""
    return signal * noise - spread * x


def sample(x: Tensor, noise: Tensor, signal: Tensor, spread: Tensor) -> Tensor:
    """The clean latent itself (Salimans and Ho 2022, section 4)."""
    return x


def flow(x: Tensor, noise: Tensor, signal: Tensor, spread: Tensor) -> Tensor:
    """The straight way from the latent to the noise, ε - x (Liu et al. 2023, eq. 1)."""
    return noise - x


TARGETS: Mapping[PredictionType, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": epsilon,
    "v_prediction": velocity,
    "sample": sample,
    "flow": flow,
}


def zero_terminal(alphas_cumprod: Tensor) -> Tensor:
    """Rescale ᾱ [T] so that the last is zero and the first stays (Lin et al. 2023, algorithm 1).

    √ᾱ is shifted by its last value and stretched.
    """
    roots = alphas_cumprod.sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    return ((roots - last) * (first / (first - last))).square()


def flow_levels(timesteps: int) -> Tensor:
    """Noise levels σ [T] of flow, float64: evenly from 1/T to 1 (Esser et al. 2024, section 2)."""
    return torch.arange(1, timesteps + 1, dtype=torch.float64) / timesteps


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """All that the loop knows of the loss; it never asks what the denoiser predicts. Tables are float32 [T]."""

    signal: Tensor
    """Share of the latent in what the denoiser is shown, at each timestep."""
    spread: Tensor
    """Share of the noise."""
    prediction: PredictionType
    weights: Tensor
    """How much each timestep counts."""
    measure: Measure
    deltas: Tensor
    """Width of the measure at each timestep, if it has one."""

    @classmethod
    def of(
        cls,
        schedule: Schedule,
        device: torch.device,
        *,
        prediction: PredictionType | None = None,
        zero_terminal_snr: bool = False,
        weighting: Mapping[str, Any] | None = None,
        loss: Mapping[str, Any] | None = None,
    ) -> Objective:
        """Return the objective on a device.

        Args:
            schedule: of the base.
            device: the one that trains.
            prediction: what to predict, the base's own by default; flow has no other.
            zero_terminal_snr: whether the last timestep becomes noise alone.
            weighting: the recipe's `train.weighting`; all timesteps alike by default.
            loss: the recipe's `train.loss`; the squared error by default.
        """
        prediction = prediction or schedule.prediction_type
        if prediction == "flow":
            spread = flow_levels(schedule.timesteps)
            signal = 1 - spread
        else:
            assert not isinstance(schedule, FlowSchedule), prediction
            alphas = zero_terminal(schedule.alphas_cumprod) if zero_terminal_snr else schedule.alphas_cumprod
            alphas = alphas.float()
            signal, spread = alphas.sqrt(), (1 - alphas).sqrt()
        settings = dict(weighting or {"kind": "uniform"})
        weigh = WEIGHTINGS[settings.pop("kind")]
        weights = weights_of(weigh, snr(signal.double(), spread.double()), prediction, settings)
        loss = loss or {"kind": "l2"}
        tables = [signal, spread, weights, _deltas(loss, signal.double(), spread.double())]
        signal, spread, weights, deltas = (table.to(device=device, dtype=torch.float32) for table in tables)
        return cls(
            signal=signal,
            spread=spread,
            prediction=prediction,
            weights=weights,
            measure=MEASURES[loss["kind"]],
            deltas=deltas,
        )

    def noisy(self, x: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the denoiser is shown at int64 timesteps [B]."""
        return mix(x, noise, _at(self.signal, timesteps), _at(self.spread, timesteps))

    def losses(
        self, prediction: Tensor, x: Tensor, noise: Tensor, timesteps: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Return each record's loss, float32 [B]: measured, averaged over its latent or its mask, and weighted."""
        target = TARGETS[self.prediction](x, noise, _at(self.signal, timesteps), _at(self.spread, timesteps))
        errors = self.measure(prediction.float() - target.float(), _at(self.deltas, timesteps))
        return record_means(errors, mask) * self.weights[timesteps]


def _at(table: Tensor, timesteps: Tensor) -> Tensor:
    return table[timesteps].view(-1, 1, 1, 1)


def _deltas(loss: Mapping[str, Any], signal: Tensor, spread: Tensor) -> Tensor:
    if loss["kind"] == "l2":
        return torch.ones_like(signal)
    share = torch.arange(len(signal), dtype=torch.float64) / len(signal)
    return WIDTHS[loss["schedule"]](loss["delta"], share, spread / signal)
