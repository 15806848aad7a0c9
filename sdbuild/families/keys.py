"""Names of adapted modules in kohya's files: module paths with underscores for dots.

Underscores also occur within a path's words, so the way back needs the words. They are few, and the longest fits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from sdbuild.families.contract import Component

UNET_WORDS = (
    "down_blocks up_blocks mid_block attentions resnets downsamplers upsamplers transformer_blocks attn1 attn2 "
    "to_q to_k to_v to_out ff net proj proj_in proj_out conv conv1 conv2 conv_in conv_out conv_norm_out conv_shortcut "
    "norm norm1 norm2 norm3 time_emb_proj time_embedding add_embedding linear_1 linear_2"
)
TEXT_WORDS = (
    "text_model embeddings token_embedding position_embedding encoder layers self_attn q_proj k_proj v_proj out_proj "
    "mlp fc1 fc2 layer_norm1 layer_norm2 final_layer_norm text_projection"
)
TEXT_ROOT = "text_model."
_SUFFIXES = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
_BACK = {kohya: diffusers for diffusers, kohya in _SUFFIXES.items()}


class KohyaKeys:
    """Key map of families with one UNet or transformer and text encoders as CLIP's; see `contract.KeyMap`."""

    words = UNET_WORDS
    """Words of the names of the denoiser's modules."""

    def __init__(self, prefixes: Mapping[Component, str]) -> None:
        """Use kohya's prefix of each component, e.g. ``{"unet": "lora_unet"}``; that of the denoiser is first."""
        self._prefixes = dict(prefixes)
        self._denoiser = next(iter(prefixes))

    def kohya(self, component: Component, path: str) -> str:
        """Return the name in kohya's files."""
        path = self.filed(path) if component == self._denoiser else TEXT_ROOT + path.removeprefix(TEXT_ROOT)
        return f"{self._prefixes[component]}_{path.replace('.', '_')}"

    def authors(self, component: Component, path: str) -> tuple[str, bool]:
        """Return a name under which readers apply any change, and whether it has the halves of the rows exchanged."""
        return self.kohya(component, path), False

    def path(self, name: str) -> tuple[Component, str]:
        """Return component and module path of a name in kohya's files."""
        for component, prefix in self._prefixes.items():
            if name.startswith(f"{prefix}_"):
                rest = name.removeprefix(f"{prefix}_")
                if component == self._denoiser:
                    return component, self.own(self.split(rest, self.words, name))
                return component, self.split(rest, TEXT_WORDS, name)
        raise ValueError(f"{name}: begins with none of {', '.join(self._prefixes.values())}")

    @staticmethod
    def split(text: str, words: str, name: str) -> str:
        """Put dots between the words of a path; `name` is what to complain about with a `ValueError`."""
        return _split(text, _words(words), name)

    def filed(self, path: str) -> str:
        """Path of a denoiser's module in the layout whose names kohya's files have."""
        return path

    def own(self, path: str) -> str:
        """Undo `filed`; raises `ValueError` for a path of no module."""
        return path

    def to_kohya(self, state: Mapping[str, Tensor], alphas: Mapping[str, float] | float) -> dict[str, Tensor]:
        """Rename a LoRA from diffusers' names to kohya's."""
        import torch

        renamed: dict[str, Tensor] = {}
        for key, tensor in state.items():
            module, suffix = _cut(key, _SUFFIXES)
            component = next((name for name in self._prefixes if module.startswith(f"{name}.")), None)
            if component is None:
                raise ValueError(f"{key}: begins with none of {', '.join(self._prefixes)}")
            name = self.kohya(component, module.removeprefix(f"{component}."))
            renamed[f"{name}.{suffix}"] = tensor
            alpha = alphas[module] if isinstance(alphas, Mapping) else alphas
            renamed[f"{name}.alpha"] = torch.tensor(float(alpha))
        return renamed

    def from_kohya(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Undo `to_kohya`: return the state and the alpha of each module."""
        renamed: dict[str, Tensor] = {}
        alphas: dict[str, float] = {}
        for key, tensor in state.items():
            name, _, suffix = key.partition(".")
            module = ".".join(self.path(name))
            if suffix == "alpha":
                alphas[module] = float(tensor)
            elif suffix in _BACK:
                renamed[f"{module}.{_BACK[suffix]}"] = tensor
            else:
                raise ValueError(f"{key}: is no part of a LoRA ({', '.join(_BACK)}, alpha)")
        for key, tensor in renamed.items():
            if key.endswith(".lora_A.weight"):
                alphas.setdefault(key.removesuffix(".lora_A.weight"), float(len(tensor)))
        return renamed, alphas


def _cut(key: str, suffixes: Mapping[str, str]) -> tuple[str, str]:
    for old, new in suffixes.items():
        if key.endswith(f".{old}"):
            return key.removesuffix(f".{old}"), new
    raise ValueError(f"{key}: is no part of a LoRA ({', '.join(suffixes)})")


@cache
def _words(words: str) -> re.Pattern[str]:
    longest_first = sorted(words.split(), key=len, reverse=True)
    return re.compile(rf"({'|'.join(longest_first)}|\d+)(?:_|$)")


def _split(text: str, word: re.Pattern[str], name: str) -> str:
    found: list[str] = []
    position = 0
    while position < len(text):
        match = word.match(text, position)
        if match is None:
            raise ValueError(f"{name}: {text[position:]} is no part of this family's networks")
        found.append(match[1])
        position = match.end()
    return ".".join(found)
