"""LoRA, low-rank adaptation (Hu et al. 2021), through PEFT.

Each target gains `alpha / rank · B A`: A [rank, in] starts random, B [out, rank] at zero. With DoRA (Liu et al. 2024)
the sum's rows are brought to lengths that are learned, one for each output; or its columns, see `dora`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import Parameter

from sdbuild.data.sampler import derive
from sdbuild.errors import DataError, StepError
from sdbuild.families.contract import KeyMap
from sdbuild.methods.contract import Networks, Strength
from sdbuild.methods.layered import LayeredAdapter, Place, check_mergeable, file_of
from sdbuild.methods.layers import sizes, wrapped
from sdbuild.methods.lora.dora import DoraAdapter, DoraLayer, first_factor
from sdbuild.methods.lora.files import DIFFUSERS_FILE, named
from sdbuild.methods.lora.ortho import OrthoAdapter, OrthoLayer
from sdbuild.methods.lora.ranks import UNMERGED, Gate, gated, gates
from sdbuild.methods.lora.spec import Lora
from sdbuild.methods.pipeline import load_lora
from sdbuild.methods.spec import Size
from sdbuild.methods.targets import select

ADAPTER = "default"
"""PEFT's name of the one adapter."""
FIRST, SECOND, LENGTHS = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector.weight"
"""Diffusers' names of the factors, and of DoRA's lengths."""


