"""Stable Diffusion 1 and bases of its layout: a UNet, one CLIP text encoder, a KL autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbuild.errors import DataError, Problem
from sdbuild.families.description import Description, Original
from sdbuild.families.diffusion import DiffusionFamily
from sdbuild.families.keys import KohyaKeys
from sdbuild.families.layout import Layout, check, read_config
from sdbuild.families.original import CLIP, UNET, VAE

if TYPE_CHECKING:
    import torch

    from sdbuild.families.contract import TextEncoder

CLASSES: Mapping[str, str | None] = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": None,
    "scheduler": None,
}
DESCRIPTION = Description(
    name="sd1",
    title="Stable Diffusion 1",
    pipeline="StableDiffusionPipeline",
    classes=CLASSES,
    parts={
        "index": ("model_index.json",),
        "vae": ("vae",),
        "text": ("text_encoder", "tokenizer"),
        "denoiser": ("unet",),
        "schedule": ("scheduler",),
    },
    recognises=lambda config: not config("unet").get("use_linear_projection", False),
    original=Original(
        marks=(
            "model.diffusion_model.input_blocks.0.0.weight",
            "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
            "first_stage_model.encoder.conv_in.weight",
        ),
        components={
            "unet": (UNET, "model.diffusion_model."),
            "vae": (VAE, "first_stage_model."),
            "text_encoder": (CLIP, "cond_stage_model.transformer."),
        },
    ),
)
KEYS = KohyaKeys({"unet": "lora_unet", "text_encoder": "lora_te"})


def family(folder: Path, layout: Layout, *, clip_skip: int) -> StableDiffusion1:
    """Bind the family to a base, after a look at its files.

    Raises:
        DataError: the base is incomplete, damaged or not for text alone; lists all problems.
    """
    check(layout, CLASSES)
    return StableDiffusion1(folder, clip_skip=clip_skip)


class StableDiffusion1(DiffusionFamily):
    """A base of this family; see `contract.Family`."""

    name = "sd1"
    key_map = KEYS
    pipeline_class = DESCRIPTION.pipeline
    text_classes: Mapping[str, str] = {"text_encoder": "CLIPTextModel"}
    modelspec_architecture = "stable-diffusion-v1"
    ss_base_model_version = "sd_v1"

    def __init__(self, folder: Path, *, clip_skip: int) -> None:
        """Use a base whose files were checked."""
        super().__init__(folder, clip_skip=clip_skip)
        unet, text = read_config(folder, "unet"), read_config(folder, "text_encoder")
        widths = (unet.get("cross_attention_dim", 1280), text.get("hidden_size", 512))
        if widths[0] != widths[1]:
            message = (
                f"expects text of width {widths[0]}, the text encoder gives {widths[1]}: they do not belong together"
            )
            raise DataError([Problem(file=str(folder / "unet/config.json"), message=message)])

    def text_of(self, pipeline: Any) -> TextEncoder:
        """The text encoder of a pipeline, adapters included."""
        from sdbuild.families.text import ClipText

        return ClipText(self.clip("text_encoder", partial(getattr, pipeline)))

    def pipeline_parts(self, dtype: torch.dtype | None, device: str) -> dict[str, Any]:
        """Components of the pipeline besides UNet, VAE and scheduler; no safety checker."""
        unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return self.clips(dtype, device) | unused
