"""Hypernetworks as the web UIs know them: k and v of cross-attention see x + s · f(x) instead of the text's states x.

A key's network serves all layers, and so does a value's. Layers have the order and the names of A1111's
`modules/hypernetworks/hypernetwork.py`, with the width and `0` for keys or `1` for values before them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.functional import dropout

from sdbuild.data.sampler import derive
from sdbuild.errors import DataError, Problem, RecipeError, StepError
from sdbuild.families.contract import KeyMap
from sdbuild.methods.contract import Networks, Strength
from sdbuild.methods.hypernetwork.spec import Hypernetwork
from sdbuild.methods.state import take_over, without

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "swish": nn.Hardswish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "mish": nn.Mish,
}
"""By the recipe's `method.activation`, but for `linear`, which is none; A1111's swish is the hard one."""
STARTS: Mapping[str, Callable[[Tensor, torch.Generator], Any]] = {
    "normal": lambda weight, chance: nn.init.normal_(weight, std=0.01, generator=chance),
    "xavier-uniform": lambda weight, chance: nn.init.xavier_uniform_(weight, generator=chance),
    "xavier-normal": lambda weight, chance: nn.init.xavier_normal_(weight, generator=chance),
    "kaiming-uniform": lambda weight, chance: nn.init.kaiming_uniform_(weight, generator=chance),
    "kaiming-normal": lambda weight, chance: nn.init.kaiming_normal_(weight, generator=chance),
}
"""By the recipe's `method.start`."""
KEYS = {"to_k": 0, "to_v": 1}
"""Projections of cross-attention, and the number of their network in A1111's files."""


class Residual(nn.Module):
    """x + strength · f(x), in float32."""

    def __init__(self, width: int, spec: Hypernetwork) -> None:
        super().__init__()
        widths = [max(1, int(width * factor)) for factor in spec.layers]
        parts: list[nn.Module] = []
        for index, (one, other) in enumerate(pairwise(widths), start=2):
            parts.append(nn.Linear(one, other))
            if index < len(widths) and spec.activation in ACTIVATIONS:
                parts.append(ACTIVATIONS[spec.activation]())
            if spec.layer_norm:
                parts.append(nn.LayerNorm(other))
        self.linear = nn.Sequential(*parts)
        self.dropout = spec.dropout
        self.strength = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return what the projection sees, like x."""
        if self.strength == 0:
            return x
        changed = x.float()
        for index, part in enumerate(self.linear):
            if index and isinstance(part, nn.Linear):
                changed = dropout(changed, self.dropout, self.training)
            changed = part(changed)
        return (x.float() + self.strength * changed).to(x.dtype)

    @torch.no_grad()
    def begin(self, how: str, seed: int, name: str) -> None:
        """Draw the first weights, but zeros in what comes last, a layer or its norm, which leaves x as it is."""
        *_, last = self.linear
        layers = [part for part in self.linear if isinstance(part, nn.Linear)]
        for index, layer in enumerate(layers):
            chance = torch.Generator().manual_seed(derive(seed, 0, f"{name}.{index}", "start"))
            drawn = torch.empty(layer.weight.shape)
            STARTS[how](drawn, chance)
            layer.weight.copy_(drawn)
            layer.bias.zero_()
        for parameter in last.parameters():
            parameter.zero_()


class HypernetworkAdapter:
    """Networks before keys and values; see `contract.Adapter`."""

    def __init__(self, networks: Mapping[str, Residual], spec: Hypernetwork) -> None:
        self._networks = networks
        self._spec = spec

    def parameters(self) -> Sequence[tuple[str, Parameter]]:
        """Return the weights, named as in the file, by network."""
        return [
            (f"unet.{name}.{key}", parameter)
            for name, network in self._networks.items()
            for key, parameter in network.named_parameters()
        ]

    def state(self) -> dict[str, Tensor]:
        """Return ``unet.<width>.<0 or 1>.linear.<n>.weight`` and the like."""
        return {name: parameter.detach() for name, parameter in self.parameters()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over weights of the same layers."""
        take_over(self.state(), state)

    def export(self, key_map: KeyMap, name: str) -> dict[str, dict[str, Tensor]]:
        """Return one file, named as A1111's are inside."""
        return {f"{name}.safetensors": {key.removeprefix("unet."): tensor for key, tensor in self.state().items()}}

    def pickled(self, name: str) -> dict[str, dict[Any, Any]]:
        """Return the file that A1111 and ComfyUI read, by its name: they know hypernetworks in this format alone."""
        weights: dict[Any, Any] = {}
        for which, network in self._networks.items():  # keys before values
            width, state = int(which.partition(".")[0]), network.state_dict()
            # Where only sizes are asked for, weights have no values.
            own = {key: tensor if tensor.is_meta else tensor.cpu() for key, tensor in state.items()}
            weights.setdefault(width, []).append(own)
        # Dropout is told as none: it is over, and what is told would count as layers.
        about = {"step": 0, "name": name, "use_dropout": False, "activate_output": False, "last_layer_dropout": False}
        return {f"{name}.pt": {**weights, **about, **self._about()}}

    def summary(self) -> dict[str, str]:
        """Return what A1111's files say of themselves."""
        return {"ss_network_module": "hypernetwork", **{key: str(value) for key, value in self._about().items()}}

    def _about(self) -> dict[str, Any]:
        spec = self._spec
        return {
            "layer_structure": list(spec.layers),
            "activation_func": spec.activation,
            "is_layer_norm": spec.layer_norm,
            "weight_initialization": "".join(map(str.capitalize, spec.start.split("-"))),
        }

    def train(self, mode: bool) -> None:
        """Switch dropout."""
        for network in self._networks.values():
            network.train(mode)

    def disabled(self) -> AbstractContextManager[None]:
        """Let the projections see the text as it is."""
        return without(self)

    def set_strength(self, strength: float) -> None:
        """Scale what is added."""
        for network in self._networks.values():
            network.strength = strength

    def merge(self) -> None:
        """Refuse: what is added is no linear map of the base's weights.

        Raises:
            StepError: always.
        """
        raise StepError("a hypernetwork cannot be merged into a base; use it beside one")


