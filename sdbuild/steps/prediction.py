"""What a training will take, before there is anything to train: its networks are made on the device `meta`.

Everything goes through the contracts of families and methods, so that each of them is predicted without code of its
own: the networks are loaded without weights, the method puts its adapter into them, and one step is traced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdbuild import families
from sdbuild.errors import RecipeError
from sdbuild.families.contract import Family, TextEncoder
from sdbuild.methods.spec import KeptPrediction
from sdbuild.recipe.methods import method_of
from sdbuild.steps.largest import Largest, geometry
from sdbuild.steps.model import Model, assemble, precision_of
from sdbuild.training.activations import Live, Traced, elsewhere, trace
from sdbuild.training.examples import CACHE_BYTES
from sdbuild.training.machine import gives_back
from sdbuild.training.precision import Precision
from sdbuild.training.remembered import remembered

META = torch.device("meta")

FRAMEWORK = {"cpu": 36 << 20, "cuda": 48 << 20}
"""Bytes that libraries take once they compute, by device: code that is loaded late, tables, kernels' own buffers."""
SLACK = {"cpu": 0.65, "cuda": 0.0}
"""Of tensors too small to be mapped alone, what cannot be used again while others lie around it; by device. Where
time is traded for memory they are given back, see `machine.given_back`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of a training at the moment when it takes most."""

    base: int
    """Networks, frozen; and where they are what is trained, the copy of them that the main memory keeps."""
    adapter: int
    """What is trained, and its average."""
    gradients: int
    optimizer: int
    """What the optimizer remembers."""
    activations: int
    """What the backward pass needs of the forward pass, and all else that comes and goes."""
    libraries: int
    """What kernels and memory managers take for themselves."""
    data: int = 0
    """Latents and texts that are kept at hand, where the main memory is what trains."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """By name, in order."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """A training's networks on the device `meta`, with a fresh adapter in them."""

    model: Model
    trained: Sequence[tuple[str, nn.Parameter]]
    size: int
    """Bytes of all networks, the adapter included."""
    live: Live
    """Knows their tensors."""


