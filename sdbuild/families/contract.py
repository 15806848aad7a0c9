"""What every model family offers to the rest of the house.

Steps, methods and the training loop see these protocols only, never a concrete family. Shapes: B batch, C latent
channels, h and w latent size, L tokens, D width of the text encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]
"""What a denoiser's output means; `flow` is noise minus latent, the others are DDPM's."""
Component = Literal["unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3"]
"""The parts of a base that an adapter can change, as diffusers names them."""

Words = Sequence[tuple[str, float]]
"""A prompt in pieces, each with its weight."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types that networks compute in, by the names that specs use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseSchedule:
    """The forward process that the base was trained with."""

    alphas_cumprod: Tensor
    """Float64 of shape [T]: the share of signal in the variance at each timestep (DDPM, eq. 4)."""
    prediction_type: PredictionType
    """What the denoiser's output means."""

    @property
    def timesteps(self) -> int:
        """How many timesteps there are."""
        return len(self.alphas_cumprod)


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowSchedule:
    """A rectified flow, x_t = (1 - σ_t) x + σ_t ε, whose velocity ε - x is predicted (Esser et al. 2024, section 2).

    Timestep t of T has σ = (t + 1) / T; the shift towards noise is a matter of which timesteps are drawn.
    """

    timesteps: int
    """How many there are."""
    density: Mapping[str, Any]
    """How the base's timesteps are drawn, as `train.timesteps` of a recipe says it."""
    prediction_type: PredictionType = "flow"


Schedule = NoiseSchedule | FlowSchedule


