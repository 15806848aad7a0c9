"""A base with an adapter: as it is trained, and as it draws."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sdbuild import methods
from sdbuild.errors import DataError, InputError, Problem, RecipeError
from sdbuild.families.contract import Component, Denoiser, Family, TextEncoder
from sdbuild.methods import elsewhere
from sdbuild.methods.contract import Adapter, Networks, Strength
from sdbuild.methods.hypernetwork.spec import Hypernetwork
from sdbuild.methods.lora.spec import Lora
from sdbuild.methods.pipeline import load_lora
from sdbuild.methods.pivotal.spec import Pivotal
from sdbuild.methods.spec import Layered, MethodSpec
from sdbuild.recipe.methods import method_of
from sdbuild.storage.headers import read_header
from sdbuild.training.optimizers import part_of
from sdbuild.training.precision import Precision, checkpoint_gradients

_NO_TEXT = (
    "is true, but method.targets names no module of a text encoder, so none would be trained; "
    "add some, such as self_attn.*, or remove it"
)


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


def untrained(method: MethodSpec, adapter: Adapter) -> frozenset[str]:
    """Parts that are to be trained and of which nothing is, as learning rates call them."""
    return frozenset(method.rated - {part_of(name) for name, _ in adapter.parameters()})


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
    if "text_encoder" in untrained(method, adapter):
        raise RecipeError([Problem(field="method.text_encoder", message=_NO_TEXT)])
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

    name: str
    """As the recipe has it."""
    strength: float
    trained: Trained | None = None
    file: Path | None = None
    """From elsewhere, where it is not `trained`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Addition:
    """How to add an adapter to a pipeline, and its turn."""

    turn: int
    """First comes what looks for layers by their names, then LoRAs, which wrap the base's, then what wraps any."""
    add: Callable[[], Strength]


def apply(pipeline: Any, family: Family, own: Trained, others: Sequence[Other] = ()) -> Strength:
    """Add adapters to the family's pipeline; return the strength of the recipe's own.

    Raises:
        DataError: one of the others does not go with this base.
    """
    additions = [_trained(pipeline, family, own)]
    for index, other in enumerate(others):
        with _blamed(index, other):
            additions.append(_other(pipeline, family, other))
    found: dict[int, Strength] = {}
    for place in sorted(range(len(additions)), key=lambda place: additions[place].turn):
        with _blamed(place - 1, others[place - 1]) if place else nullcontext():
            found[place] = additions[place].add()
        found[place].set_strength(others[place - 1].strength if place else 1.0)
    return found[0]


def _trained(pipeline: Any, family: Family, trained: Trained) -> _Addition:
    method, (model, text) = trained.method, _networks_of(pipeline, family)
    base = networks(method, family, model, text)
    apply = methods.load(method.kind).apply
    add = partial(apply, pipeline, base, method, trained.folder, key_map=family.key_map, name=trained.name)
    return _Addition(turn=_turn(method), add=add)


def _turn(method: MethodSpec) -> int:
    lora = method.lora if isinstance(method, Pivotal) else method
    if isinstance(lora, Lora) and lora.dora_axis == "input":
        return 2
    return 1 if isinstance(method, Lora) else 2 if isinstance(method, Layered) else 0


def _other(pipeline: Any, family: Family, other: Other) -> _Addition:
    if other.trained is not None:
        return _trained(pipeline, family, other.trained)
    assert other.file is not None
    method = method_in(other.file)
    if method is not None and method.words:
        raise DataError("has new words, which are not in this file; name the recipe that makes it")
    if isinstance(method, Hypernetwork):
        own = Trained(method=method, folder=other.file.parent, name=other.file.stem)
        return _trained(pipeline, family, own)
    model, _ = _networks_of(pipeline, family)
    parts = elsewhere.parts_of(load_file(other.file), model, family.key_map)
    if parts is None:  # names that diffusers knows
        return _Addition(turn=1, add=partial(load_lora, pipeline, other.file))
    return _Addition(turn=2, add=partial(elsewhere.add, parts, model))


def method_in(file: Path) -> MethodSpec | None:
    """Return the method that an adapter's file says it was made by; None for files of other tools."""
    spec = read_header(file).metadata.get("sdbuild.spec")
    return None if spec is None else method_of(json.loads(spec)["method"])


def _networks_of(pipeline: Any, family: Family) -> tuple[Mapping[Component, nn.Module], TextEncoder]:
    text = family.text_of(pipeline)
    return {family.denoiser: getattr(pipeline, family.denoiser), **text.modules}, text


@contextmanager
def _blamed(index: int, other: Other) -> Iterator[None]:
    """Say which of the other adapters is wrong, in words for people."""
    field = f"sample.adapters[{index}]"
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except InputError as error:
        told = (Problem(field=field, message=f"{other.name}: {each.message}") for each in error.problems)
        raise DataError(told) from error
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OSError, SafetensorError) as error:
        remedy = "name a LoRA, LoHa, LoKr or the like that was made for a base of the same family"
        raise DataError([Problem(field=field, message=f"{other.name} does not go with this base; {remedy}")]) from error


def networks(
    method: MethodSpec, family: Family, model: Mapping[Component, nn.Module], text: TextEncoder | None
) -> Networks:
    """Return what the method changes of a model's networks."""
    sides = method.sides
    denoiser = family.denoiser
    modules = {name: module for name, module in model.items() if ("denoiser" if name == denoiser else "text") in sides}
    return Networks(modules=modules, text=text if "text" in sides else None, family=family)