class LoraAdapter(LayeredAdapter[Any]):
    """LoRA layers in one or several networks."""

    def __init__(
        self, layers: Mapping[Place, Any], sizes: Mapping[Place, Size], spec: Lora, gates: list[Gate] | None = None
    ) -> None:
        super().__init__(layers, _summary(spec))
        self._sizes = sizes
        self._spec = spec
        self._gates = gates or []
        self._strength = 1.0
        for layer in layers.values() if spec.dora else ():
            layer.register_forward_hook(self._between)

    def parts(self, layer: Any) -> Mapping[str, Parameter]:
        """Return A, B and DoRA's lengths, as diffusers names them."""
        found = {FIRST: layer.lora_A[ADAPTER].weight, SECOND: layer.lora_B[ADAPTER].weight}
        return found | ({LENGTHS: layer.lora_magnitude_vector[ADAPTER].weight} if self._spec.dora else {})

    def export(self, key_map: KeyMap, name: str) -> dict[str, dict[str, Tensor]]:
        """Return kohya's file, with alphas, and diffusers' file.

        Readers of the latter take alpha = rank, so the scale is multiplied into B there.
        """
        state = self.state()
        if self._spec.dora:
            kohya = file_of({place: self._filed(place) for place in self.layers}, key_map)
        else:
            kohya = key_map.to_kohya(state, {".".join(place): size.alpha for place, size in self._sizes.items()})
        diffusers: dict[str, Tensor] = {}
        for place in self.layers:
            scales = {SECOND: self._sizes[place].scale}
            for part in self.parts(self.layers[place]):
                diffusers[f"{named(place, key_map)}.{part}"] = state[f"{'.'.join(place)}.{part}"] * scales.get(part, 1)
        files = {f"{name}.safetensors": kohya, DIFFUSERS_FILE: diffusers}
        return self.saved(files, self._spec.save_precision)

    def read(self, file: Mapping[str, Tensor], key_map: KeyMap) -> None:
        """Take over what `export` gave for diffusers."""
        state: dict[str, Tensor] = {}
        for place in self.layers:
            for part in self.parts(self.layers[place]):
                tensor = file[f"{named(place, key_map)}.{part}"]
                state[f"{'.'.join(place)}.{part}"] = tensor / (self._sizes[place].scale if part == SECOND else 1)
        self.load_state(state)

    def _filed(self, place: Place) -> dict[str, Tensor]:
        first, second, lengths = (part.detach() for part in self.parts(self.layers[place]).values())
        return {
            "lora_down.weight": first,
            "lora_up.weight": second,
            "alpha": torch.tensor(self._sizes[place].alpha),
            "dora_scale": lengths.view(-1, *[1] * (first.dim() - 1)),
        }

    def train(self, mode: bool) -> None:
        """Switch dropout."""
        for layer in self.layers.values():
            layer.lora_dropout[ADAPTER].train(mode)
        for gate in self._gates:
            gate.training = mode

    def enable(self, on: bool) -> None:
        """Skip the adapter's part of every layer, or not."""
        for layer in self.layers.values():
            layer.enable_adapters(on)

    def set_strength(self, strength: float) -> None:
        """Scale `alpha / rank`; with DoRA, stand between the base's outputs and the adapter's."""
        self._strength = strength
        for layer in self.layers.values() if not self._spec.dora else ():
            layer.set_scale(ADAPTER, strength)

    def _between(self, layer: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if self._strength == 1 or layer.disable_adapters:
            return output
        active = list(layer.active_adapters)
        others = [name for name in active if name != ADAPTER]
        if others:
            layer.set_adapter(others)
        base: Tensor = layer.forward(*args) if others else layer.base_layer(*args)
        if others:
            layer.set_adapter(active)
        return base if self._strength == 0 else torch.lerp(base, output, self._strength)

    @torch.no_grad()
    def merge(self) -> None:
        """Add each layer's product to its base weight.

        Raises:
            StepError: the base is quantised, or there is no one product, but one at each timestep.
        """
        if self._spec.timestep_ranks:
            raise StepError(UNMERGED)
        check_mergeable(layer.get_base_layer().weight for layer in self.layers.values())
        for layer in self.layers.values():
            weight = layer.get_base_layer().weight
            before = weight.clone() if self._spec.dora else None
            layer.merge()
            if before is not None:
                weight.copy_(torch.lerp(before, weight, self._strength))


class LoraMethod:
    """Injects LoRA layers."""

    def inject(self, base: Networks, spec: Lora, *, seed: int) -> LoraAdapter | DoraAdapter | OrthoAdapter:
        """Wrap all targets, in float32 whatever the base's type."""
        if spec.dora_axis == "input":
            return DoraAdapter(wrapped(DoraLayer, base, spec, seed), spec)
        if spec.orthogonal == "both":
            return OrthoAdapter(gated(wrapped(OrthoLayer, base, spec, seed), spec, base.modules), spec)
        return self._inject(base, spec, seed)

    def _inject(self, base: Networks, spec: Lora, seed: int) -> LoraAdapter:
        chosen = select(base.modules, spec.targets)
        found = sizes(chosen, spec)
        layers: dict[Place, Any] = {}
        # PEFT draws a start of its own, which `_start` replaces: the process's generator must not notice.
        with torch.random.fork_rng(devices=[]):
            for component, paths in chosen.items():
                if not paths:
                    continue
                own = {f"^{re.escape(path)}": found[component, path] for path in paths}
                config = LoraConfig(
                    r=spec.rank,
                    lora_alpha=spec.size().alpha,
                    rank_pattern={path: size.rank for path, size in own.items() if size != spec.size()},
                    alpha_pattern={path: size.alpha for path, size in own.items() if size != spec.size()},
                    lora_dropout=spec.dropout,
                    target_modules="|".join(map(re.escape, paths)),
                    init_lora_weights=False,
                    use_dora=spec.dora,
                )
                network = base.modules[component]
                inject_adapter_in_model(config, network, ADAPTER)
                for path in paths:
                    layers[component, path] = network.get_submodule(path)
        assert all(isinstance(layer, LoraLayer) for layer in layers.values())
        for place, layer in layers.items():
            _start(layer, torch.Generator().manual_seed(derive(seed, 0, ".".join(place), "start")), spec)
        adapter = LoraAdapter(layers, found, spec, gates(layers, spec, base.modules, ADAPTER))
        adapter.train(False)
        return adapter

    def apply(self, pipeline: Any, base: Networks, spec: Lora, folder: Path, *, key_map: KeyMap, name: str) -> Strength:
        """Let diffusers read its file, as users do; but for DoRA, which has strengths of another kind there."""
        if spec.dora_axis == "input":
            own = DoraAdapter(wrapped(DoraLayer, base, spec, 0), spec)
            own.read(load_file(folder / f"{name}.safetensors"), key_map)
            return own
        if spec.dora:
            if _loaded(base.modules, ADAPTER):
                raise DataError(f"{name}: a grid takes one adapter with DoRA; leave one out, or train it without dora")
            adapter = self._inject(base, spec, 0)
            adapter.read(load_file(folder / DIFFUSERS_FILE), key_map)
            return adapter
        loaded = load_lora(pipeline, folder / DIFFUSERS_FILE)
        if spec.timestep_ranks:
            gates(_loaded(base.modules, loaded.name), spec, base.modules, loaded.name)
        return loaded


@torch.no_grad()
def _start(layer: Any, chance: torch.Generator, spec: Lora) -> None:
    """Draw A, and set B to zero."""
    down, up = layer.lora_A[ADAPTER].float(), layer.lora_B[ADAPTER].float()
    down.weight.copy_(first_factor(down.weight.shape, chance, orthogonal=bool(spec.orthogonal)))
    up.weight.zero_()
    if spec.dora:
        lengths = layer.lora_magnitude_vector[ADAPTER]
        lengths.get_weight_norm = _in_float32(lengths.get_weight_norm)
        lengths.update_layer(base_layer=layer.get_base_layer(), lora_A=down.weight, lora_B=up.weight, scaling=1.0)


def _in_float32(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let PEFT measure rows in float32: in shorter formats, the start would not be the base."""

    def measure(weight: Tensor, lora_weight: Tensor, **rest: Any) -> Tensor:
        return norm(weight.float(), lora_weight.float(), **rest)

    return measure


def _loaded(modules: Mapping[Any, nn.Module], name: str) -> dict[Place, Any]:
    """Layers of a LoRA that diffusers has loaded."""
    return {
        (component, path): layer
        for component, network in modules.items()
        for path, layer in network.named_modules()
        if isinstance(layer, LoraLayer) and name in layer.lora_A
    }


def _summary(spec: Lora) -> dict[str, str]:
    said = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(spec.rank),
        "ss_network_alpha": str(float(spec.alpha)),
    }
    if spec.dropout:
        said["ss_network_dropout"] = str(spec.dropout)
    stated = spec.stated()
    arguments = {key: str(stated[key]) for key in stated if key not in spec.always and key != "kind"}
    return said | ({"ss_network_args": json.dumps(arguments)} if arguments else {})


METHOD = LoraMethod()
