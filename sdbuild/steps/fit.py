"""Whether a training fits into a device's memory, and what would make it fit."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from sdbuild import families
from sdbuild.data.records import read_images
from sdbuild.errors import StepError
from sdbuild.families.description import Part
from sdbuild.families.layout import component_files
from sdbuild.recipe.methods import method_of
from sdbuild.steps.largest import Largest, largest_in
from sdbuild.steps.prediction import Forecaster, Memory, changed
from sdbuild.steps.shortage import remedies_of
from sdbuild.training.machine import Machine, machine

MARGIN = 0.15
"""Share by which predictions may be wrong."""
SWITCH = "SDBUILD_MEMORY_CHECK"
"""Environment variable; `off` trains whatever the prediction says."""
COPIES = {False: 3, True: 6}
"""Of the networks' files: what weights in float32, adapter, gradients and optimizer take at most, without and with
training of the base itself; adapters of very high rank excepted."""
SMALLER = (0.75, 0.5)
"""Shares of the resolution that are tried."""


def check(
    spec: Mapping[str, Any], base: Path, largest: Largest, device: torch.device, warn: Callable[[str], None]
) -> None:
    """Refuse a training that cannot fit, and warn of one that may not.

    Args:
        spec: of the train step.
        base: folder of the base.
        largest: the batch that takes most memory.
        device: that is to train.
        warn: is told what may go wrong.

    Raises:
        StepError: even if the prediction is too high by its margin, the device has too little.
    """
    there = machine(device)
    if there is None or os.environ.get(SWITCH) == "off" or _guess(spec, base, largest) <= there.free:
        return
    forecaster = Forecaster(base, largest, device)
    memory = forecaster.memory(spec)
    if memory.total <= there.free:
        return
    where = "GPU" if there.kind == "cuda" else "machine"
    amounts = (
        f"about {gigabytes(memory.total)} GB of memory, and this {where} has {gigabytes(there.has)} GB, "
        f"of which {gigabytes(there.free)} GB are free"
    )
    if (1 - MARGIN) * memory.total <= there.bound:
        warn(f"training takes {amounts}; it may run out (`sdbuild probe {spec['name']}` says what takes how much)")
        return
    helps = [f"  {line}" for line in helpful(spec, forecaster, there)]
    raise StepError(f"training cannot fit: it takes {amounts}", *helps, f"{SWITCH}=off trains all the same")


def check_before(spec: Mapping[str, Any], base: Path, images: Path, warn: Callable[[str], None]) -> None:
    """The same before there are latents, from `images.jsonl`."""
    check(spec, base, largest_in(read_images(images), spec, base), PartialState().device, warn)


def _guess(spec: Mapping[str, Any], base: Path, largest: Largest) -> float:
    """Bytes that the training does not exceed, from the size of the files alone: most need no prediction.

    Networks of all families have kept less than 1.4e-4 of their size for each place of a latent; three times that is
    allowed here, and a little for networks that are small.
    """
    method = method_of(spec["method"])
    parts: list[Part] = ["denoiser", "text"] if "text" in method.sides else ["denoiser"]
    files = (file for name in families.components(base, parts) for file in component_files(base, name))
    size = sum(file.stat().st_size for file in files)
    places = largest.records * math.prod(largest.shape[1:])
    return COPIES[method.trains_base] * size + places * (4e-4 * size + 1e5)


def helpful(spec: Mapping[str, Any], forecaster: Forecaster, there: Machine) -> list[str]:
    """Say which settings make a training fit, from the cheapest on: each by itself, or several together."""

    def fits(memory: Memory) -> bool:
        return memory.total <= there.bound

    found = []
    for remedy in remedies_of(spec):
        if remedy.changes:
            memory = forecaster.memory_with(spec, remedy.changes)
            if memory is not None and fits(memory):
                found.append(f"{remedy.says}: {gigabytes(memory.total)} GB")
        else:
            for share in SMALLER:
                memory = forecaster.resized(share).memory(spec)
                if fits(memory):
                    found.append(f"images.resolution: {share:.0%} of it: {gigabytes(memory.total)} GB")
                    break
    if found:
        return ["each of these makes it fit, from the cheapest on:", *found]
    together = dict(spec)
    settings = []
    for remedy in remedies_of(spec):
        memory = forecaster.memory_with(together, remedy.changes) if remedy.changes else None
        if memory is not None:
            together = changed(together, remedy.changes)
            settings += [f"{key}: {shown(value)}" for key, value in remedy.changes.items()]
            if fits(memory):
                return [f"together these make it fit ({gigabytes(memory.total)} GB):", *dict.fromkeys(settings)]
    return ["no settings make it fit; choose a smaller base, a lower images.resolution, or another machine"]


def gigabytes(size: float) -> str:
    """Write bytes as gigabytes."""
    return f"{size / 1e9:.2g}" if size < 1e10 else f"{size / 1e9:.0f}"


def shown(value: Any) -> str:
    """Write a setting as recipes do."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(each)}" for key, each in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
