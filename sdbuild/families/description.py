"""What is known of a model family without loading anything: its parts, and how to recognise it. Light."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Part = Literal["index", "vae", "text", "denoiser", "schedule"]
"""What steps read of a base; each family says which components that is."""
PARTS: tuple[Part, ...] = get_args(Part)

Renaming = Callable[[Mapping[str, Any], str, Any], dict[str, Any]]
"""From a component's tensors, the prefix of their names and a network to the network's own names, or back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """The names of a component's tensors in its authors' layout; see `original`."""

    read: Renaming
    """From the authors' names to the network's own."""
    write: Renaming
    """And back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Original:
    """A checkpoint in the layout that the model's authors published: one file for all components."""

    marks: tuple[str, ...]
    """Tensors that every such file has; no other family's have the second."""
    components: Mapping[str, tuple[Names, str]]
    """What renames each component's tensors, and what their names begin with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """One family."""

    name: str
    """Its key in `FAMILIES`, and in `base.family` of a recipe."""
    title: str
    """For messages."""
    pipeline: str
    """Class that `model_index.json` names."""
    classes: Mapping[str, str | None]
    """Class of each component that it has, by its folder; None for any."""
    parts: Mapping[Part, tuple[str, ...]]
    """Components by what steps ask for."""
    optional: frozenset[str] = frozenset()
    """Components that a base may do without."""
    recognises: Callable[[Callable[[str], Mapping[str, Any]]], bool] = field(default=lambda config: True)
    """Tells bases of one pipeline class apart, from the configurations of their components by name."""
    geometry: bool = False
    """Whether the size of a picture and its crop are conditions."""
    refinable: bool = False
    """Whether a second model may finish its pictures."""
    original: Original

    def components(self, parts: Iterable[Part], there: Iterable[str]) -> tuple[str, ...]:
        """Components of some parts; optional ones only if they are there."""
        found = dict.fromkeys(name for part in parts for name in self.parts[part])
        absent = self.optional - set(there)
        return tuple(name for name in found if name not in absent)
