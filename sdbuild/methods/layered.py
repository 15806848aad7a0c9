"""What adapters share that change layers of a base one by one: names, weights, files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from torch import Tensor
from torch.nn import Parameter

from sdbuild.errors import DataError, StepError
from sdbuild.families.contract import DTYPES, Component, KeyMap
from sdbuild.methods.precision_loss import PrecisionLoss, cast_finite, measure
from sdbuild.methods.state import take_over

Layer = TypeVar("Layer")
Place = tuple[Component, str]
"""A network, and a module's path in it."""


class LayeredAdapter(ABC, Generic[Layer]):
    """Something in each of a number of layers; see `contract.Adapter`."""

    def __init__(self, layers: Mapping[Place, Layer], summary: Mapping[str, str]) -> None:
        self.layers = dict(sorted(layers.items()))
        self._summary = dict(summary)
        self.precision_loss: PrecisionLoss | None = None
        """See `precision_loss.StoresHalfPrecision`."""

    @abstractmethod
    def parts(self, layer: Layer) -> Mapping[str, Parameter]:
        """Parameters of one layer, by name."""

    def parameters(self) -> Sequence[tuple[str, Parameter]]:
        """Return ``<component>.<path>.<name>`` and the parameter, of all layers."""
        named = {
            f"{component}.{path}.{name}": parameter
            for (component, path), layer in self.layers.items()
            for name, parameter in self.parts(layer).items()
        }
        return sorted(named.items())

    def state(self) -> dict[str, Tensor]:
        """Return the weights by the names of the parameters."""
        return {name: parameter.detach() for name, parameter in self.parameters()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of an adapter with the same layers and sizes."""
        take_over(self.state(), state)

    def summary(self) -> dict[str, str]:
        """Return what readers of kohya's files show."""
        return dict(self._summary)

    def saved(self, files: Mapping[str, Mapping[str, Tensor]], precision: str) -> dict[str, dict[str, Tensor]]:
        """Bring files to a number format, and note what the first loses by that."""
        found = {name: saved(file, precision) for name, file in files.items()}
        (name, first), *_ = files.items()
        rows = ((key.partition(".")[0], key, tensor, found[name][key]) for key, tensor in first.items())
        self.precision_loss = measure(rows, precision)
        return found

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Leave every layer as in the base."""
        self.enable(False)
        try:
            yield
        finally:
            self.enable(True)

    @abstractmethod
    def enable(self, on: bool) -> None:
        """Switch what was added on or off, in all layers."""


def check_mergeable(weights: Iterable[Tensor]) -> None:
    """Refuse what nothing can be added to.

    Raises:
        StepError: a weight is quantised.
    """
    if not all(weight.is_floating_point() for weight in weights):
        raise StepError("an adapter cannot be merged into quantised weights; load the base in another format")


def saved(file: Mapping[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Bring a file's tensors to a number format, but for those that it cannot hold, and alphas."""
    if precision == "float32":
        return dict(file)
    return {name: cast_finite(tensor, DTYPES[precision]) if tensor.dim() else tensor for name, tensor in file.items()}


def file_of(layers: Mapping[Place, Mapping[str, Tensor]], key_map: KeyMap) -> dict[str, Tensor]:
    """Return what a file holds in kohya's and LyCORIS' names, from the tensors of each layer by the ends of names."""
    return {
        f"{key_map.kohya(*place)}.{end}": tensor for place, tensors in layers.items() for end, tensor in tensors.items()
    }


def in_file(file: Mapping[str, Tensor], places: Sequence[Place], key_map: KeyMap) -> dict[Place, dict[str, Tensor]]:
    """Undo `file_of`.

    Raises:
        DataError: the file has nothing for one of the layers.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in file.items():
        name, _, end = key.partition(".")
        found.setdefault(name, {})[end] = tensor
    names = {place: key_map.kohya(*place) for place in places}
    if missing := sorted(set(names.values()) - found.keys()):
        raise DataError(f"the adapter has no {missing[0]}: it belongs to another base, or to other settings")
    return {place: found[name] for place, name in names.items()}