class LatentEncoder(Protocol):
    """Turns pictures into latents and back; frozen and deterministic."""

    @property
    def module(self) -> nn.Module:
        """The network itself."""

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, each float32 [C, h, w], of one picture [1, 3, H, W] in [-1, 1].

        Both are unscaled: `scale` is applied when they are used.
        """

    def decode(self, latent: Tensor) -> Tensor:
        """Return pictures float32 [B, 3, H, W] in about [-1, 1] from scaled latents [B, C, h, w]."""

    def scale(self, latent: Tensor) -> Tensor:
        """Return what the denoiser works on from an unscaled latent."""


class TextEncoder(Protocol):
    """Turns captions into conditions."""

    max_tokens: int
    """Longest caption in tokens, start and end included; the rest of a longer one is cut off."""

    @property
    def modules(self) -> Mapping[Component, nn.Module]:
        """The networks that adapters can change, for training the text side; frozen when loaded."""

    @property
    def readers(self) -> Mapping[Component, tuple[Any, Any]]:
        """Tokenizers and networks, of transformers: what is added to them is read in captions and prompts."""

    def expands(self, text: str) -> bool:
        """Tell whether the text has a token of several vectors; see `families.text.expanded`."""

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a caption before any cut, start and end included."""

    def tokenize(self, text: str) -> dict[str, Tensor]:
        """Return token ids, int64 [L], cut and padded, by the component that reads them."""

    def condition(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the condition of tokens, each [B, L], e.g. ``{"hidden": [B, L, D]}``; gradients flow."""

    def encode(self, text: str) -> dict[str, Tensor]:
        """Return the condition of one caption without batch axis, e.g. ``{"hidden": [L, D]}``, float32."""

    def chunks(self, words: Words) -> int:
        """How many times a prompt fills what the encoder takes at once."""

    def weigh(self, words: Words, chunks: int) -> dict[str, Tensor]:
        """Return the condition [1, …] of a prompt with weights, in that many chunks."""


class Denoiser(Protocol):
    """The network that is adapted."""

    @property
    def component(self) -> Component:
        """Its name in adapters."""

    @property
    def module(self) -> nn.Module:
        """The network; frozen when loaded, in evaluation mode."""

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Return the prediction [B, C, h, w] for noisy scaled latents, int64 timesteps [B] and a batched condition.

        Timesteps count from the least noise. Families with `geometry` find it in the condition under that name:
        int64 [B, 6], height and width of the picture as it was, top and left of its crop, height and width of the
        crop; see `data.wanted.WantedLatent.geometry`.
        """


class KeyMap(Protocol):
    """Names of adapted modules in the ecosystem's files: pure functions, no model needed.

    A *path* is the module's path in the network of `component`, e.g. ``down_blocks.0.….to_q``. Text encoder paths
    are accepted with and without their leading ``text_model.``, which recent releases of transformers dropped;
    those returned have it, as files do.
    """

    def kohya(self, component: Component, path: str) -> str:
        """Return the name in kohya's, ComfyUI's and A1111's files, e.g. ``lora_unet_down_blocks_0_…_to_q``."""

    def authors(self, component: Component, path: str) -> tuple[str, bool]:
        """Return a name under which readers apply any change, and whether it has the halves of the rows exchanged."""

    def path(self, name: str) -> tuple[Component, str]:
        """Return component and path of such a name; `ValueError` for a name that this family does not have."""

    def to_kohya(self, state: Mapping[str, Tensor], alphas: Mapping[str, float] | float) -> dict[str, Tensor]:
        """Rename a LoRA from diffusers' names to kohya's.

        ``unet.<path>.lora_A.weight`` becomes ``lora_unet_<path>.lora_down.weight``, ``lora_B`` ``lora_up``, and each
        module gets an ``.alpha``: the number given, or the one given under ``unet.<path>``.
        """

    def from_kohya(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Undo `to_kohya`; a module without ``.alpha`` has its rank as alpha, as kohya's tools read it."""


class Family(Protocol):
    """One model family, bound to the folder of a base in diffusers layout."""

    name: str
    """The family's key in `FAMILIES`."""
    folder: Path
    denoiser: Component
    """The component that is the denoiser."""
    clip_skip: int
    """Which layer of the text encoders counts: 1 is the usual one, 2 the one before it."""
    zeros_for_empty: bool
    """Whether grids take zeros for an empty negative prompt."""
    vae_factor: int
    """Pixels a side of one latent pixel."""
    multiple: int
    """Pictures' sides are multiples of this: the VAE's factor, times the patch of a transformer."""
    modelspec_architecture: str
    """E.g. ``stable-diffusion-v1``, for ``modelspec.architecture``."""
    ss_base_model_version: str
    """E.g. ``sd_v1``, as kohya's tools write it."""

    @property
    def key_map(self) -> KeyMap:
        """Names in the ecosystem's files."""

    def load_vae(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> LatentEncoder:
        """Load the encoder of pictures."""

    def load_text(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> TextEncoder:
        """Load tokenizers and text encoders."""

    def load_denoiser(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Denoiser:
        """Load the denoiser, frozen."""

    def noise_schedule(self) -> Schedule:
        """Read the forward process; loads no weights."""

    def scale(self, latent: Tensor) -> Tensor:
        """Return what the denoiser works on from an unscaled latent; loads no weights."""

    def refiner(self, pipeline: Any) -> Any:
        """The pipeline that goes on from a picture's latents where the base's ends, sharing its parts; or None."""

    def text_of(self, pipeline: Any) -> TextEncoder:
        """The text encoders of a pipeline, with whatever was injected into them."""

    def embedded(self, positive: Mapping[str, Tensor], negative: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arguments of the pipeline in place of prompts, from conditions as `TextEncoder.weigh` gives them."""

    def pipeline(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
        """Load the diffusers pipeline of the base, for sampling."""

    def checkpoint(self, networks: Mapping[Component, nn.Module], dtype: torch.dtype) -> dict[str, Tensor]:
        """All of the base as one file in its authors' layout, with some networks in place of its own."""

    def read_checkpoint(
        self, file: Path, networks: Mapping[Component, nn.Module]
    ) -> dict[Component, dict[str, Tensor]]:
        """Tensors of some networks from a file as `checkpoint` makes it, by the names of the networks given."""
