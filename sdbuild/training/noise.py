"""The noise that latents are mixed with: white by itself, coarser or stronger where a recipe asks for it.

Functions take the noise of one record [C, h, w].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sdbuild.training.randomness import uniform

Chance = Callable[[str], torch.Generator]
"""Generator of a record in a step, by purpose."""


def offset(noise: Tensor, channels: Tensor, strength: float) -> Tensor:
    """Add noise that is constant over each channel, ε + s δ with δ [C] (Guttenberg 2023, "Offset noise").

    The variance of a channel's mean grows by s², which lets brightness be learned.
    """
    return noise + strength * channels.view(-1, 1, 1)


def pyramid(noise: Tensor, layers: Sequence[Tensor], discount: float) -> Tensor:
    """Add noise of many sizes (Whitaker 2023, "Multi-resolution noise for diffusion model training").

    Layer i [C, h_i, w_i] is enlarged bilinearly and weighs discount^i; the sum is scaled to a variance of 1.
    """
    for number, layer in enumerate(layers):
        enlarged = interpolate(layer[None], size=noise.shape[1:], mode="bilinear", align_corners=False)[0]
        noise = noise + enlarged * discount**number
    return noise / noise.std()


def perturbed(noise: Tensor, extra: Tensor, strength: float) -> Tensor:
    """The noise that the denoiser is shown but need not predict, ε + γ ξ (Ning et al. 2023, eq. 9)."""
    return noise + strength * extra


@dataclass(frozen=True, kw_only=True, slots=True)
class Colour:
    """The recipe's `train.noise`: how noise departs from white, drawn under purposes of its own."""

    offset: float = 0.0
    pyramid: float = 0.0
    pyramid_levels: int = 1
    perturbation: float = 0.0

    def target(self, white: Tensor, chance: Chance) -> Tensor:
        """Return the noise that the denoiser has to find."""
        if self.offset:
            return offset(white, torch.randn(white.shape[0], generator=chance("offset")), self.offset)
        if self.pyramid:
            return pyramid(white, self._layers(white.shape, chance("pyramid")), self.pyramid)
        return white

    def shown(self, target: Tensor, chance: Chance) -> Tensor:
        """Return the noise in what the denoiser sees."""
        if not self.perturbation:
            return target
        return perturbed(target, torch.randn(target.shape, generator=chance("perturbation")), self.perturbation)

    def _layers(self, shape: torch.Size, chance: torch.Generator) -> list[Tensor]:
        """Draw the layers, from the full size to a single pixel; each step down is by 2 to 4."""
        layers: list[Tensor] = []
        for number in range(self.pyramid_levels):
            ratio = 2 + 2 * uniform(chance)
            height, width = (max(1, int(side / ratio**number)) for side in shape[1:])
            layers.append(torch.randn((shape[0], height, width), generator=chance))
            if 1 in (height, width):
                break
        return layers


WHITE = Colour()