class Forecaster:
    """Predicts trainings on one base; what they have in common is found out once."""

    def __init__(self, base: Path, largest: Largest, device: torch.device, *, data: int = 0) -> None:
        """Predict for a device, which need not be there, and so many bytes of latents and texts."""
        self._data = min(data, CACHE_BYTES) if device.type == "cpu" else 0
        self._base = base
        self._largest = largest
        self._device = device
        self._traced: dict[str, tuple[int, list[tuple[str, nn.Parameter]], Traced]] = {}

    def memory(self, spec: Mapping[str, Any]) -> Memory:
        """Return what the training of a train step's spec takes."""
        train = spec["train"]
        size, trained, step = self._step(spec)
        adapter = _bytes(parameter for _, parameter in trained)
        own = remembered(train["optimizer"], [parameter for _, parameter in trained])
        if step.gradients + step.tensors + step.kernels < adapter + own.passing:
            step = Traced(gradients=adapter, kernels=own.passing)  # the optimizer's step takes most
        kind, method = self._device.type, method_of(spec["method"])
        # Where every step asks for the base's prediction, its weights lie beside those that are trained.
        copied = method.trains_base and (kind == "cpu" or isinstance(method.preserved, KeptPrediction))
        slack = 0.0 if gives_back(train) else SLACK[kind] * step.small
        return Memory(
            base=size - adapter + (adapter if copied else 0),
            adapter=adapter * (2 if train["ema"] else 1),
            gradients=step.gradients,
            optimizer=own.kept,
            activations=step.tensors,
            libraries=step.kernels + FRAMEWORK[kind] + round(slack),
            data=self._data,
        )

    def memory_with(self, spec: Mapping[str, Any], changes: Mapping[str, Any]) -> Memory | None:
        """Return what other settings take; None where they do not go with the recipe's patterns of modules."""
        try:
            return self.memory(changed(spec, changes))
        except RecipeError:
            return None

    def _step(self, spec: Mapping[str, Any]) -> tuple[int, list[tuple[str, nn.Parameter]], Traced]:
        """Size of the networks, what is trained, and what a step takes; optimizers have no part in it."""
        train = spec["train"]
        records = min(self._largest.records, train["batch"])
        names = ("precision", "base_precision", "gradient_checkpointing", "accumulate")
        known = repr((spec["method"], spec.get("clip_skip"), [train.get(name) for name in names], records))
        if known not in self._traced:
            made = outline(spec, self._base)
            made.live.unfolds = self._device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
            trained = [parameter for _, parameter in made.trained]
            step = trace(lambda: self._pass(made, spec, records), made.live, trained)
            self._traced[known] = made.size, list(made.trained), step
        return self._traced[known]

    @cached_property
    def captions(self) -> Captions:
        """What the training sees of captions."""
        return Captions(families.load(self._base, weights=False))

    def resized(self, share: float) -> Forecaster:
        """The same for smaller pictures."""
        channels, *sides = self._largest.shape
        height, width = (max(2, round(side * share) // 2 * 2) for side in sides)
        smaller = replace(self._largest, shape=(channels, height, width))
        return Forecaster(self._base, smaller, self._device, data=self._data)

    def _pass(self, made: Outline, spec: Mapping[str, Any], records: int) -> None:
        """Forward and backward pass as the train step has them."""
        train = spec["train"]
        dtype = Precision(compute=train["precision"]).dtype
        for _ in range(min(train["accumulate"], 2)):
            latents = torch.empty(records, *self._largest.shape, device=META)
            noise, noisy = torch.empty_like(latents), torch.empty_like(latents)
            timesteps = torch.zeros(records, dtype=torch.int64, device=META)
            with elsewhere(self._device, dtype):  # texts too: checkpointing computes them again in the backward pass
                condition = self.captions.condition(records, made.model.text)
                cast = {name: each.to(dtype) if each.is_floating_point() else each for name, each in condition.items()}
                predicted = made.model.denoiser.predict(noisy.to(dtype), timesteps, cast)
                loss = (predicted.float() - noise).square().mean()
                loss.backward()  # type: ignore[no-untyped-call]


def outline(spec: Mapping[str, Any], base: Path) -> Outline:
    """Make what the train step makes, on the device `meta`.

    Args:
        spec: of the train step.
        base: folder of the base; its weights may be missing.
    """
    train, method = spec["train"], method_of(spec["method"])
    watched = _Watched(families.load(base, clip_skip=spec.get("clip_skip", 1), weights=False))
    family: Any = watched
    with torch.device(META):
        model = assemble(
            family,
            method,
            seed=train["seed"],
            precision=precision_of(method, compute=train["precision"], base=train.get("base_precision")),
            device=META,
            gradient_checkpointing=train.get("gradient_checkpointing", False),
        )
    model.adapter.train(True)
    trained, live = model.adapter.parameters(), watched.live
    for network in model.networks:
        live.know((*network.parameters(), *network.buffers()))
    live.know(parameter for _, parameter in trained)
    return Outline(model=model, trained=trained, size=live.alive, live=live)


class _Watched:
    """A family of which all is noted that it loads for captions: text encoders may hold more than what is adapted."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self.live = Live()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def load_text(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> TextEncoder:
        with self.live:
            return self._family.load_text(dtype, device)


class Captions:
    """Captions on the device `meta`: one stands for all, as they are padded to the same length."""

    def __init__(self, family: Family) -> None:
        """Encode it."""
        text = family.load_text(device="meta")
        self._tokens = {name: ids.to(META) for name, ids in text.tokenize("").items()}
        self._added = geometry(family)
        with torch.no_grad():
            found = text.condition(_repeated(self._tokens, 1))
        self.item = {name: each[0].float() for name, each in found.items()}
        """What the text step stores of it."""

    def condition(self, records: int, text: TextEncoder | None) -> dict[str, Tensor]:
        """Return the condition of a batch: as it was stored, or encoded now."""
        found = _repeated(self.item, records) if text is None else text.condition(_repeated(self._tokens, records))
        return {**found, **_repeated(self._added, records)}


def _repeated(items: Mapping[str, Tensor], records: int) -> dict[str, Tensor]:
    return {name: torch.stack([each] * records) for name, each in items.items()}


def changed(spec: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a train step's spec with other settings, by dotted key."""
    found = dict(spec)
    for key, value in changes.items():
        section, _, name = key.partition(".")
        found[section] = {**found[section], name: value} if name else value
    return found


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
