"""A base with an adapter: as it is trained, and as it draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdbuild import methods
from sdbuild.errors import DataError, Problem
from sdbuild.families.contract import Component, Denoiser, Family, TextEncoder
from sdbuild.methods.contract import Adapter, Networks, Strength
from sdbuild.methods.lora.spec import Lora
from sdbuild.methods.pipeline import load_lora
from sdbuild.methods.spec import Layered, MethodSpec
from sdbuild.training.precision import Precision, checkpoint_gradients


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A base with a fresh adapter in it."""

    denoiser: Denoiser
    text: TextEncoder | None
    """Where the text side changes; else conditions are read."""
    adapter: Adapter

    @property
    def networks(self) -> Sequence[nn.Module]:
        """Those that a training step runs."""
        return (self.denoiser.module, *(self.text.modules.values() if self.text else ()))


def precision_of(method: MethodSpec, *, compute: str, base: str | None) -> Precision:
    """Return the number formats of a training; a base that is itself trained is held in float32."""
    return Precision(compute=compute, base="float32" if method.trains_base else base)


def assemble(
    family: Family,
    method: MethodSpec,
    *,
    seed: int,
    precision: Precision,
    device: torch.device,
    gradient_checkpointing: bool = False,
) -> Model:
    """Load what a training step runs, and add an adapter to it."""
    denoiser = precision.load(family.load_denoiser, device)
    text = precision.load(family.load_text, device) if "text" in method.sides else None
    model = {denoiser.component: denoiser.module, **(text.modules if text else {})}
    precision.settle(model.values(), device)
    if gradient_checkpointing:
        checkpoint_gradients(model.values())
    adapter = methods.load(method.kind).inject(networks(method, family, model, text), method, seed=seed)
    return Model(denoiser=denoiser, text=text, adapter=adapter)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """An adapter that a recipe has made."""

    method: MethodSpec
    folder: Path
    name: str
    """Of the recipe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Other:
    """An adapter that is there in all pictures of a grid."""

    strength: float
    trained: Trained | None = None
    file: Path | None = None
    """Of a LoRA from elsewhere, where it is not `trained`."""


def apply(pipeline: Any, family: Family, own: Trained, others: Sequence[Other] = ()) -> Strength:
    """Add adapters to the family's pipeline; return the strength of the recipe's own.

    Raises:
        DataError: a file holds no LoRA for this base.
    """
    every = [Other(strength=1.0, trained=own), *others]
    order = sorted(range(len(every)), key=lambda place: _turn(every[place]))
    found: dict[int, Strength] = {}
    for place in order:
        other = every[place]
        if other.trained is not None:
            found[place] = _apply(pipeline, family, other.trained)
        elif other.file is not None:
            found[place] = _load_file(pipeline, other.file, f"file_{place}")
        found[place].set_strength(other.strength)
    return found[0]


def _turn(adapter: Other) -> int:
    """When to add it: first what looks for layers by their names, then LoRAs, which wrap the base's, then their kin."""
    if adapter.trained is None or isinstance(adapter.trained.method, Lora):
        return 1
    return 2 if isinstance(adapter.trained.method, Layered) else 0


def _apply(pipeline: Any, family: Family, trained: Trained) -> Strength:
    text = family.text_of(pipeline)
    model = {family.denoiser: getattr(pipeline, family.denoiser), **text.modules}
    method = trained.method
    return methods.load(method.kind).apply(
        pipeline,
        networks(method, family, model, text),
        method,
        trained.folder,
        key_map=family.key_map,
        name=trained.name,
    )


def _load_file(pipeline: Any, file: Path, name: str) -> Strength:
    try:
        return load_lora(pipeline, file, name)
    except (ValueError, KeyError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        message = f"holds no LoRA that this base takes ({reason}); sample.adapters wants LoRA files of the same family"
        raise DataError([Problem(file=str(file), message=message)]) from error


def networks(
    method: MethodSpec, family: Family, model: Mapping[Component, nn.Module], text: TextEncoder | None
) -> Networks:
    """Return what the method changes of a model's networks."""
    sides = method.sides
    denoiser = family.denoiser
    modules = {name: module for name, module in model.items() if ("denoiser" if name == denoiser else "text") in sides}
    return Networks(modules=modules, text=text if "text" in sides else None, family=family)
