"""Stable Diffusion 3 and 3.5: a transformer over text and picture, three text encoders, a rectified flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sdbuild.families.description import Description, Names, Original
from sdbuild.families.diffusion import DiffusionFamily
from sdbuild.families.layout import Layout, check, read_config
from sdbuild.families.mmdit import SD3Keys, to_authors
from sdbuild.families.original import CLIP, PREFIXED, VAE

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sdbuild.families.contract import Component, Denoiser, FlowSchedule, TextEncoder


def _joint(tensors: Mapping[str, Tensor], prefix: str, network: Any) -> dict[str, Tensor]:
    """The transformer's tensors by diffusers' names, from `joint_blocks.0.x_block…`; see `original`."""
    from diffusers.loaders import single_file_utils as rules

    found: dict[str, Tensor] = rules.convert_sd3_transformer_checkpoint_to_diffusers(dict(tensors))
    return found


DESCRIPTION = Description(
    name="sd3",
    title="Stable Diffusion 3",
    pipeline="StableDiffusion3Pipeline",
    classes={
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
        "tokenizer": None,
        "tokenizer_2": None,
        "tokenizer_3": None,
        "scheduler": "FlowMatchEulerDiscreteScheduler",
    },
    parts={
        "index": ("model_index.json",),
        "vae": ("vae",),
        "text": ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"),
        "denoiser": ("transformer",),
        "schedule": ("scheduler",),
    },
    optional=frozenset({"text_encoder_3", "tokenizer_3"}),
    original=Original(
        marks=(
            "model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.weight",
            "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.weight",
            "text_encoders.clip_g.transformer.text_model.embeddings.token_embedding.weight",
            "first_stage_model.encoder.conv_in.weight",
        ),
        components={
            "transformer": (Names(read=_joint, write=to_authors), "model.diffusion_model."),
            "vae": (VAE, "first_stage_model."),
            "text_encoder": (CLIP, "text_encoders.clip_l.transformer."),
            "text_encoder_2": (CLIP, "text_encoders.clip_g.transformer."),
            "text_encoder_3": (PREFIXED, "text_encoders.t5xxl.transformer."),
        },
    ),
)


def family(folder: Path, layout: Layout, *, clip_skip: int) -> StableDiffusion3:
    """Bind the family to a base, after a look at its files.

    Raises:
        DataError: the base is incomplete or damaged; lists all problems.
    """
    left_out = DESCRIPTION.optional - set(layout.components)
    check(layout, {name: cls for name, cls in DESCRIPTION.classes.items() if name not in left_out})
    return StableDiffusion3(folder, clip_skip=clip_skip, t5=not left_out)


class StableDiffusion3(DiffusionFamily):
    """A base of this family; see `contract.Family`."""

    name = "sd3"
    denoiser: Component = "transformer"
    pipeline_class = DESCRIPTION.pipeline
    usual_layer = 1
    other_processes = ()
    text_classes: Mapping[str, str] = dict.fromkeys(("text_encoder", "text_encoder_2"), "CLIPTextModelWithProjection")

    def __init__(self, folder: Path, *, clip_skip: int, t5: bool) -> None:
        """Use a base whose files were checked; `t5` says whether it has the third text encoder."""
        super().__init__(folder, clip_skip=clip_skip)
        self._t5 = t5
        config = read_config(folder, "transformer")
        self._width = int(config.get("joint_attention_dim", 4096))
        self.multiple = self.vae_factor * int(config.get("patch_size", 2))
        depth = int(config.get("num_layers", 18))
        self.key_map = SD3Keys(depth)
        # Version 3 has no norm of queries and keys, 3.5 medium has blocks with two attentions.
        kind = "3-medium"
        if config.get("qk_norm"):
            kind = "3.5-medium" if config.get("dual_attention_layers") else "3.5-large"
        self.modelspec_architecture = f"stable-diffusion-{kind}"
        self.ss_base_model_version = f"sd{kind}"

    def channels(self, config: Mapping[str, Any]) -> int:
        """Channels that the transformer takes."""
        return int(config.get("in_channels", 16))

    def clips(self, dtype: torch.dtype | None, device: str) -> dict[str, Any]:
        """Load the text encoders and their tokenizers, by component; None for T5 where the base has none."""
        found = super().clips(dtype, device) | dict.fromkeys(("text_encoder_3", "tokenizer_3"))
        if self._t5:
            from transformers import T5TokenizerFast

            place = self.folder / "tokenizer_3"
            found["text_encoder_3"] = self.network("T5EncoderModel", "text_encoder_3", dtype, device)
            found["tokenizer_3"] = T5TokenizerFast.from_pretrained(place, local_files_only=True)
        return found

    def text_of(self, pipeline: Any) -> TextEncoder:
        """The text encoders of a pipeline, adapters included."""
        from sdbuild.families.t5 import T5, ClipAndT5

        clips = [self.clip(name, partial(getattr, pipeline)) for name in self.text_classes]
        t5 = None if pipeline.text_encoder_3 is None else T5(pipeline.tokenizer_3, pipeline.text_encoder_3)
        return ClipAndT5(clips, t5)

    def embedded(self, positive: Mapping[str, Tensor], negative: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arguments of the pipeline in place of prompts."""
        from sdbuild.families.t5 import side_by_side

        joined = ({**each, "hidden": side_by_side(each, self._width)} for each in (positive, negative))
        return super().embedded(*joined)

    def load_denoiser(self, dtype: torch.dtype | None = None, device: str = "cpu") -> Denoiser:
        """Load the transformer, frozen."""
        module = self.network("SD3Transformer2DModel", "transformer", dtype, device)
        return Transformer(module, timesteps=self.noise_schedule().timesteps)

    def noise_schedule(self) -> FlowSchedule:
        """Read the flow from the base's scheduler."""
        from sdbuild.families.contract import FlowSchedule

        config = read_config(self.folder, "scheduler")
        density = {"kind": "logit-normal", "mean": 0.0, "std": 1.0, "shift": float(config.get("shift", 1.0))}
        return FlowSchedule(timesteps=int(config.get("num_train_timesteps", 1000)), density=density)

    def pipeline_scheduler(self) -> Any:
        """A scheduler that holds the base's settings; the grid replaces it by the recipe's."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler.from_config(read_config(self.folder, "scheduler"))

    def pipeline_parts(self, dtype: torch.dtype | None, device: str) -> dict[str, Any]:
        """Components of the pipeline besides transformer, VAE and scheduler."""
        return self.clips(dtype, device)


@dataclass(frozen=True)
class Transformer:
    """A transformer over text and picture; see `contract.Denoiser`."""

    module: Any
    timesteps: int
    component: ClassVar[Component] = "transformer"

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Return the prediction for noisy latents."""
        from sdbuild.families.t5 import side_by_side

        levels = (timesteps + 1).float() * (1000 / self.timesteps)  # half formats tell no neighbours apart
        hidden = side_by_side(condition, self.module.config.joint_attention_dim)
        prediction: Tensor = self.module(
            hidden_states=noisy,
            timestep=levels,
            encoder_hidden_states=hidden,
            pooled_projections=condition["pooled"],
            return_dict=False,
        )[0]
        return prediction
