"""What every method offers to the rest of the house."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn import Parameter

from sdbuild.families.contract import Component, Family, KeyMap, TextEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Networks:
    """The networks of a base, or of a pipeline, that a method changes: those of its spec's `sides`."""

    modules: Mapping[Component, nn.Module]
    """Frozen."""
    text: TextEncoder | None = None
    """What runs the text encoders among them, with their tokenizers; None where they do not change."""
    family: Family | None = None
    """Of the base; None for networks by themselves, of which no whole checkpoint can be made."""


class Strength(Protocol):
    """An adapter in a pipeline."""

    def set_strength(self, strength: float) -> None:
        """Multiply the adapter's effect; 0 is the base exactly, 1 what was trained."""


class Adapter(Protocol):
    """What was injected into a base: the only thing that training changes."""

    def parameters(self) -> Sequence[tuple[str, Parameter]]:
        """Return what is trained, float32, in an order that depends on names alone."""

    def state(self) -> dict[str, Tensor]:
        """Return the weights by name; not copied."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over weights; raises `ValueError` unless names and shapes are exactly those of `state`."""

    def export(self, key_map: KeyMap, name: str) -> dict[str, dict[str, Tensor]]:
        """Return the files that the ecosystem reads, by file name; `name` is that of the recipe."""

    def summary(self) -> dict[str, str]:
        """Return header metadata on the method, e.g. ``ss_network_dim``."""

    def train(self, mode: bool) -> None:
        """Switch the adapter's dropout on or off."""

    def disabled(self) -> AbstractContextManager[None]:
        """Within it, predictions equal the base's exactly."""

    def set_strength(self, strength: float) -> None:
        """Multiply the adapter's effect; 0 is the base, 1 what was trained."""

    def merge(self) -> None:
        """Add the adapter to the base's weights; what was merged cannot train on."""


@runtime_checkable
class Staged(Protocol):
    """An adapter that does not change all of itself in every step, or keeps within limits."""

    def begin(self, step: int, steps: int) -> None:
        """Prepare for a step of so many: parameters that wait need no gradient."""

    def stepped(self) -> None:
        """Look after the weights, after each step of the optimizer."""


@runtime_checkable
class Pickled(Protocol):
    """An adapter of a kind that some programs read from pickles alone; sdbuild writes these and never reads them."""

    def pickled(self, name: str) -> dict[str, Any]:
        """Return by file name what is pickled beside the files of `export`; tensors are on the CPU."""


class Method(Protocol):
    """One way to adapt; specs are those of its kind, see `spec.MethodSpec`."""

    def inject(self, base: Networks, spec: Any, *, seed: int) -> Adapter:
        """Add a fresh adapter to the networks given, in place; the seed alone decides its start.

        Raises `RecipeError` for a target that matches nothing.
        """

    def apply(self, pipeline: Any, base: Networks, spec: Any, folder: Path, *, key_map: KeyMap, name: str) -> Strength:
        """Add a trained adapter to a diffusers pipeline, from the files that `Adapter.export` gave under that name.

        Several may be added one after the other, under names of their own.
        """
