"""Training of the base's own weights, all or some: what full, partial and DreamBooth fine-tunes share.

The parameters are the networks' own, in float32. The base's values of what is trained are kept once more, so that
predictions of the base can be had exactly: as many bytes as the trained parameters have, in the main memory, or beside
them where every step asks for the base's prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from sdbuild.errors import Problem, RecipeError
from sdbuild.families.contract import DTYPES, Component, Family, KeyMap
from sdbuild.methods.contract import Adapter, Networks
from sdbuild.methods.precision_loss import PrecisionLoss, cast_finite, measure
from sdbuild.methods.spec import KeptPrediction, WeightsSpec
from sdbuild.methods.state import take_over
from sdbuild.methods.targets import select_parameters

Named = Mapping[str, Parameter]
"""Parameters by component and name, such as ``unet.conv_in.weight``."""


class WeightsAdapter:
    """Networks of which some or all weights are trained."""

    def __init__(
        self,
        networks: Mapping[Component, nn.Module],
        named: Named,
        family: Family | None,
        *,
        save: torch.dtype,
        beside: bool = False,
    ) -> None:
        """Train some parameters, which hold the base's values still; `beside` keeps these on the same device."""
        self._networks = networks
        self._named = dict(sorted(named.items()))
        self._family = family
        self._save = save
        self._base = _copied(self._named, None if beside else "cpu")
        self._trained: dict[str, Tensor] | None = None
        """Where the strength is not 1."""
        self._held: dict[str, Tensor] = {}
        """The trained weights while the base's stand in their place."""
        for parameter in self._named.values():
            parameter.requires_grad_(True)

    def parameters(self) -> Sequence[tuple[str, Parameter]]:
        """Return what is trained, by name."""
        return list(self._named.items())

    def state(self) -> dict[str, Tensor]:
        """Return the trained weights, ``<component>.<path>``."""
        self._restore()  # Ctrl-C may have come at a bad moment
        return {name: parameter.detach() for name, parameter in self._named.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of an adapter that trains the same layers."""
        take_over(self.state(), state)

    def export(self, key_map: KeyMap, name: str) -> dict[str, dict[str, Tensor]]:
        """Return a whole checkpoint in the layout of the model's authors."""
        assert self._family is not None, "a whole checkpoint takes a whole base"
        return {f"{name}.safetensors": self._family.checkpoint(self._networks, self._save)}

    @property
    def precision_loss(self) -> PrecisionLoss | None:
        """Return what trained weights lose in the checkpoint; see `precision_loss.StoresHalfPrecision`."""
        precision = next(name for name, dtype in DTYPES.items() if dtype == self._save)
        rows = (
            (name.rpartition(".")[0], name, tensor, cast_finite(tensor, self._save))
            for name, tensor in self.state().items()
        )
        return measure(rows, precision)

    def summary(self) -> dict[str, str]:
        """Return nothing: a checkpoint says what it is without."""
        return {}

    def train(self, mode: bool) -> None:
        """Nothing has dropout."""

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Put the base's weights in the place of the trained ones; a graph from before has its weights afterwards."""
        try:
            for name, parameter in self._named.items():
                base = self._base[name]
                # By `data`, which autograd does not watch. Across devices by copies, for the GPU has no room for more.
                if parameter.device == base.device:
                    self._held[name] = parameter.data
                    parameter.data = base
                else:
                    self._held[name] = parameter.data.to(base.device)
                    parameter.data.copy_(base)
            yield
        finally:
            self._restore()

    def set_strength(self, strength: float) -> None:
        """Set the weights between those of the base and those that were trained."""
        if self._trained is None and strength != 1:
            self._trained = _copied(self._named)
        if self._trained is not None:
            blend(self._named, self._base, self._trained, strength)
        if strength == 1:
            self._trained = None

    def merge(self) -> None:
        """Forget the base: the weights are the networks' own already."""
        self._base = {}

    def _restore(self) -> None:
        for name, trained in self._held.items():
            parameter = self._named[name]
            if parameter.device == trained.device:
                parameter.data = trained
            else:
                parameter.data.copy_(trained)
        self._held = {}


class PipelineWeights:
    """Networks of a pipeline whose weights lie between those of its base and those of a checkpoint."""

    def __init__(self, named: Named, trained: Mapping[str, Tensor]) -> None:
        self._named = named
        self._base = _copied(named)
        self._trained = trained
        self.set_strength(1)

    def set_strength(self, strength: float) -> None:
        """Set the weights; 0 is the base exactly, 1 the checkpoint."""
        blend(self._named, self._base, self._trained, strength)


class OwnWeights:
    """Trains weights of the base itself."""

    def __init__(self, patterns: Callable[[Any], Sequence[str] | None] = lambda spec: None) -> None:
        """Train the layers that patterns name, which `patterns` takes from a spec; None is all of them."""
        self._patterns = patterns

    def inject(self, base: Networks, spec: WeightsSpec, *, seed: int) -> Adapter:
        """Unfreeze weights; the start is the base, whatever the seed."""
        named = _named(base.modules, self._patterns(spec))
        if any(parameter.dtype != torch.float32 for parameter in named.values()):
            message = f"{spec.kind} trains the base's own weights, which must be float32; remove it"
            raise RecipeError([Problem(field="train.base_precision", message=message)])
        often = isinstance(spec.preserved, KeptPrediction)
        return WeightsAdapter(base.modules, named, base.family, save=DTYPES[spec.save_precision], beside=often)

    def apply(
        self, pipeline: Any, base: Networks, spec: WeightsSpec, folder: Path, *, key_map: KeyMap, name: str
    ) -> PipelineWeights:
        """Read the trained networks from the checkpoint."""
        assert base.family is not None
        named = _named(base.modules, self._patterns(spec))
        found = base.family.read_checkpoint(folder / f"{name}.safetensors", base.modules)
        whole = {f"{component}.{path}": tensor for component, state in found.items() for path, tensor in state.items()}
        return PipelineWeights(named, {path: whole[path] for path in named})


@torch.no_grad()
def blend(named: Named, base: Mapping[str, Tensor], trained: Mapping[str, Tensor], strength: float) -> None:
    """Set parameters to base + strength · (trained - base), exactly so at 0 and 1."""
    for name, parameter in named.items():
        if strength in (0, 1):
            parameter.copy_((trained if strength else base)[name])
        else:
            start, end = (side[name].to(parameter.device, torch.float32) for side in (base, trained))
            parameter.copy_(torch.lerp(start, end, strength))


def _named(modules: Mapping[Component, nn.Module], patterns: Sequence[str] | None) -> dict[str, Parameter]:
    chosen = None if patterns is None else select_parameters(modules, patterns)
    return {
        f"{component}.{name}": parameter
        for component, network in modules.items()
        for name, parameter in network.named_parameters()
        if chosen is None or name in chosen[component]
    }


def _copied(named: Named, device: str | None = "cpu") -> dict[str, Tensor]:
    # Those without values, of which only the size is asked, stay where they are.
    return {
        name: parameter.detach().to("meta" if parameter.is_meta else device, copy=True)
        for name, parameter in named.items()
    }
