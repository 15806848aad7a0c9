"""Layers of a base with something added, and the adapters and methods that are made of them.

PEFT's layers of the same names cannot be used: those of LoHa and LoKr need weights that are not quantised, its OFT
turns inputs where files turn outputs, its (IA)³ scales biases where readers of files scale weights alone, and the last
two have no strength. All layers here see the base through what it computes, so it may be held in any format.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import Parameter

from sdbuild.data.sampler import derive
from sdbuild.families.contract import KeyMap
from sdbuild.methods.contract import Networks, Strength
from sdbuild.methods.layered import LayeredAdapter, Place, check_mergeable, file_of, in_file
from sdbuild.methods.spec import Layered, Ranked, Size
from sdbuild.methods.targets import by_pattern, innermost, select


class Layer(nn.Module):
    """A linear layer or convolution, and what is added to it; parameters are float32."""

    def __init__(self, base: nn.Module, spec: Layered, *, path: str, size: Size) -> None:
        super().__init__()
        self.base_layer = base
        self.strength = 1.0
        self.on = True
        self.merged = False
        self.training = False
        self.module_dropout = spec.module_dropout
        self.dropout = spec.dropout if isinstance(spec, Ranked) else 0.0
        self.size = size

    @property
    def inner(self) -> Any:
        """The base's own layer, below other adapters."""
        return innermost(self.base_layer)

    @property
    def weight(self) -> Tensor:
        """Of the base, which some networks ask for its type."""
        found: Tensor = self.inner.weight
        return found

    @property
    def bias(self) -> Tensor | None:
        """Of the base."""
        found: Tensor | None = self.inner.bias
        return found

    @property
    def in_features(self) -> int:
        """Of a linear layer; pipelines ask for it."""
        return int(self.inner.in_features)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the base's weight, also where that is packed: [out, in] or [out, in, height, width]."""
        inner = self.inner
        if isinstance(inner, nn.Linear):
            return inner.out_features, inner.in_features
        return inner.out_channels, inner.in_channels // inner.groups, *inner.kernel_size

    @property
    def axis(self) -> int:
        """Along which channels lie in inputs and outputs."""
        return -1 if len(self.shape) == 2 else 1

    def add(self, name: str, *shape: int) -> None:
        """Add a parameter, without values yet."""
        self.register_parameter(name, Parameter(torch.empty(shape, device=self.weight.device, dtype=torch.float32)))

    @property
    def own(self) -> dict[str, Parameter]:
        """The parameters that were added."""
        return {name: parameter for name, parameter in self._parameters.items() if parameter is not None}

    @abstractmethod
    def start(self, chance: torch.Generator) -> None:
        """Give the parameters values with which nothing changes."""

    @abstractmethod
    def adapted(self, x: Tensor, strength: Tensor | float) -> Tensor:
        """Return the layer's output with what was added."""

    @abstractmethod
    def change(self) -> tuple[Tensor, Tensor | None]:
        """Return what is added to weight and bias by merging, at strength 1."""

    def filed(self) -> dict[str, Tensor]:
        """Return what a file holds of it, by the ends of names in LyCORIS' files."""
        return {name: parameter.detach() for name, parameter in self.own.items()}

    @torch.no_grad()
    def take(self, filed: Mapping[str, Tensor]) -> None:
        """Undo `filed`."""
        for name, parameter in self.own.items():
            parameter.copy_(filed[name])

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute as the base does, and with what was added where that is on."""
        if not self.on or self.merged or self.strength == 0:
            found: Tensor = self.base_layer(x, *args, **kwargs)
            return found
        strength: Tensor | float = self.strength
        if self.training and self.module_dropout:
            strength = strength * (torch.rand((), device=x.device) >= self.module_dropout)
        return self.adapted(x, strength)

    def dropped(self, x: Tensor) -> Tensor:
        """Inputs of what was added, with dropout while training."""
        return F.dropout(x, self.dropout, self.training)

    def applied(self, x: Tensor, weight: Tensor) -> Tensor:
        """Put inputs through a weight in place of the base's, without bias."""
        inner = self.inner
        weight = weight.to(x.dtype)
        if isinstance(inner, nn.Linear):
            return F.linear(x, weight)
        return F.conv2d(x, weight, None, inner.stride, inner.padding, inner.dilation, inner.groups)

    def without_bias(self, outputs: Tensor) -> Tensor:
        """What the base's weight alone gives."""
        return outputs if self.bias is None else outputs - along(self.bias, outputs, self.axis)

    @torch.no_grad()
    def merge(self) -> None:
        """Add it to the base's weights, which are not quantised."""
        weight = self.weight
        change, of_bias = self.change()
        weight += (self.strength * change).to(weight.dtype)
        if of_bias is not None and self.bias is not None:
            self.bias.add_((self.strength * of_bias).to(weight.dtype))
        self.merged = True


class WeightLayer(Layer):
    """A layer to whose weight a product is added."""

    @abstractmethod
    def product(self) -> Tensor:
        """Return it, scaled, in the shape of the weight."""

    def adapted(self, x: Tensor, strength: Tensor | float) -> Tensor:
        """Put the inputs through both weights."""
        base: Tensor = self.base_layer(x)
        return base + strength * self.applied_product(self.dropped(x)).to(base.dtype)

    def applied_product(self, x: Tensor) -> Tensor:
        """Put inputs through the product."""
        return self.applied(x, self.product())

    def change(self) -> tuple[Tensor, Tensor | None]:
        """Return the product."""
        return self.product(), None

    def filed(self) -> dict[str, Tensor]:
        """Add alpha to the factors."""
        return super().filed() | {"alpha": torch.tensor(self.size.alpha)}


