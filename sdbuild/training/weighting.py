"""How much each timestep counts, from its signal-to-noise ratio: pure functions of one signature.

A weight is defined for the loss on the clean latent, ω ‖x - x̂‖². Since ‖x - x̂‖² = ‖ε - ε̂‖² / SNR
= ‖v - v̂‖² / (SNR + 1) (Salimans and Ho 2022, section 4), the same training with another prediction has the weight
ω / SNR or ω / (SNR + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from sdbuild.families.contract import PredictionType

Weighting = Callable[..., Tensor]
"""Weights [T] from the timesteps' ratios [T] and what the denoiser predicts; settings are keywords."""

_PER_PREDICTION: Mapping[PredictionType, Callable[[Tensor], Tensor]] = {
    "epsilon": lambda ratio: ratio,
    "v_prediction": lambda ratio: ratio + 1,
    "sample": torch.ones_like,
}
"""Of the predictions that a noise schedule allows; flow knows no weights but the uniform."""


def snr(signal: Tensor, spread: Tensor) -> Tensor:
    """Signal-to-noise ratio of z = signal x + spread ε, signal² / spread² (Kingma et al. 2021, eq. 2)."""
    return signal.square() / spread.square()


def uniform(ratio: Tensor, prediction: PredictionType) -> Tensor:
    """Every timestep alike, whatever is predicted: the simple loss (Ho et al. 2020, eq. 14)."""
    return torch.ones_like(ratio)


def min_snr(ratio: Tensor, prediction: PredictionType, *, gamma: float) -> Tensor:
    """Min-SNR-γ, ω = min(SNR, γ) (Hang et al. 2023, section 3.4).

    For ε that is min(SNR, γ) / SNR, for v min(SNR, γ) / (SNR + 1).
    """
    return ratio.clamp(max=gamma) / _PER_PREDICTION[prediction](ratio)


def debiased(ratio: Tensor, prediction: PredictionType) -> Tensor:
    """Debiased estimation, ω = √SNR (Yu et al. 2024, "Unmasking Bias in Diffusion Model Training").

    For ε, as in the paper, that is 1 / √SNR. For v, of which the paper says nothing, it is kohya's 1 / (SNR + 1)
    (sd-scripts, `apply_debiased_estimation`): most where there is most noise, as for ε.
    """
    if prediction == "v_prediction":
        return 1 / (ratio + 1)
    return ratio.sqrt() / _PER_PREDICTION[prediction](ratio)


NO_SIGNAL = 1e-6
"""Ratio up to which a timestep is noise alone; diffusers' samplers put 6e-8 in place of zero."""


def weights_of(
    weigh: Weighting, ratio: Tensor, prediction: PredictionType, settings: Mapping[str, float] = MappingProxyType({})
) -> Tensor:
    """Return the weights [T], finite and nowhere zero.

    A timestep without signal, where drawing begins under zero terminal SNR (Lin et al. 2023), counts as in uniform
    training: formulas in the ratio give zero there, which would leave it untrained, or 0 / 0. The trainers that know
    the case have 1 there too (SimpleTuner: `mse_loss_weights[snr == 0] = 1.0`).
    """
    return torch.where(ratio > NO_SIGNAL, weigh(ratio, prediction, **settings), 1.0)


WEIGHTINGS: Mapping[str, Weighting] = {"uniform": uniform, "min-snr": min_snr, "debiased": debiased}
"""By the recipe's `train.weighting.kind`."""
