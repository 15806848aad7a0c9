"""Stable Diffusion 1 and bases of its layout: a UNet, one CLIP text encoder, a KL autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from sdbuild.errors import DataError, Problem
from sdbuild.families.contract import Family, NoiseSchedule, PredictionType
from sdbuild.families.keys import StableDiffusionKeys
from sdbuild.families.layout import Layout, check, read_config

EXPECTED = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": None,
    "scheduler": None,
}
KEYS = StableDiffusionKeys({"unet": "lora_unet", "text_encoder": "lora_te"})


def family(folder: Path, layout: Layout) -> Family:
    """Bind the family to a base, after a look at its files.

    Raises:
        DataError: the base is incomplete, damaged or not for text alone; lists all problems.
    """
    check(layout, EXPECTED)
    unet, vae = read_config(folder, "unet"), read_config(folder, "vae")
    channels = (unet.get("in_channels", 4), vae.get("latent_channels", 4))
    if channels[0] != channels[1]:
        message = f"takes {channels[0]} channels where the VAE gives {channels[1]}: it is for inpainting or editing"
        raise DataError([Problem(file=str(folder / "unet/config.json"), message=message)])
    text = read_config(folder, "text_encoder")
    widths = (unet.get("cross_attention_dim", 1280), text.get("hidden_size", 512))
    if widths[0] != widths[1]:
        message = f"expects text of width {widths[0]}, the text encoder gives {widths[1]}: they do not belong together"
        raise DataError([Problem(file=str(folder / "unet/config.json"), message=message)])
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    return StableDiffusion1(folder, vae, second=widths[1] == 1024)


class StableDiffusion1:
    """A base of this family; see `contract.Family`. Bases of Stable Diffusion 2 have the same parts."""

    name = "sd1"
    key_map = KEYS

    def __init__(self, folder: Path, vae: Mapping[str, Any], *, second: bool) -> None:
        """Use a base whose files were checked; `second` says that its text encoder is that of version 2."""
        self.folder = folder
        self.vae_factor = 2 ** (len(vae.get("block_out_channels", (64,))) - 1)
        self._shift = float(vae.get("shift_factor") or 0.0)
        self._factor = float(vae.get("scaling_factor", 0.18215))
        self.modelspec_architecture = "stable-diffusion-v2-768-v/lora" if second else "stable-diffusion-v1/lora"
        self.ss_base_model_version = "sd_v2" if second else "sd_v1"

    def load_vae(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> KLEncoder:
        """Load the encoder of pictures."""
        vae = self._load(AutoencoderKL, "vae", dtype, device)
        return KLEncoder(vae, self._shift, self._factor, vae.device, dtype)

    def load_text(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> CLIPEncoder:
        """Load tokenizer and text encoder."""
        return CLIPEncoder(self._tokenizer(), self._load(CLIPTextModel, "text_encoder", dtype, device))

    def load_denoiser(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> UNet:
        """Load the UNet, frozen."""
        return UNet(self._load(UNet2DConditionModel, "unet", dtype, device))

    def noise_schedule(self) -> NoiseSchedule:
        """Read the forward process from the base's scheduler."""
        config = read_config(self.folder, "scheduler")
        kind = config.get("prediction_type", "epsilon")
        if kind not in get_args(PredictionType):
            message = f"has prediction_type {kind!r}; sdbuild knows {', '.join(get_args(PredictionType))}"
            raise DataError([Problem(file=str(self.folder / "scheduler/scheduler_config.json"), message=message)])
        scheduler = DDPMScheduler.from_config(config)
        return NoiseSchedule(
            alphas_cumprod=scheduler.alphas_cumprod.double(), prediction_type=cast("PredictionType", kind)
        )

    def scale(self, latent: Tensor) -> Tensor:
        """Return what the UNet works on from an unscaled latent."""
        return (latent - self._shift) * self._factor

    def pipeline(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
        """Load the pipeline; no progress bar, no safety checker."""
        pipeline = StableDiffusionPipeline(
            vae=self._load(AutoencoderKL, "vae", dtype, device),
            text_encoder=self._load(CLIPTextModel, "text_encoder", dtype, device),
            tokenizer=self._tokenizer(),
            unet=self._load(UNet2DConditionModel, "unet", dtype, device),
            scheduler=DDIMScheduler.from_config(read_config(self.folder, "scheduler")),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _tokenizer(self) -> Any:
        return CLIPTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)

    def _load(self, cls: Any, component: str, dtype: torch.dtype, device: str) -> Any:
        # Diffusers wants the type when it loads; transformers renamed that argument, so its models are cast.
        typed = {"torch_dtype": dtype} if cls is not CLIPTextModel else {}
        module = cls.from_pretrained(self.folder / component, local_files_only=True, use_safetensors=True, **typed)
        if not typed:
            module = module.to(dtype)
        return module.to(device).eval().requires_grad_(False)


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
        """Return what the UNet works on from an unscaled latent."""
        return (latent - self.shift) * self.factor


class CLIPEncoder:
    """A CLIP text encoder with its tokenizer; see `contract.TextEncoder`."""

    def __init__(self, tokenizer: Any, module: Any) -> None:
        self.module: nn.Module = module
        self._tokenizer = tokenizer
        self.max_tokens: int = min(tokenizer.model_max_length, module.config.max_position_embeddings)

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a caption before any cut."""
        return len(self._tokenizer(text, truncation=False, verbose=False).input_ids)

    def tokenize(self, text: str) -> Tensor:
        """Return token ids, cut and padded."""
        ids: Tensor = self._tokenizer(
            text, padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        ).input_ids[0]
        return ids

    def condition(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return the last layer's normed states."""
        device = next(self.module.parameters()).device
        return {"hidden": self.module(tokens.to(device))[0]}

    @torch.no_grad()
    def encode(self, text: str) -> dict[str, Tensor]:
        """Return the condition of one caption."""
        return {name: tensor[0].float().cpu() for name, tensor in self.condition(self.tokenize(text)[None]).items()}


@dataclass(frozen=True)
class UNet:
    """A conditional UNet; see `contract.Denoiser`."""

    module: Any

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Return the prediction for noisy latents."""
        prediction: Tensor = self.module(noisy, timesteps, condition["hidden"], return_dict=False)[0]
        return prediction