def along(vector: Tensor, other: Tensor, axis: int) -> Tensor:
    """Bring a vector to another tensor's type, and to its axes, of which it has one."""
    shape = [1] * other.dim()
    shape[axis] = -1
    return vector.to(other.dtype).view(shape)


def unpacked(layer: Layer) -> Tensor:
    """Weight of the base, also where it is quantised, or outlined as such on the device `meta`."""
    outlined: Callable[[], Tensor] | None = getattr(layer.inner, "unpacked", None)
    found: Tensor = outlined() if outlined is not None else dequantize_module_weight(layer.inner)
    return found.detach()


def base_weight(layer: Layer) -> Tensor:
    """Weight of the base in float32, also where it is quantised."""
    return unpacked(layer).float()


class LayersAdapter(LayeredAdapter[Layer]):
    """An adapter of such layers; see `contract.Adapter`."""

    def __init__(self, layers: Mapping[Place, Layer], summary: Mapping[str, str], precision: str = "float32") -> None:
        """Hold layers that are in place; files are written in the precision given."""
        super().__init__(layers, summary)
        self._precision = precision

    def parts(self, layer: Layer) -> Mapping[str, Parameter]:
        """Parameters that were added to a layer."""
        return layer.own

    def export(self, key_map: KeyMap, name: str) -> dict[str, dict[str, Tensor]]:
        """Return one file, in LyCORIS' names."""
        file = file_of({place: layer.filed() for place, layer in self.layers.items()}, key_map)
        return self.saved({f"{name}.safetensors": file}, self._precision)

    def read(self, file: Mapping[str, Tensor], key_map: KeyMap) -> None:
        """Take over what `export` has written."""
        for place, tensors in in_file(file, list(self.layers), key_map).items():
            self.layers[place].take(tensors)

    def train(self, mode: bool) -> None:
        """Switch dropout."""
        for layer in self.layers.values():
            layer.training = mode

    def enable(self, on: bool) -> None:
        """Switch what was added."""
        for layer in self.layers.values():
            layer.on = on

    def set_strength(self, strength: float) -> None:
        """Scale what was added."""
        for layer in self.layers.values():
            layer.strength = strength

    def merge(self) -> None:
        """Add it to the base's weights.

        Raises:
            StepError: some are quantised; none was changed.
        """
        check_mergeable(layer.weight for layer in self.layers.values())
        for layer in self.layers.values():
            layer.merge()


Kind = TypeVar("Kind", bound=Layered)


class LayersMethod(Generic[Kind]):
    """A method of such layers; see `contract.Method`."""

    def __init__(self, make: Callable[..., Layer], arguments: Callable[[Kind], Mapping[str, Any]]) -> None:
        """Use a class of layers for specs of this kind, and what LyCORIS calls the algorithm and its settings."""
        self._make = make
        self._arguments = arguments

    def inject(self, base: Networks, spec: Kind, *, seed: int) -> LayersAdapter:
        """Wrap all targets."""
        return LayersAdapter(wrapped(self._make, base, spec, seed), self._summary(spec), spec.save_precision)

    def apply(self, pipeline: Any, base: Networks, spec: Kind, folder: Path, *, key_map: KeyMap, name: str) -> Strength:
        """Wrap the pipeline's layers, and read the weights from the file that others read too."""
        adapter = self.inject(base, spec, seed=0)
        adapter.read(load_file(folder / f"{name}.safetensors"), key_map)
        return adapter

    def _summary(self, spec: Kind) -> dict[str, str]:
        arguments = {key: str(value) for key, value in self._arguments(spec).items()}
        said = {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps(arguments)}
        if isinstance(spec, Ranked):
            said |= {"ss_network_dim": str(spec.rank), "ss_network_alpha": str(spec.alpha)}
        return said


def wrapped(make: Callable[..., Layer], base: Networks, spec: Layered, seed: int) -> dict[Place, Layer]:
    """Put layers with a fresh start around those of networks that a spec targets."""
    layers: dict[Place, Layer] = {}
    for (component, path), size in sizes(select(base.modules, spec.targets), spec).items():
        network = base.modules[component]
        layer = make(network.get_submodule(path), spec, path=path, size=size)
        with torch.no_grad():
            layer.start(torch.Generator().manual_seed(derive(seed, 0, f"{component}.{path}", "start")))
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, layer)
        layers[component, path] = layer
    return layers


def sizes(chosen: Mapping[Any, list[str]], spec: Layered) -> dict[Place, Size]:
    """Rank and scale of each chosen module, by the patterns of the spec; 1 and 1 for methods without ranks.

    Raises:
        RecipeError: a pattern fits none of them.
    """
    places = [(component, path) for component, paths in chosen.items() for path in paths]
    if not isinstance(spec, Ranked):
        return dict.fromkeys(places, Size(rank=1, alpha=1.0))
    parts = [(part.modules, spec.size(part.rank, part.alpha)) for part in spec.parts]
    return dict.fromkeys(places, spec.size()) | by_pattern(chosen, parts, "method.parts")


def uniform(parameter: Tensor, bound: float, chance: torch.Generator) -> None:
    """Fill with numbers within ±bound, drawn on the CPU."""
    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=chance))


def normal(parameter: Tensor, deviation: float, chance: torch.Generator) -> None:
    """Fill with normal numbers, drawn on the CPU."""
    parameter.copy_(torch.empty(parameter.shape).normal_(0, deviation, generator=chance))
