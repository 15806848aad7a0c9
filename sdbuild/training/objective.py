"""What the denoiser is taught: noisy latents, targets and losses.

Formulas take latents `x`, noise `ε` of the same shape [B, C, h, w] and `alpha_bar` [B, 1, 1, 1], the share of signal
in the variance at each record's timestep (ᾱ_t in DDPM).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sdbuild.families.contract import NoiseSchedule, PredictionType

Weighting = Callable[[Tensor, PredictionType], Tensor]
"""Weight of each record's loss, [B], from its signal-to-noise ratio [B] and what the denoiser predicts."""


def diffuse(x: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Forward process in one go, √ᾱ x + √(1-ᾱ) ε (Ho et al. 2020, eq. 4)."""
    return alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * noise


def epsilon(x: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise itself (Ho et al. 2020, eq. 14)."""
    return noise


def velocity(x: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """v = √ᾱ ε - √(1-ᾱ) x (Salimans and Ho 2022, section 4 and appendix D)."""
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x


def sample(x: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """The clean latent itself (Salimans and Ho 2022, section 4)."""
    return x


def snr(alpha_bar: Tensor) -> Tensor:
    """Signal-to-noise ratio ᾱ / (1-ᾱ) (Kingma et al. 2021, eq. 1 and 2)."""
    return alpha_bar / (1 - alpha_bar)


def uniform(ratio: Tensor, prediction_type: PredictionType) -> Tensor:
    """Every timestep alike: the simple loss (Ho et al. 2020, eq. 14)."""
    return torch.ones_like(ratio)


TARGETS: Mapping[PredictionType, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": epsilon,
    "v_prediction": velocity,
    "sample": sample,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """All that the loop knows of the loss; it never asks what the denoiser predicts."""

    alphas_cumprod: Tensor
    """Float32 [T], on the device that trains."""
    prediction_type: PredictionType
    weighting: Weighting = uniform

    @classmethod
    def of(cls, schedule: NoiseSchedule, device: torch.device) -> Objective:
        """Return the objective that continues a base's own training."""
        alphas = schedule.alphas_cumprod.to(device=device, dtype=torch.float32)
        return cls(alphas_cumprod=alphas, prediction_type=schedule.prediction_type)

    def alpha_bar(self, timesteps: Tensor) -> Tensor:
        """Return ᾱ [B, 1, 1, 1] of int64 timesteps [B]."""
        return self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)

    def noisy(self, x: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the denoiser is shown."""
        return diffuse(x, noise, self.alpha_bar(timesteps))

    def losses(self, prediction: Tensor, x: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return each record's loss, float32 [B]: weighted squared error, averaged over its latent."""
        alpha_bar = self.alpha_bar(timesteps)
        target = TARGETS[self.prediction_type](x, noise, alpha_bar)
        errors = (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))
        return errors * self.weighting(snr(alpha_bar.flatten()), self.prediction_type)
