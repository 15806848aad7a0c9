"""LoRA, low-rank adaptation (Hu et al. 2021), through PEFT.

Each target gains `alpha / rank · B A`: A [rank, in] starts random, B [out, rank] at zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn import Parameter

from sdbuild.data.sampler import derive
from sdbuild.families.contract import Component, KeyMap
from sdbuild.methods.contract import Adapter, Networks
from sdbuild.methods.lora.spec import Lora
from sdbuild.methods.pipeline import PipelineLora, load_lora
from sdbuild.methods.state import take_over
from sdbuild.methods.targets import select

ADAPTER = "default"
"""PEFT's name of the one adapter."""
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"


class LoraAdapter:
    """LoRA layers in one or several networks."""

    def __init__(self, layers: Mapping[tuple[Component, str], Any], *, rank: int, alpha: float, dropout: float) -> None:
        self._layers = dict(sorted(layers.items()))
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout

    def parameters(self) -> Sequence[tuple[str, Parameter]]:
        """Return A and B of each target, by name."""
        return [
            (f"{component}.{path}.lora_{factor}.weight", getattr(layer, f"lora_{factor}")[ADAPTER].weight)
            for (component, path), layer in self._layers.items()
            for factor in "AB"
        ]

    def state(self) -> dict[str, Tensor]:
        """Return ``<component>.<path>.lora_A.weight`` and ``….lora_B.weight``, as diffusers names them."""
        return {name: parameter.detach() for name, parameter in self.parameters()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of an adapter with the same targets and rank."""
        take_over(self.state(), state)

    def export(self, key_map: KeyMap, name: str) -> dict[str, dict[str, Tensor]]:
        """Return kohya's file, with alphas, and diffusers' file.

        Readers of the latter take alpha = rank, so the scale is multiplied into B there.
        """
        state = self.state()
        kohya = key_map.to_kohya(state, self.alpha)
        scale = self.alpha / self.rank
        diffusers: dict[str, Tensor] = {}
        for (component, path), _ in self._layers.items():
            filed, own = key_map.path(key_map.kohya(component, path))
            assert filed == component
            diffusers[f"{component}.{own}.lora_A.weight"] = state[f"{component}.{path}.lora_A.weight"]
            diffusers[f"{component}.{own}.lora_B.weight"] = state[f"{component}.{path}.lora_B.weight"] * scale
        return {f"{name}.safetensors": kohya, DIFFUSERS_FILE: diffusers}

    def summary(self) -> dict[str, str]:
        """Return what readers of kohya's files show."""
        summary = {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(self.rank),
            "ss_network_alpha": str(float(self.alpha)),
        }
        if self.dropout:
            summary["ss_network_dropout"] = str(self.dropout)
        return summary

    def train(self, mode: bool) -> None:
        """Switch dropout."""
        for layer in self._layers.values():
            layer.lora_dropout[ADAPTER].train(mode)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Skip the adapter's part of every layer."""
        for layer in self._layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.enable_adapters(True)

    def set_strength(self, strength: float) -> None:
        """Scale `alpha / rank`."""
        for layer in self._layers.values():
            layer.set_scale(ADAPTER, strength)

    def merge(self) -> None:
        """Add each layer's product to its base weight."""
        for layer in self._layers.values():
            layer.merge()


class LoraMethod:
    """Injects LoRA layers."""

    def inject(self, base: Networks, spec: Lora, *, seed: int) -> Adapter:
        """Wrap all targets, in float32 whatever the base's type."""
        chosen = select(base.modules, spec.targets)
        layers: dict[tuple[Component, str], Any] = {}
        # PEFT draws a start of its own, which `_start` replaces: the process's generator must not notice.
        with torch.random.fork_rng(devices=[]):
            for component, paths in chosen.items():
                if not paths:
                    continue
                config = LoraConfig(
                    r=spec.rank,
                    lora_alpha=spec.alpha,
                    lora_dropout=spec.dropout,
                    target_modules="|".join(map(re.escape, paths)),
                    init_lora_weights=False,
                )
                network = base.modules[component]
                inject_adapter_in_model(config, network, ADAPTER)
                found = {path: module for path, module in network.named_modules() if path in set(paths)}
                assert all(isinstance(layer, LoraLayer) for layer in found.values())
                layers |= {(component, path): layer for path, layer in found.items()}
        for (component, path), layer in layers.items():
            _start(layer, seed, component, path)
        return LoraAdapter(layers, rank=spec.rank, alpha=spec.alpha, dropout=spec.dropout)

    def apply(
        self, pipeline: Any, base: Networks, spec: Lora, folder: Path, *, key_map: KeyMap, name: str
    ) -> PipelineLora:
        """Let diffusers read its file, as users do."""
        return load_lora(pipeline, folder / DIFFUSERS_FILE, name)


@torch.no_grad()
def _start(layer: Any, seed: int, component: Component, path: str) -> None:
    """Draw A as `nn.Linear` starts (uniform within ±1/√in) and set B to zero."""
    down, up = layer.lora_A[ADAPTER].float(), layer.lora_B[ADAPTER].float()
    bound = down.weight[0].numel() ** -0.5
    chance = torch.Generator().manual_seed(derive(seed, 0, f"{component}.{path}", "start"))
    down.weight.copy_(torch.empty(down.weight.shape).uniform_(-bound, bound, generator=chance))
    up.weight.zero_()


METHOD = LoraMethod()
