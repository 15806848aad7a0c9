"""What a step is given and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What a step is given beside its spec: files and folders that it may read; those of other step kinds are None."""

    project: Path
    """Root of the project; dataset paths in specs are relative to it."""
    base: Path | None = None
    """Folder of the base model in diffusers layout."""
    images: Path | None = None
    captions: Path | None = None
    prior: Path | None = None
    latents: Path | None = None
    text: Path | None = None
    adapter: Path | None = None
    extracted: Path | None = None
    adapters: Path | None = None
    """Those that were kept on the way to it."""
    trackers: Path | None = None
    """Where trackers of all recipes write; it may not exist."""
    how: Mapping[str, Any] = field(default_factory=dict)
    """Settings that say how the step goes about; its result does not depend on them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Items:
    """How much a step covers and how much of it was really computed."""

    total: int
    computed: int


class Context(Protocol):
    """The step's connection to the build around it."""

    @property
    def items(self) -> Path:
        """Root of the local item stores, shared by all recipes; safe to delete."""

    @property
    def scratch(self) -> Path:
        """Folder of this recipe's step that survives a kill and goes when the result is recorded."""

    @property
    def previous(self) -> Path:
        """Folder with the last good outs of this recipe; may not exist."""

    def progress(self, done: int, total: int, unit: str, **figures: float) -> None:
        """Tell how far the step is; `figures` are shown beside it, e.g. ``loss=0.1``."""

    def warn(self, message: str) -> None:
        """Say something to the user once."""