class HypernetworkMethod:
    """Adds networks before keys and values of cross-attention."""

    def inject(self, base: Networks, spec: Hypernetwork, *, seed: int) -> HypernetworkAdapter:
        """Add fresh ones, float32, in the order of their names.

        Raises:
            RecipeError: the base has no cross-attention.
        """
        ((_, denoiser),) = base.modules.items()
        found = {path: module for path, module in denoiser.named_modules() if _is_cross_attention(path, module)}
        if not found:
            message = "hypernetwork needs cross-attention, which this base does not have; use another method"
            raise RecipeError([Problem(field="method.kind", message=message)])
        networks: dict[str, Residual] = {}
        device = next(denoiser.parameters()).device
        with torch.random.fork_rng(devices=[]):
            for path, module in sorted(found.items()):
                name = f"{module.in_features}.{KEYS[path.rpartition('.')[-1]]}"
                if name not in networks:
                    networks[name] = Residual(int(module.in_features), spec).to(device).eval()
                    networks[name].begin(spec.start, seed, name)
                module.register_forward_pre_hook(_before(networks[name]))
        return HypernetworkAdapter(dict(sorted(networks.items())), spec)

    def apply(
        self, pipeline: Any, base: Networks, spec: Hypernetwork, folder: Path, *, key_map: KeyMap, name: str
    ) -> Strength:
        """Add those of the file."""
        adapter = self.inject(base, spec, seed=0)
        state = load_file(folder / f"{name}.safetensors")
        try:
            adapter.load_state({f"unet.{key}": tensor for key, tensor in state.items()})
        except ValueError as error:
            message = f"{name}.safetensors has other layers than are made now; train it again: `doit -a {name}:train`"
            raise DataError(message) from error
        return adapter


def _is_cross_attention(path: str, module: Any) -> bool:
    parts = path.split(".")
    return len(parts) > 1 and parts[-2] == "attn2" and parts[-1] in KEYS and hasattr(module, "in_features")


def _before(network: Residual) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def change(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (network(inputs[0]), *inputs[1:])

    return change


METHOD = HypernetworkMethod()
