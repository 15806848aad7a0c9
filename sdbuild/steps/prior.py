"""The prior step: pictures of a subject's class, drawn by the base. Importing it is light."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbuild.data.items import ItemStore
from sdbuild.data.pictures import open_picture, pixel_digest
from sdbuild.data.records import write_lines
from sdbuild.data.wanted import wanted_class_pictures
from sdbuild.errors import DataError, StepError
from sdbuild.families.digest import read_digest
from sdbuild.steps.contract import Context, Inputs, Items
from sdbuild.storage.safe_paths import path_problem

if TYPE_CHECKING:
    from torch import Tensor

COMPONENTS = ("index", "denoiser", "schedule", "vae", "text")
INDEX = "index.jsonl"


def run(spec: Mapping[str, Any], inputs: Inputs, out: Path, context: Context) -> Items:
    """Write `prior/`: a PNG for each seed, and `index.jsonl` with their digests and keys."""
    assert inputs.base is not None
    wanted = wanted_class_pictures(spec, read_digest(spec, inputs.base, COMPONENTS))
    store = ItemStore(context.items / "prior", warn=context.warn)
    drawn = {row["key"]: row for row in _drawn(context.previous / "prior")}
    missing = [key for key in store.missing(wanted) if key not in drawn]
    if missing:
        store.fill(_draw([(key, wanted[key]) for key in missing], spec, inputs, context))
    folder = out / "prior"
    folder.mkdir()
    rows = [
        _copied(drawn[key], context.previous / "prior", folder)
        if key in drawn
        else _written(store.read(key)["pixels"], key, seed, folder)
        for key, seed in wanted.items()
    ]
    write_lines(folder / INDEX, sorted(rows, key=lambda row: row["file"]))
    return Items(total=len(wanted), computed=len(missing))


def _drawn(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Rows of the last version of the out whose pictures are as they were drawn."""
    try:
        lines = (folder / INDEX).read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
            if path_problem(row["file"]) or "/" in row["file"]:
                continue
            if pixel_digest(open_picture(folder / row["file"])) == row["digest"]:
                yield row
        except (OSError, ValueError, KeyError, TypeError, DataError):
            continue  # it is drawn again


def _draw(
    chosen: Sequence[tuple[str, int]], spec: Mapping[str, Any], inputs: Inputs, context: Context
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    import numpy as np
    import torch
    from accelerate import PartialState

    from sdbuild import families
    from sdbuild.sampling.draw import BaseAlone, Sample, Settings, draw, load_pipeline

    assert inputs.base is not None
    side = spec["resolution"]
    settings = Settings(
        width=side, height=side, **{key: spec[key] for key in ("scheduler", "steps", "guidance", "negative")}
    )
    family = families.load(inputs.base, clip_skip=spec.get("clip_skip", 1))
    context.progress(0, len(chosen), "class pictures")
    offload = "offload" in inputs.how
    pipeline, nothing = load_pipeline(family, PartialState().device, lambda pipeline: BaseAlone(), offload=offload)
    wanted = [Sample(prompt=spec["prompt"], seed=seed, strength=0.0) for _, seed in chosen]
    pictures = draw(pipeline, nothing, family, wanted, settings)
    for done, ((key, _), (_, picture)) in enumerate(zip(chosen, pictures, strict=True), start=1):
        yield key, {"pixels": torch.from_numpy(np.array(picture.convert("RGB")))}
        context.progress(done, len(chosen), "class pictures")


def _copied(row: Mapping[str, Any], previous: Path, folder: Path) -> Mapping[str, Any]:
    try:
        shutil.copyfile(previous / row["file"], folder / row["file"])
    except OSError as error:
        raise StepError(f"{row['file']} of the last version went missing ({error.strerror}); build again") from error
    return row


def _written(pixels: Tensor, key: str, seed: int, folder: Path) -> Mapping[str, Any]:
    from PIL import Image

    picture = Image.fromarray(pixels.numpy())
    name = f"{seed:05d}.png"
    picture.save(folder / name)
    size = {"width": picture.width, "height": picture.height}
    return {"file": name, "seed": seed, "digest": pixel_digest(picture), **size, "key": key}
