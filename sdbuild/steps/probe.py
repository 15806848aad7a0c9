"""What `sdbuild probe` finds out, in a process of its own: predictions, and real steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from sdbuild import families
from sdbuild.data.records import CaptionRecord, ImageRecord, read_captions, read_images
from sdbuild.data.wanted import wanted_latents, wanted_texts
from sdbuild.families.contract import DTYPES
from sdbuild.methods.contract import Pickled
from sdbuild.methods.spec import Layered, MethodSpec, WeightsSpec
from sdbuild.recipe.methods import method_of
from sdbuild.steps.fit import MARGIN, shown
from sdbuild.steps.largest import Largest, largest_in, latent_item, shapes
from sdbuild.steps.prediction import Forecaster, Memory, Outline, changed, outline
from sdbuild.steps.shortage import remedies_of
from sdbuild.steps.trial import measure
from sdbuild.training.along import kept_steps
from sdbuild.training.checkpoint import KEPT
from sdbuild.training.machine import machine
from sdbuild.training.tensorfile import file_size

FULL = method_of({"kind": "full"})
"""All of the denoiser is trained."""
HEADER = 400
"""Bytes that an item takes in a shard besides its tensors."""
PNG = 2.0
"""Bytes a pixel of a picture takes, about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a recipe asks for, as its steps see it."""

    steps: Mapping[str, Mapping[str, Any]]
    """Their specs, by kind."""
    base: Path
    images: list[ImageRecord]
    captions: list[CaptionRecord]

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Recipe:
        """Read what a request names."""
        return cls(
            steps=request["steps"],
            base=Path(request["base"]),
            images=read_images(Path(request["images"])),
            captions=read_captions(Path(request["captions"])),
        )

    @property
    def train(self) -> Mapping[str, Any]:
        """Spec of the train step."""
        return self.steps["train"]

    @property
    def largest(self) -> Largest:
        """The batch that takes most memory."""
        return largest_in(self.images, self.train, self.base)


def run(request: Mapping[str, Any]) -> dict[str, Any]:
    """Answer a request of `build.probing`: a prediction, or what real steps took.

    Raises:
        SdbuildError: the recipe does not go with its base.
    """
    recipe = Recipe.of(request)
    if request["what"] == "measure":
        return asdict(measure(recipe.train, recipe.base, recipe.largest))
    return predict(recipe, torch.device(request["device"] or PartialState().device))


def predict(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Return memory by part for the recipe and its neighbours, and disk by step; bytes everywhere."""
    largest = recipe.largest
    made = outline(recipe.train, recipe.base)
    forecaster = Forecaster(recipe.base, largest, device)
    disk = list(_items(recipe, forecaster))
    data = sum(row["out"] for row in disk)
    forecaster = Forecaster(recipe.base, largest, device, data=data)
    memory = forecaster.memory(recipe.train)
    there = machine(device) if device.type == PartialState().device.type else None
    factor = families.load(recipe.base, weights=False).vae_factor
    return {
        "name": recipe.train["name"],
        "device": {
            "kind": device.type,
            "here": there is not None,
            "has": there and there.has,
            "free": there and there.free,
        },
        "bound": there and there.bound,
        "margin": MARGIN,
        "largest": {
            "width": largest.shape[2] * factor,
            "height": largest.shape[1] * factor,
            "records": largest.records,
        },
        "parameters": {"base": _count(made) - _trained(made), "trained": _trained(made)},
        "file": _file(method_of(recipe.train["method"])),
        "steps": recipe.train["train"]["steps"],
        "compiled": bool(recipe.train["train"].get("compile")),
        "settings": [_row("this recipe", {}, memory), *_neighbours(recipe.train, forecaster)],
        "disk": [*disk, *_outs(recipe, made, memory)],
        "measured": None,
    }


def _row(name: str, changes: Mapping[str, Any], memory: Memory) -> dict[str, Any]:
    return {"name": name, "changes": dict(changes), "memory": memory.parts(), "total": memory.total}


def _neighbours(spec: Mapping[str, Any], forecaster: Forecaster) -> Iterator[dict[str, Any]]:
    """Yield what other settings would take, each changed alone, and a full fine-tune."""
    train, method = spec["train"], method_of(spec["method"])
    other: dict[str, dict[str, Any]] = {}
    half = train["precision"] != "float32"
    other["precision"] = {"train.precision": "float32" if half else "bfloat16", "train.base_precision": None}
    if train.get("base_precision") != "nf4" and not method.trains_base:
        other["base"] = {"train.precision": train["precision"] if half else "bfloat16", "train.base_precision": "nf4"}
    kept = not train.get("gradient_checkpointing")
    other["checkpointing"] = {"train.gradient_checkpointing": kept}
    other["optimizer"] = {"train.optimizer": "adamw" if train["optimizer"] == "adamw-8bit" else "adamw-8bit"}
    smaller = next((each for each in remedies_of(spec) if "train.batch" in each.changes), None)
    if smaller is not None:
        other["batch"] = dict(smaller.changes)
    if "text" in method.sides and "text_encoder" in spec["method"]:
        other["text"] = {"method.text_encoder": False}
    for changes in other.values():
        differing = {key: value for key, value in changes.items() if _set(spec, key) != value}
        named = ", ".join(f"{key.partition('.')[2]}: {shown(value)}" for key, value in differing.items())
        memory = forecaster.memory_with(spec, changes)
        if memory is not None:
            yield _row(named, differing, memory)
    whole = {"method": FULL.stated(), "train.base_precision": None, "train.lora_plus_ratio": 1.0}
    yield _row("full fine-tune", whole, forecaster.memory(changed(spec, whole)))
    frugal = {**whole, "train.precision": "bfloat16", "train.gradient_checkpointing": True}
    frugal["train.optimizer"] = "adamw-8bit"
    name = "full fine-tune, bfloat16, adamw-8bit, checkpointing"
    yield _row(name, frugal, forecaster.memory(changed(spec, frugal)))


