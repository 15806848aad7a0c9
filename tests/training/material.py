"""Inputs of a train step without the steps before it: random latents and texts, in the files that those write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sdbuild import families
from sdbuild.data.items import ItemStore, export, item_key
from sdbuild.data.records import CaptionRecord, write_captions, write_lines
from sdbuild.recipe.models import Train
from sdbuild.steps.contract import Inputs

SHAPES = ((4, 8, 8),)


@dataclass
class Listener:
    """A step's context that writes down what it is told."""

    folder: Path
    stop_at: int | None = None
    """Raise `error` when progress reaches this step."""
    error: BaseException = field(default_factory=lambda: RuntimeError("stopped"))
    told: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def items(self) -> Path:
        return self.folder / "items"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    @property
    def previous(self) -> Path:
        return self.folder / "previous"

    def progress(self, done: int, total: int, unit: str, **figures: float) -> None:
        self.told.append((done, figures))
        if self.stop_at is not None and done >= self.stop_at:
            raise self.error

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def make_inputs(
    folder: Path,
    base: Path,
    *,
    pictures: int = 6,
    holdout: int = 0,
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    text: bool = True,
    broken: int | None = None,
) -> Inputs:
    """Write captions, latents and texts of `pictures` records; the first `holdout` are held out.

    The latent of record `broken` is not a number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records, latents, texts = [], {}, {}
    latent_rows, text_rows = [], []
    for index in range(pictures):
        chance = torch.Generator().manual_seed(index)
        digest = item_key("picture", index=index)
        caption = f"picture number {index}"
        split: Any = "holdout" if index < holdout else "train"
        records.append(CaptionRecord(digest=digest, dataset=0, text=caption, origin="sidecar", split=split))
        key = item_key("latent", digest=digest)
        shape = shapes[index % len(shapes)]
        latents[key] = {"mean": torch.randn(shape, generator=chance), "logvar": torch.full(shape, -4.0)}
        if families.describe(base).geometry:
            latents[key]["geometry"] = torch.tensor([64, 64, 0, 0, 64, 64])
        if index == broken:
            latents[key]["mean"].fill_(torch.nan)
        latent_rows.append({"digest": digest, "flip": False, "key": key})
    for caption in ["", *(record.text for record in records)]:
        key = item_key("text", text=caption)
        chance = torch.Generator().manual_seed(int(key[:8], 16))
        texts[key] = {"hidden": torch.randn(77, 32, generator=chance)}
        text_rows.append({"text": caption, "key": key})
    write_captions(folder / "captions.jsonl", records)
    _write_items(folder / "latents", folder / "store", latents, sorted(latent_rows, key=lambda row: str(row["digest"])))
    _write_items(folder / "text", folder / "store", texts, sorted(text_rows, key=lambda row: str(row["text"])))
    return Inputs(
        project=folder,
        base=base,
        captions=folder / "captions.jsonl",
        latents=folder / "latents",
        text=folder / "text" if text else None,
    )


def _write_items(folder: Path, store: Path, items: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    filled = ItemStore(store / folder.name)
    filled.add(items)
    export(items, folder, [filled])
    write_lines(folder / "index.jsonl", rows)


def make_spec(*, method: Mapping[str, Any] | None = None, **train: Any) -> dict[str, Any]:
    """Return a train step's spec, as the plan writes it."""
    settings = {"steps": 6, "batch": 2, "learning_rate": 1e-2, "checkpoint_every": 1, **train}
    lora = {"kind": "lora", "rank": 2, "alpha": 2.0, "targets": "default", "text_encoder": False, "dropout": 0.0}
    return {
        "version": 1,
        "reads": {"base": "0" * 64},
        "name": "tiny",
        "datasets": [{"repeats": 1}],
        "method": {**lora, **(method or {})},
        "train": Train.model_validate(settings).model_dump(mode="json", by_alias=True),
    }
