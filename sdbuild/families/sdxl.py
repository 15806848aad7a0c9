"""Stable Diffusion XL: two text encoders, one of them pooled too; size and crop are conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sdbuild.errors import DataError, Problem
from sdbuild.families.description import Description, Original
from sdbuild.families.diffusion import DiffusionFamily
from sdbuild.families.layout import Layout, check, part_problems, read_config
from sdbuild.families.original import CLIP, OPENCLIP, UNET, VAE
from sdbuild.families.sgm import SDXLKeys

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sdbuild.families.contract import Component, Denoiser, TextEncoder
    from sdbuild.families.networks import KLEncoder

DESCRIPTION = Description(
    name="sdxl",
    title="Stable Diffusion XL",
    pipeline="StableDiffusionXLPipeline",
    classes={
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "tokenizer": None,
        "tokenizer_2": None,
        "scheduler": None,
    },
    parts={
        "index": ("model_index.json",),
        "vae": ("vae",),
        "text": ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        "denoiser": ("unet",),
        "schedule": ("scheduler",),
    },
    geometry=True,
    refinable=True,
    original=Original(
        marks=(
            "model.diffusion_model.label_emb.0.0.weight",
            "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
            "conditioner.embedders.1.model.token_embedding.weight",
            "first_stage_model.encoder.conv_in.weight",
        ),
        components={
            "unet": (UNET, "model.diffusion_model."),
            "vae": (VAE, "first_stage_model."),
            "text_encoder": (CLIP, "conditioner.embedders.0.transformer."),
            "text_encoder_2": (OPENCLIP, "conditioner.embedders.1.model."),
        },
    ),
)

REFINER = "refiner/unet"
"""Where a base has the network that finishes pictures, if a recipe names one."""


def family(folder: Path, layout: Layout, *, clip_skip: int) -> StableDiffusionXL:
    """Bind the family to a base, after a look at its files.

    Raises:
        DataError: the base is incomplete, damaged, a refiner or not for text alone; lists all problems.
    """
    check(layout, DESCRIPTION.classes)
    if (folder / REFINER).is_dir():
        _check_refiner(folder, weights=layout.weights)
    return StableDiffusionXL(folder, clip_skip=clip_skip)


def _check_refiner(folder: Path, *, weights: bool) -> None:
    """Make sure that a refiner is whole, and reads the base's second text encoder and five numbers of a picture."""
    if damaged := list(part_problems(folder, REFINER, weights=weights)):
        raise DataError(damaged)
    unet, text = read_config(folder, REFINER), read_config(folder, "text_encoder_2")
    takes = unet.get("cross_attention_dim"), unet.get("projection_class_embeddings_input_dim")
    numbers = 5 * int(unet.get("addition_time_embed_dim") or 0)
    if takes != (text.get("hidden_size", 512), text.get("projection_dim", 512) + numbers):
        message = "is not Stable Diffusion XL's refiner, or not one of this base; name another, or remove it"
        raise DataError([Problem(field="base.refiner", message=message)])


class StableDiffusionXL(DiffusionFamily):
    """A base of this family; see `contract.Family`."""

    name = "sdxl"
    pipeline_class = DESCRIPTION.pipeline
    usual_layer = 1
    text_classes: Mapping[str, str] = {
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
    }
    zeros_by_default = True
    modelspec_architecture = "stable-diffusion-xl-v1-base"
    ss_base_model_version = "sdxl_base_v1-0"

    def __init__(self, folder: Path, *, clip_skip: int) -> None:
        """Use a base whose files were checked."""
        super().__init__(folder, clip_skip=clip_skip)
        unet = read_config(folder, "unet")
        texts = [read_config(folder, name) for name in ("text_encoder", "text_encoder_2")]
        takes, gives = unet.get("cross_attention_dim", 1280), sum(text.get("hidden_size", 512) for text in texts)
        if takes != gives:
            message = f"expects text of width {takes}, the text encoders give {gives}: they do not belong together"
            raise DataError([Problem(file=str(folder / "unet/config.json"), message=message)])
        layers = unet.get("layers_per_block", 2)
        self.key_map = SDXLKeys(layers if isinstance(layers, int) else layers[0])

    def load_vae(self, dtype: torch.dtype | None = None, device: str = "cpu") -> KLEncoder:
        """Load the encoder of pictures, in float32 unless it is one whose numbers stay small in other types."""
        fixed = not read_config(self.folder, "vae").get("force_upcast", True)
        return super().load_vae(dtype if fixed else None, device)

    def text_of(self, pipeline: Any) -> TextEncoder:
        """The text encoders of a pipeline, adapters included; a refiner's has the second alone."""
        from sdbuild.families.text import ClipText

        get = partial(getattr, pipeline)
        return ClipText(*(self.clip(name, get) for name in self.text_classes if get(name) is not None))

    def load_denoiser(self, dtype: torch.dtype | None = None, device: str = "cpu") -> Denoiser:
        """Load the UNet, frozen."""
        return UNetXL(self.network("UNet2DConditionModel", "unet", dtype, device))

    def pipeline_parts(self, dtype: torch.dtype | None, device: str) -> dict[str, Any]:
        """Components of the pipeline besides UNet, VAE and scheduler; no watermark."""
        return self.clips(dtype, device) | {
            "force_zeros_for_empty_prompt": self.zeros_for_empty,
            "add_watermarker": False,
        }

    def refiner(self, pipeline: Any) -> Any:
        """The pipeline that finishes pictures, with the base's VAE and second text encoder; None without one."""
        if not (self.folder / REFINER).is_dir():
            return None
        from diffusers import StableDiffusionXLImg2ImgPipeline

        refiner = StableDiffusionXLImg2ImgPipeline(
            vae=pipeline.vae,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=pipeline.text_encoder_2,
            tokenizer_2=pipeline.tokenizer_2,
            # Where networks wait in the main memory until they compute, the pipeline itself seems to be there.
            unet=self.network("UNet2DConditionModel", REFINER, pipeline.unet.dtype, str(pipeline._execution_device)),
            scheduler=pipeline.scheduler,
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=self.zeros_for_empty,
            add_watermarker=False,
        )
        refiner.set_progress_bar_config(disable=True)
        return refiner


@dataclass(frozen=True)
class UNetXL:
    """A UNet that also sees the pooled text, and size and crop; see `contract.Denoiser`."""

    module: Any
    component: ClassVar[Component] = "unet"

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Return the prediction for noisy latents."""
        added = {"text_embeds": condition["pooled"], "time_ids": condition["geometry"]}
        prediction: Tensor = self.module(
            noisy, timesteps, condition["hidden"], added_cond_kwargs=added, return_dict=False
        )[0]
        return prediction
