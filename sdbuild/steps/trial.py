"""A few real steps of a training on random latents and texts, to measure what they take."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from sdbuild import families
from sdbuild.data.items import ItemStore, export, item_key
from sdbuild.data.records import CaptionRecord, write_captions, write_lines
from sdbuild.methods.spec import ClassPictures
from sdbuild.recipe.methods import method_of
from sdbuild.steps import train
from sdbuild.steps.contract import Inputs
from sdbuild.steps.largest import Largest, latent_item
from sdbuild.steps.prediction import Captions, changed, outline
from sdbuild.training.machine import RESIDENT, forget_peak, peak, process_memory

STEPS = 3
"""In the first one the optimizer begins to remember; the last ones are timed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What real steps took."""

    memory: int
    """Bytes at most, loading left out: of the GPU, or of the main memory beyond what the libraries take."""
    loading: int
    """Bytes at most before the first step."""
    seconds: float
    """A step."""


@dataclass(kw_only=True)
class Watch:
    """Context of a train step that watches memory and time."""

    items: Path
    scratch: Path
    previous: Path
    device: torch.device
    before: int = 0
    """Bytes of the main memory that were taken before."""
    loading: int = 0
    times: list[tuple[int, float]] = field(default_factory=list)
    """Steps done, and when."""

    def progress(self, done: int, total: int, unit: str, **figures: float) -> None:
        """Note the time; before the first step, begin to watch anew."""
        self.times.append((done, time.monotonic()))
        if done == 0:
            self.loading = self.peak()
            forget_peak(self.device)

    def warn(self, message: str) -> None:
        """Nobody has to know."""

    def peak(self) -> int:
        """Bytes that were taken at most, beyond those of before."""
        return max(0, peak(self.device) - self.before)

    @property
    def seconds(self) -> float:
        """Time of a step, without the first if others were seen."""
        seen = [(done, at) for done, at in self.times if done > 0]
        first, last = (seen if len(seen) > 1 else self.times)[0], self.times[-1]
        return (last[1] - first[1]) / (last[0] - first[0])


def measure(spec: Mapping[str, Any], base: Path, largest: Largest) -> Measured:
    """Take real steps with the base's weights, as the train step takes them.

    Args:
        spec: of the train step.
        base: folder of the base.
        largest: the batch to take.
    """
    device = PartialState().device
    with tempfile.TemporaryDirectory(prefix="sdbuild-probe-") as name:
        folder = Path(name)
        inputs = _inputs(spec, base, largest, folder)
        outline(spec, base)  # imports all that is needed
        watch = Watch(items=folder, scratch=folder / "scratch", previous=folder / "previous", device=device)
        (folder / "out").mkdir()
        watch.before = 0 if device.type == "cuda" else process_memory(RESIDENT)
        forget_peak(device)
        train.run(_shortened(spec, largest), inputs, folder / "out", watch)
        return Measured(memory=watch.peak(), loading=watch.loading, seconds=watch.seconds)


def _shortened(spec: Mapping[str, Any], largest: Largest) -> dict[str, Any]:
    """The spec with a few steps on one dataset."""
    changes = {
        "steps": STEPS,
        "warmup": 0,
        "batch": largest.records,
        "processes": 1,
        "checkpoint_every": STEPS,
        "caption_dropout": 0.0,
        **dict.fromkeys(("validate_every", "early_stop", "save_every", "save_most")),
    }
    alone = {**spec, "datasets": [{"repeats": 1}], "reads": {"base": "", **spec.get("reads", {})}}
    return changed(alone, {f"train.{key}": value for key, value in changes.items()})


def _inputs(spec: Mapping[str, Any], base: Path, largest: Largest, folder: Path) -> Inputs:
    """Write as many random items as a step has records."""
    family = families.load(base, clip_skip=spec.get("clip_skip", 1))
    captions = Captions(family)
    chance = torch.Generator().manual_seed(0)
    count = largest.records * spec["train"]["accumulate"]
    method = method_of(spec["method"])
    said = " ".join(("picture", *method.words))
    records = [
        CaptionRecord(digest=f"{n:064x}", dataset=0, text=f"{said} {n}", origin="sidecar", split="train")
        for n in range(count)
    ]
    write_captions(folder / "captions.jsonl", records)

    def write(kind: str, tensors: Mapping[str, Tensor], rows: list[dict[str, Any]]) -> Path:
        store = ItemStore(folder / "store" / kind)
        keys = [item_key(kind, number=number) for number in range(len(rows))]
        random = {name: torch.randn(each.shape, generator=chance).to(each.dtype) for name, each in tensors.items()}
        store.fill((key, random) for key in keys)
        export(keys, folder / kind, [store])
        rows = [{**row, "key": key} for row, key in zip(rows, keys, strict=True)]
        write_lines(folder / kind / "index.jsonl", rows)
        return folder / kind

    texts = None
    if "text" not in method.sides:
        said_of = [record.text for record in records] + ([] if method.preserved is None else [method.preserved.caption])
        texts = write("text", captions.item, [{"text": text} for text in said_of])
    rows: list[dict[str, Any]] = [{"digest": record.digest, "flip": False} for record in records]
    if isinstance(method.preserved, ClassPictures):
        rows += [{**row, "prior": True} for row in rows]
    latents = write("latents", latent_item(family, largest), rows)
    return Inputs(project=folder, base=base, captions=folder / "captions.jsonl", latents=latents, text=texts)
