"""DoRA (Liu et al. 2024) with a length for each input of a layer, as ComfyUI, A1111, Forge and InvokeAI compute it.

W' = (W + s B A) diag(m / n), where n are the lengths of the sum's columns: the layer's output is that of the sum for
scaled inputs. n is a constant to the gradient (section 4.3).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from sdbuild.families.contract import KeyMap
from sdbuild.methods.layered import Place
from sdbuild.methods.layers import Layer, LayersAdapter, base_weight, unpacked
from sdbuild.methods.lora.spec import Lora
from sdbuild.methods.spec import Size

DOWN, UP, LENGTHS = "lora_down.weight", "lora_up.weight", "dora_scale"
"""Ends of names in files."""
LEAST = 1e-30
"""Length of an input that base and product ignore."""


class DoraLayer(Layer):
    """A layer with a product of two factors, and a length for each input."""

    def __init__(self, base: nn.Module, spec: Lora, *, path: str, size: Size) -> None:
        super().__init__(base, spec, path=path, size=size)
        out, into, *kernel = self.shape
        ones = [1] * len(kernel)
        self.add("first", size.rank, into, *kernel)
        self.add("second", out, size.rank, *ones)
        self.add("wanted", 1, into, *ones)
        self.first: Parameter
        self.second: Parameter
        self.wanted: Parameter
        self.orthogonal = bool(spec.orthogonal)

    def start(self, chance: torch.Generator) -> None:
        """Draw the first factor as for a LoRA, and let the lengths be the base's."""
        self.first.copy_(first_factor(self.first.shape, chance, orthogonal=self.orthogonal))
        self.second.zero_()
        self.wanted.copy_(self.lengths())

    def product(self) -> Tensor:
        """Return the factors' product, scaled, in the shape of the weight."""
        return self.size.scale * (self.second.flatten(1) @ self.first.flatten(1)).view(self.shape)

    @torch.no_grad()
    def lengths(self) -> Tensor:
        """Return the lengths that inputs have in the sum, in the shape of those that are wanted."""
        kind = self.weight.device.type
        with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):
            whole = base_weight(self) + self.product()
            found: Tensor = torch.linalg.vector_norm(whole, dim=[0, *range(2, whole.dim())], keepdim=True)
        return found.clamp_min(LEAST)

    def adapted(self, x: Tensor, strength: Tensor | float) -> Tensor:
        """Add what the base gives for the inputs' change, and the product for scaled inputs.

        The change by itself keeps digits that inputs and change together lose in half formats.
        """
        base: Tensor = self.base_layer(x)
        seen = self.dropped(x)
        ratio = self.wanted / self.lengths()
        shift = self.applied((seen * (ratio - 1)).to(x.dtype), unpacked(self))
        low = self.applied((seen * ratio).to(x.dtype), self.first)
        second = self.second.to(low.dtype)
        added = F.linear(low, second) if second.dim() == 2 else F.conv2d(low, second)
        return base + strength * (shift + self.size.scale * added).to(base.dtype)

    @torch.no_grad()
    def change(self) -> tuple[Tensor, Tensor | None]:
        """Return what sum and lengths come to."""
        base, ratio = base_weight(self), self.wanted / self.lengths()
        return (base + self.product()) * ratio - base, None

    def filed(self) -> dict[str, Tensor]:
        """Return LyCORIS' tensors; the scale is in the second factor, for some readers scale after the lengths."""
        return {
            DOWN: self.first.detach(),
            UP: self.second.detach() * self.size.scale,
            "alpha": torch.tensor(float(self.size.rank)),
            LENGTHS: self.wanted.detach(),
        }

    @torch.no_grad()
    def take(self, filed: Mapping[str, Tensor]) -> None:
        """Undo `filed`."""
        self.first.copy_(filed[DOWN])
        self.second.copy_(filed[UP] / self.size.scale)
        self.wanted.copy_(filed[LENGTHS])


class DoraAdapter(LayersAdapter):
    """An adapter of such layers; there is no form of it that diffusers reads."""

    def __init__(self, layers: Mapping[Place, Any], spec: Lora) -> None:
        super().__init__(layers, _summary(spec), spec.save_precision)

    def parts(self, layer: Any) -> Mapping[str, Parameter]:
        """Return factors and lengths, by the names that they have in any LoRA."""
        return {
            "lora_A.weight": layer.first,
            "lora_B.weight": layer.second,
            "lora_magnitude_vector.weight": layer.wanted,
        }

    def export(self, key_map: KeyMap, name: str) -> dict[str, dict[str, Tensor]]:
        """Return one file, in LyCORIS' names; lengths stay float32, for they multiply the base's weights."""
        file: dict[str, Tensor] = {}
        for place, layer in self.layers.items():
            own, exchanged = key_map.authors(*place)
            for end, tensor in layer.filed().items():
                file[f"{own}.{end}"] = halves_exchanged(tensor) if exchanged and end == UP else tensor
        lengths = {key: tensor for key, tensor in file.items() if key.endswith(f".{LENGTHS}")}
        main = f"{name}.safetensors"
        rest = {key: tensor for key, tensor in file.items() if key not in lengths}
        return {main: {**self.saved({main: rest}, self._precision)[main], **lengths}}

    def read(self, file: Mapping[str, Tensor], key_map: KeyMap) -> None:
        """Take over what `export` has written."""
        for place, layer in self.layers.items():
            own, exchanged = key_map.authors(*place)
            part = {end: file[f"{own}.{end}"] for end in (DOWN, UP, LENGTHS)}
            layer.take(part | ({UP: halves_exchanged(part[UP])} if exchanged else {}))


def first_factor(shape: torch.Size, chance: torch.Generator, *, orthogonal: bool) -> Tensor:
    """Draw A as `nn.Linear` starts (uniform within ±1/√in), or as orthogonal rows of that size."""
    drawn = torch.empty(shape)
    if orthogonal:
        nn.init.orthogonal_(drawn, gain=3**-0.5, generator=chance)
    else:
        bound = drawn[0].numel() ** -0.5
        drawn.uniform_(-bound, bound, generator=chance)
    return drawn


def halves_exchanged(tensor: Tensor) -> Tensor:
    """Exchange the first and the second half of the rows."""
    return tensor.roll(len(tensor) // 2, 0)


def _summary(spec: Lora) -> dict[str, str]:
    arguments = {"algo": "lora", "dora_wd": "True", "wd_on_output": "False", "rs_lora": str(spec.rank_stabilised)}
    return {
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": str(spec.rank),
        "ss_network_alpha": str(float(spec.alpha)),
        "ss_network_args": json.dumps(arguments),
        **({"ss_network_dropout": str(spec.dropout)} if spec.dropout else {}),
    }
