"""Networks of bases as the contract wants them: autoencoders and UNets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
import transformers
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from sdbuild.families.contract import Component


def load_network(name: str, folder: Path, dtype: torch.dtype | None, device: str) -> Any:
    """Load a network by the name of its class, frozen, in evaluation mode, from safetensors alone.

    On the device `meta` it has shapes and no weights, and only its configuration is read.
    """
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    dtype = dtype or torch.float32
    # Diffusers wants the type when it loads; transformers renamed that argument, so its models are cast.
    ours = hasattr(diffusers, name)
    cls = getattr(diffusers if ours else transformers, name)
    if device == "meta":
        with torch.device("meta"):
            module = cls.from_config(cls.load_config(folder)) if ours else cls(cls.config_class.from_pretrained(folder))
        # Not by diffusers' own `to`, which warns of types that it would keep if there were weights.
        return nn.Module.to(module, dtype).eval().requires_grad_(False)
    module = cls.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, **({"torch_dtype": dtype} if ours else {})
    )
    module = module.to(device) if ours else module.to(device, dtype)
    return module.eval().requires_grad_(False)


@dataclass(frozen=True)
class KLEncoder:
    """A KL autoencoder; see `contract.LatentEncoder`."""

    module: Any
    shift: float
    factor: float
    device: torch.device
    dtype: torch.dtype

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of one picture's latent."""
        posterior = self.module.encode(pixels.to(self.device, self.dtype)).latent_dist
        return posterior.mean[0].float().cpu(), posterior.logvar[0].float().cpu()

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Return pictures from scaled latents."""
        unscaled = latent.to(self.device, self.dtype) / self.factor + self.shift
        pictures: Tensor = self.module.decode(unscaled).sample
        return pictures.float().cpu()

    def scale(self, latent: Tensor) -> Tensor:
        """Return what the denoiser works on from an unscaled latent."""
        return (latent - self.shift) * self.factor


@dataclass(frozen=True)
class UNet:
    """A conditional UNet; see `contract.Denoiser`."""

    module: Any
    component: ClassVar[Component] = "unet"

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Return the prediction for noisy latents."""
        prediction: Tensor = self.module(noisy, timesteps, condition["hidden"], return_dict=False)[0]
        return prediction
