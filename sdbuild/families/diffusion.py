"""What families share whose bases lie in diffusers' layout. Importing it is light; weights load libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sdbuild.errors import DataError, Problem
from sdbuild.families.layout import read_config, read_layout

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from sdbuild.families.contract import Component, Denoiser, Schedule, TextEncoder
    from sdbuild.families.networks import KLEncoder
    from sdbuild.families.text import Clip

KINDS = ("epsilon", "v_prediction", "sample")
"""What a denoiser of a diffusion predicts."""


class DiffusionFamily:
    """A base with a UNet, a KL autoencoder and CLIP text encoders; see `contract.Family`."""

    name: str
    denoiser: Component = "unet"
    pipeline_class: str
    text_classes: Mapping[str, str]
    """Class of each CLIP text encoder."""
    usual_layer = 0
    """Which of its layers is the usual one, counted back from the last."""
    other_processes: tuple[str, ...] = ("EDM", "FlowMatch")
    """What the names of schedulers begin with whose forward process no betas describe."""
    zeros_by_default = False
    """Whether the pipeline takes zeros for an empty negative prompt where the base does not say."""

    def __init__(self, folder: Path, *, clip_skip: int) -> None:
        """Use a base whose files were checked; `clip_skip` 1 is the text encoders' usual layer, 2 the one before it.

        Raises:
            DataError: its denoiser is not for text alone, VAE and denoiser do not belong together, or noise is added
                in another way than the family's.
        """
        self.folder = folder
        self.clip_skip = clip_skip
        layout = read_layout(folder)
        self.zeros_for_empty = bool(layout.settings.get("force_zeros_for_empty_prompt", self.zeros_by_default))
        scheduler = layout.components.get("scheduler", "")
        if scheduler.startswith(self.other_processes):
            message = f"has a {scheduler}: it was trained with other noise than {self.name}, which sdbuild cannot adapt"
            raise DataError([Problem(file=str(layout.file), message=message)])
        vae = read_config(folder, "vae")
        self.vae_factor = 2 ** (len(vae.get("block_out_channels", (64,))) - 1)
        self.multiple = self.vae_factor
        self._shift = float(vae.get("shift_factor") or 0.0)
        self._factor = float(vae.get("scaling_factor", 0.18215))
        takes, gives = self.channels(read_config(folder, self.denoiser)), vae.get("latent_channels", 4)
        if takes != gives:
            message = f"takes {takes} channels where the VAE gives {gives}: "
            # What is for editing takes further latents, or a mask, beside the noisy latent.
            message += "it is for inpainting or editing" if takes > gives else "the VAE is of another family"
            raise DataError([Problem(file=str(folder / self.denoiser / "config.json"), message=message)])

        layers = min(int(read_config(folder, name).get("num_hidden_layers", 12)) for name in self.text_classes)
        if self.usual_layer + clip_skip > layers:
            message = f"is {clip_skip}, but the base's text encoders have {layers - self.usual_layer} layers to choose"
            raise DataError([Problem(field="base.clip_skip", message=f"{message}; lower it")])

    def channels(self, config: Mapping[str, Any]) -> int:
        """Channels that the denoiser takes."""
        return int(config.get("in_channels", 4))

    def load_vae(self, dtype: torch.dtype | None = None, device: str = "cpu") -> KLEncoder:
        """Load the encoder of pictures."""
        from sdbuild.families.networks import KLEncoder

        vae = self.network("AutoencoderKL", "vae", dtype, device)
        return KLEncoder(vae, self._shift, self._factor, vae.device, vae.dtype)

    def load_text(self, dtype: torch.dtype | None = None, device: str = "cpu") -> TextEncoder:
        """Load tokenizers and text encoders."""
        return self.text_of(SimpleNamespace(**self.clips(dtype, device)))

    def load_denoiser(self, dtype: torch.dtype | None = None, device: str = "cpu") -> Denoiser:
        """Load the UNet, frozen."""
        from sdbuild.families.networks import UNet

        return UNet(self.network("UNet2DConditionModel", self.denoiser, dtype, device))

    def noise_schedule(self) -> Schedule:
        """Read the forward process from the base's scheduler."""
        from diffusers import DDPMScheduler

        from sdbuild.families.contract import NoiseSchedule

        config = read_config(self.folder, "scheduler")
        kind = config.get("prediction_type", "epsilon")
        if kind not in KINDS:
            message = f"has prediction_type {kind!r}; sdbuild knows {', '.join(KINDS)}"
            raise DataError([Problem(file=str(self.folder / "scheduler/scheduler_config.json"), message=message)])
        scheduler = DDPMScheduler.from_config(config)
        return NoiseSchedule(alphas_cumprod=scheduler.alphas_cumprod.double(), prediction_type=kind)

    def scale(self, latent: Tensor) -> Tensor:
        """Return what the denoiser works on from an unscaled latent."""
        return (latent - self._shift) * self._factor

    def pipeline(self, dtype: torch.dtype | None = None, device: str = "cpu") -> Any:
        """Load the pipeline; no progress bar, no safety checker."""
        import diffusers

        denoiser = self.load_denoiser(dtype, device)
        pipeline = getattr(diffusers, self.pipeline_class)(
            vae=self.network("AutoencoderKL", "vae", dtype, device),
            scheduler=self.pipeline_scheduler(),
            **{denoiser.component: denoiser.module},
            **self.pipeline_parts(dtype, device),
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def pipeline_scheduler(self) -> Any:
        """A scheduler that holds the base's settings; the grid replaces it by the recipe's."""
        from diffusers import DDIMScheduler

        return DDIMScheduler.from_config(read_config(self.folder, "scheduler"))

    def pipeline_parts(self, dtype: torch.dtype | None, device: str) -> dict[str, Any]:
        """Components of the pipeline besides denoiser, VAE and scheduler."""
        raise NotImplementedError

    def refiner(self, pipeline: Any) -> Any:
        """The pipeline that finishes pictures; None without one."""
        return None

    def text_of(self, pipeline: Any) -> TextEncoder:
        """The text encoders of a pipeline, adapters included, as those of `load_text`."""
        raise NotImplementedError

    def embedded(self, positive: Mapping[str, Tensor], negative: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arguments of the pipeline in place of prompts."""
        found = {"prompt_embeds": positive["hidden"], "negative_prompt_embeds": negative["hidden"]}
        if "pooled" in positive:
            found |= {"pooled_prompt_embeds": positive["pooled"], "negative_pooled_prompt_embeds": negative["pooled"]}
        return found

    def checkpoint(self, networks: Mapping[Component, nn.Module], dtype: torch.dtype) -> dict[str, Tensor]:
        """All of the base as one file in its authors' layout, with some networks in place of its own."""
        from sdbuild.families.checkpoint import whole_checkpoint

        return whole_checkpoint(self.folder, networks, dtype)

    def read_checkpoint(
        self, file: Path, networks: Mapping[Component, nn.Module]
    ) -> dict[Component, dict[str, Tensor]]:
        """Tensors of some networks from a file as `checkpoint` makes it."""
        from sdbuild.families.checkpoint import read_networks

        return read_networks(self.folder, file, networks)

    def network(self, name: str, component: str, dtype: torch.dtype | None, device: str) -> Any:
        """Load a network of diffusers or transformers, frozen, in float32 if no type is given."""
        from sdbuild.families.networks import load_network

        return load_network(name, self.folder / component, dtype, device)

    def clips(self, dtype: torch.dtype | None, device: str) -> dict[str, Any]:
        """Load the CLIP text encoders and their tokenizers, by component, with classes as in `text_classes`."""
        from transformers import CLIPTokenizer

        found: dict[str, Any] = {}
        for component, cls in self.text_classes.items():
            found[component] = self.network(cls, component, dtype, device)
            tokenizer = component.replace("text_encoder", "tokenizer")
            found[tokenizer] = CLIPTokenizer.from_pretrained(self.folder / tokenizer, local_files_only=True)
        return found

    def clip(self, component: Any, get: Callable[[str], Any]) -> Clip:
        """Bind a CLIP text encoder to its tokenizer; `get` gives either by its component."""
        from sdbuild.families.text import Clip

        return Clip(
            component=component,
            tokenizer=get(component.replace("text_encoder", "tokenizer")),
            module=get(component),
            layer=self.usual_layer + self.clip_skip - 1,
            normed=self.usual_layer == 0,
        )