def _file(method: MethodSpec) -> dict[str, Any]:
    """What the size of the adapter's file goes by: its number format, and what adapts."""
    found = {"precision": method.save_precision} if isinstance(method, Layered | WeightsSpec) else {}
    return found | ({"targets": method.targets, "sides": sorted(method.sides)} if isinstance(method, Layered) else {})


def _set(spec: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return spec[section].get(name, False if name == "gradient_checkpointing" else None)


def _items(recipe: Recipe, forecaster: Forecaster) -> Iterator[dict[str, Any]]:
    """Disk that latents and texts take; each item lies in the item store too, and in DVC's cache."""
    family = families.load(recipe.base, weights=False)
    wanted = wanted_latents(recipe.images, recipe.steps["latents"], "")
    shape = shapes(recipe.base)
    size = drawn = 0
    if (prior := recipe.steps.get("prior")) is not None:
        side = prior["resolution"]
        pixels = prior["pictures"] * side**2
        yield _files("prior", prior["pictures"], round(pixels * PNG), store=3 * pixels)
        drawn = prior["pictures"] * (2 if recipe.steps["latents"]["flip"] else 1)
        size = drawn * _bytes(latent_item(family, Largest(shape=shape((side, side)), records=1, masked=False)))
    for item in wanted.values():
        masked = item.placement.record.mask is not None
        alone = Largest(shape=shape(item.placement.fit.bucket), records=1, masked=masked)
        size += _bytes(latent_item(family, alone))
    yield _files("latents", len(wanted) + drawn, size, store=size)
    if "text" in recipe.steps:
        texts = wanted_texts(recipe.captions, recipe.steps["text"], "")
        size = len(texts) * _bytes(forecaster.captions.item)
        yield _files("text", len(texts), size, store=size)


def _outs(recipe: Recipe, made: Outline, memory: Memory) -> Iterator[dict[str, Any]]:
    """Disk that adapters, checkpoints and samples take."""
    sizes = adapter_files(recipe, made)
    yield _files("adapter", len(sizes), sum(sizes.values())) | {"files": sizes}
    train = recipe.train["train"]
    every, last = train.get("save_every"), train["steps"]
    steps = [each for each in kept_steps(last, every, train.get("save_most")) if each < last] if every else []
    if steps:
        size = len(steps) * sum(sizes.values())
        yield _files("adapters", len(steps) * len(sizes), size, store=size)
    kept = KEPT * (memory.adapter + memory.optimizer)
    yield _files("checkpoints", KEPT, 0, store=kept) | {"passing": True}
    if (samples := recipe.steps.get("samples")) is not None:
        along = [step for step in steps if "every" in samples and step % samples["every"] == 0]
        count = len(samples["prompts"]) * len(samples["seeds"]) * (len(samples["strengths"]) + len(along))
        size = round(2 * count * samples["resolution"] ** 2 * PNG)  # each picture alone, and in the grid
        yield _files("samples", count, size)


def adapter_files(recipe: Recipe, made: Outline) -> dict[str, int]:
    """Bytes of the files that the method writes; where the base is trained, of a whole checkpoint."""
    family, method = families.load(recipe.base, weights=False), method_of(recipe.train["method"])
    if not isinstance(method, WeightsSpec):
        files = made.model.adapter.export(family.key_map, recipe.train["name"])
        sizes = {name: file_size(each, {}) for name, each in files.items()}
        if isinstance(made.model.adapter, Pickled):  # the same weights once more
            sizes |= dict.fromkeys(made.model.adapter.pickled(recipe.train["name"]), sum(sizes.values()))
        return sizes
    loaded = (family.load_vae(device="meta").module, made.model.denoiser.module)
    texts = family.load_text(device="meta").modules.values()
    numbers = sum(each.numel() for network in (*loaded, *texts) for each in network.parameters())
    return {f"{recipe.train['name']}.safetensors": numbers * DTYPES[method.save_precision].itemsize}


def _files(name: str, count: int, size: int, *, store: int = 0) -> dict[str, Any]:
    """One row: bytes below `build/`, the same in DVC's cache, and what lies below `.sdbuild/`."""
    return {"step": name, "count": count, "out": size, "cache": size, "private": store}


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return HEADER + sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _count(made: Outline) -> int:
    found = {id(each): each for network in made.model.networks for each in network.parameters()}
    return sum(each.numel() for each in (found | {id(each): each for _, each in made.trained}).values())


def _trained(made: Outline) -> int:
    return sum(parameter.numel() for _, parameter in made.trained)
