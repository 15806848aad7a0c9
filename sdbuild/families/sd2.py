"""Stable Diffusion 2: as version 1, with an OpenCLIP text encoder, and a velocity predicted at 768 pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sdbuild.families import sd1
from sdbuild.families.description import Original
from sdbuild.families.layout import Layout, check, read_config
from sdbuild.families.original import OPENCLIP

DESCRIPTION = replace(
    sd1.DESCRIPTION,
    name="sd2",
    title="Stable Diffusion 2",
    recognises=lambda config: bool(config("unet").get("use_linear_projection", False)),
    original=Original(
        marks=(
            "model.diffusion_model.input_blocks.0.0.weight",
            "cond_stage_model.model.token_embedding.weight",
            "first_stage_model.encoder.conv_in.weight",
        ),
        components={
            **sd1.DESCRIPTION.original.components,
            "text_encoder": (OPENCLIP, "cond_stage_model.model."),
        },
    ),
)


def family(folder: Path, layout: Layout, *, clip_skip: int) -> StableDiffusion2:
    """Bind the family to a base, after a look at its files.

    Raises:
        DataError: the base is incomplete, damaged or not for text alone; lists all problems.
    """
    check(layout, DESCRIPTION.classes)
    return StableDiffusion2(folder, clip_skip=clip_skip)


class StableDiffusion2(sd1.StableDiffusion1):
    """A base of this family; its text encoder ends with the second to last layer of OpenCLIP's by configuration."""

    name = "sd2"

    def __init__(self, folder: Path, *, clip_skip: int) -> None:
        """Use a base whose files were checked."""
        super().__init__(folder, clip_skip=clip_skip)
        velocity = read_config(folder, "scheduler").get("prediction_type") == "v_prediction"
        self.modelspec_architecture = f"stable-diffusion-v2-{'768-v' if velocity else '512'}"
        self.ss_base_model_version = "sd_v2_v" if velocity else "sd_v2"
