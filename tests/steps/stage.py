"""A stage for single steps: a project with pictures, and a context that remembers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdbuild.data.pictures import open_picture, pixel_digest
from sdbuild.data.records import CaptionRecord, ImageRecord, write_captions, write_images
from sdbuild.steps.contract import Inputs, Items


@dataclass
class Stage:
    """One project; `run` puts a step's outs under `build`, as the worker does."""

    project: Path
    base: Path
    warnings: list[str] = field(default_factory=list)
    told: list[tuple[int, int, str]] = field(default_factory=list)
    runs: int = 0

    @property
    def items(self) -> Path:
        return self.project / ".sdbuild/items"

    @property
    def scratch(self) -> Path:
        return self.project / ".sdbuild/scratch"

    @property
    def previous(self) -> Path:
        return self.project / f"build-{self.runs - 1}"

    def progress(self, done: int, total: int, unit: str, **figures: float) -> None:
        self.told.append((done, total, unit))

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def run(self, module: Any, spec: Mapping[str, Any], **inputs: Any) -> tuple[Items, Path]:
        """Run a step; return its items and the folder with its outs."""
        self.runs += 1
        out = self.project / f"build-{self.runs}"
        out.mkdir(parents=True)
        self.told.clear()
        base = inputs.pop("base", self.base)
        return module.run(spec, Inputs(project=self.project, base=base, **inputs), out, self), out


def write_records(project: Path, pictures: Sequence[Path], *, bucket: tuple[int, int] | None = None) -> Path:
    """Write `images.jsonl` for pictures of a project, uncropped unless a bucket says otherwise."""
    rows = []
    for path in pictures:
        image = open_picture(path)
        rows.append(
            ImageRecord(
                path=path.relative_to(project).as_posix(),
                dataset=0,
                digest=pixel_digest(image),
                width=image.width,
                height=image.height,
                bucket=bucket or image.size,
                resize=image.size,
                crop=(0, 0),
                split="train",
            )
        )
    write_images(project / "images.jsonl", rows)
    return project / "images.jsonl"


def write_texts(project: Path, texts: Sequence[str]) -> Path:
    """Write `captions.jsonl` with some captions."""
    rows = [
        CaptionRecord(digest=f"{index:064x}", dataset=0, text=text, origin="sidecar", split="train")
        for index, text in enumerate(texts)
    ]
    write_captions(project / "captions.jsonl", rows)
    return project / "captions.jsonl"
