"""The base: which model is adapted, and how its parts are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sdbuild.recipe.places import base_model, config_folder, is_hub_id, is_pickle, is_single_file, vae_model
from sdbuild.recipe.spec import Spec, Text


class Base(Spec):
    """The model that is adapted; it is never changed."""

    model: Annotated[Text, AfterValidator(base_model)]
    """Name of an embedded base, a hub id (`org/name`), a folder in diffusers' layout, or a single checkpoint file."""
    revision: Text | None = None
    """Commit, tag or branch of a hub id; pinned to a commit when it is resolved."""
    variant: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")] | None = None
    """Which copies of the weights to take of a folder or hub id, such as `fp16`; parts without them have their own."""
    family: Literal["sd1", "sd2", "sdxl", "sd3"] | None = None
    """Model family; found out from the base, and checked if it stands here."""
    vae: Annotated[Text, AfterValidator(vae_model)] | None = None
    """VAE in place of the base's own: a hub id, a folder in diffusers' layout, or a `.safetensors` file."""
    refiner: Annotated[Text, AfterValidator(base_model)] | None = None
    """Stable Diffusion XL's refiner, which finishes the grid's pictures: a hub id or a folder in diffusers' layout."""
    config: Annotated[Text, AfterValidator(config_folder)] | None = None
    """Base or folder with the configurations that a single file is read with; sdbuild carries the usual ones."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What the denoiser of a single file predicts, where the file does not say; checked against other bases."""
    clip_skip: Annotated[int, Field(ge=1, le=12)] = 1
    """Layer of the CLIP text encoders: 1 is the base's usual one, 2 the one before it, and so on."""
    t5: bool = True
    """Whether Stable Diffusion 3 reads captions with T5 too; without it 10 GB less are loaded."""
    allow_pickle: bool = False
    """Whether a `.ckpt` file is read, by a loader that takes tensors alone; pickles can run code otherwise."""

    def rules(self) -> Iterator[tuple[str, str]]:
        """What goes with which kind of base."""
        single = is_single_file(self.model)
        if self.revision is not None and not is_hub_id(self.model):
            yield "revision", f"{self.model!r} is no hub id and has no revisions; remove it"
        if self.variant is not None and single:
            yield "variant", f"{self.model!r} is a single file and has no variants; remove it"
        if self.config is not None and not single:
            yield "config", f"{self.model!r} is no single file and has its own configurations; remove it"
        if self.refiner is not None and is_single_file(self.refiner):
            yield "refiner", f"{self.refiner!r} is a single file; name a hub id or a folder in diffusers' layout"
        if is_pickle(self.model) and not self.allow_pickle:
            yield (
                "model",
                "pickled weights can run code; convert them to safetensors, or set allow_pickle: true, with which "
                "nothing but tensors is read",
            )
        if self.allow_pickle and not is_pickle(self.model):
            yield "allow_pickle", f"{self.model!r} is no pickle (.ckpt); remove it"
