"""Ortho-LoRA, T-LoRA's start (Soboleva et al. 2025, section 4.2; `OrthogonalLoRALinearLayer` in its repository).

ΔW = s (B diag(λ) M A - B₀ diag(λ₀) M A₀). A₀ has orthogonal rows and B₀ orthogonal columns: the last vectors of the
singular value decomposition of a matrix of normal numbers, λ₀ its smallest values. A, B and λ start there, so that
nothing changes, and are trained; M is the mask of ranks. In files it is a LoRA of twice the rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from sdbuild.errors import Problem, RecipeError, StepError
from sdbuild.families.contract import KeyMap
from sdbuild.methods.layered import Place
from sdbuild.methods.layers import Layer, LayersAdapter
from sdbuild.methods.lora.files import DIFFUSERS_FILE, named
from sdbuild.methods.lora.ranks import UNMERGED, Gate
from sdbuild.methods.lora.spec import Lora
from sdbuild.methods.spec import Size


class OrthoLayer(Layer):
    """A layer with two orthogonal factors, a diagonal between them, and their start, which is subtracted."""

    def __init__(self, base: nn.Module, spec: Lora, *, path: str, size: Size) -> None:
        super().__init__(base, spec, path=path, size=size)
        out, into, *kernel = self.shape
        self.most = min(out, into * prod(kernel))
        if size.rank > self.most:
            message = f"is {size.rank}, but {path} has {self.most} orthogonal vectors; lower it there with method.parts"
            raise RecipeError([Problem(field="method.rank", message=message)])
        self.add("first", size.rank, into, *kernel)
        self.add("second", out, size.rank, *[1] * len(kernel))
        self.add("values", size.rank)
        self.first: Parameter
        self.second: Parameter
        self.values: Parameter
        self.gate: Gate | None = None
        self.module_dropout = 0.0  # which is the gate's
        for name, parameter in self.own.items():
            self.register_buffer(f"{name}_start", torch.empty_like(parameter), persistent=False)
        self.first_start: Tensor
        self.second_start: Tensor
        self.values_start: Tensor

    def start(self, chance: torch.Generator) -> None:
        """Draw the start."""
        if self.first.is_meta:
            return
        first, second = torch.empty(self.first.flatten(1).shape), torch.empty(self.second.flatten(1).shape)
        nn.init.orthogonal_(first, generator=chance)
        nn.init.orthogonal_(second, generator=chance)
        values = smallest_values(len(second), first.shape[1], self.size.rank)
        for name, drawn in (("first", first), ("second", second), ("values", values)):
            for each in (self.own[name], getattr(self, f"{name}_start")):
                each.copy_(drawn.view(each.shape))

    def starts(self) -> dict[str, Tensor]:
        """The start, by the names of what began there."""
        return {name: getattr(self, f"{name}_start") for name in self.own}

    def adapted(self, x: Tensor, strength: Tensor | float) -> Tensor:
        """Put inputs through the factors of a LoRA that is the same, half its ranks after the other."""
        base: Tensor = self.base_layer(x)
        seen = self.dropped(x)
        first, moved = self._inputs()
        low = [self.applied(seen, each) for each in (first, moved)]
        mask = self.gate.shaped(low[0]) if self.gate else None
        if mask is not None:
            low = [each * mask for each in low]
        added = _mixed(low[0], self.second - self.second_start) + _mixed(low[1], self.second_start)
        return base + strength * (self.size.scale * added).to(base.dtype)

    def _inputs(self) -> tuple[Tensor, Tensor]:
        """Return diag(λ) A, and how far it is from where it started."""
        shape = [-1, *[1] * (self.first.dim() - 1)]
        first = self.first * self.values.view(shape)
        return first, first - self.first_start * self.values_start.view(shape)

    @torch.no_grad()
    def doubled(self) -> tuple[Tensor, Tensor]:
        """Return the two factors of a LoRA that is the same, two ranks side by side for each.

        B L - B₀ L₀ is (B - B₀) L + B₀ (L - L₀), with L for diag(λ) A, which needs no more digits than what was learned.
        """
        first = torch.stack(self._inputs(), dim=1).flatten(0, 1)
        second = torch.stack([self.second - self.second_start, self.second_start], dim=2).flatten(1, 2)
        return first, second

    def change(self) -> tuple[Tensor, Tensor | None]:
        """Return the product of those."""
        first, second = self.doubled()
        return self.size.scale * (second.flatten(1) @ first.flatten(1)).view(self.shape), None


def _mixed(ranks: Tensor, second: Tensor) -> Tensor:
    second = second.to(ranks.dtype)
    return F.linear(ranks, second) if second.dim() == 2 else F.conv2d(ranks, second)


@cache
def smallest_values(rows: int, columns: int, rank: int) -> Tensor:
    """Return the smallest singular values of a matrix of normal numbers of deviation 1 / rank.

    The vectors of such a matrix are any orthogonal ones, whatever the values, which hardly depend on the draw; so the
    layers of a shape share one.
    """
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0), device="cpu")
    found: Tensor = torch.linalg.svdvals(drawn)[-rank:] / rank
    return found


class OrthoAdapter(LayersAdapter):
    """An adapter of such layers."""

    def __init__(self, layers: Mapping[Place, Any], spec: Lora) -> None:
        super().__init__(layers, _summary(spec), spec.save_precision)
        self._varies = spec.timestep_ranks is not None

    def parts(self, layer: Any) -> Mapping[str, Parameter]:
        """Return factors and diagonal."""
        return {"lora_A.weight": layer.first, "lora_B.weight": layer.second, "lora_values": layer.values}

    def state(self) -> dict[str, Tensor]:
        """Return the start too."""
        starts = {
            f"{'.'.join(place)}.start_{name}": tensor
            for place, layer in self.layers.items()
            if isinstance(layer, OrthoLayer)
            for name, tensor in layer.starts().items()
        }
        return super().state() | starts

    def export(self, key_map: KeyMap, name: str) -> dict[str, dict[str, Tensor]]:
        """Return kohya's file and diffusers', which takes alpha = rank."""
        state: dict[str, Tensor] = {}
        alphas: dict[str, float] = {}
        diffusers: dict[str, Tensor] = {}
        for place, layer in self.layers.items():
            assert isinstance(layer, OrthoLayer)
            module, (first, second) = ".".join(place), layer.doubled()
            state |= {f"{module}.lora_A.weight": first, f"{module}.lora_B.weight": second}
            alphas[module] = 2 * layer.size.alpha
            theirs = named(place, key_map)
            diffusers |= {f"{theirs}.lora_A.weight": first, f"{theirs}.lora_B.weight": second * layer.size.scale}
        files = {f"{name}.safetensors": key_map.to_kohya(state, alphas), DIFFUSERS_FILE: diffusers}
        return self.saved(files, self._precision)

    def merge(self) -> None:
        """Add it to the base's weights.

        Raises:
            StepError: some are quantised, or there is no one product, but one at each timestep.
        """
        if self._varies:
            raise StepError(UNMERGED)
        super().merge()

    def train(self, mode: bool) -> None:
        """Switch dropout, also of ranks."""
        super().train(mode)
        for layer in self.layers.values():
            if isinstance(layer, OrthoLayer) and layer.gate:
                layer.gate.training = mode


def _summary(spec: Lora) -> dict[str, str]:
    said = {key: str(value) for key, value in spec.stated().items() if key not in spec.always and key != "kind"}
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(2 * spec.rank),
        "ss_network_alpha": str(float(2 * spec.alpha)),
        "ss_network_args": json.dumps(said),
        **({"ss_network_dropout": str(spec.dropout)} if spec.dropout else {}),
    }
