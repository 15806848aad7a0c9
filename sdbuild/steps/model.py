"""A base with an adapter: as it is trained, and as it draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdbuild import methods
from sdbuild.families.contract import Component, Denoiser, Family, TextEncoder
from sdbuild.methods.contract import Adapter, Networks, Strength
from sdbuild.methods.spec import MethodSpec
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


def apply(pipeline: Any, family: Family, method: MethodSpec, folder: Path, name: str) -> Strength:
    """Add a trained adapter to the family's pipeline."""
    text = family.text_of(pipeline)
    model = {family.denoiser: getattr(pipeline, family.denoiser), **text.modules}
    base = networks(method, family, model, text)
    return methods.load(method.kind).apply(pipeline, base, method, folder, key_map=family.key_map, name=name)


def networks(
    method: MethodSpec, family: Family, model: Mapping[Component, nn.Module], text: TextEncoder | None
) -> Networks:
    """Return what the method changes of a model's networks."""
    sides = method.sides
    denoiser = family.denoiser
    modules = {name: module for name, module in model.items() if ("denoiser" if name == denoiser else "text") in sides}
    return Networks(modules=modules, text=text if "text" in sides else None, family=family)
