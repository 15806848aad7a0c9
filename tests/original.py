"""Checkpoints in one file, in the layout of the models' authors, made from folders in diffusers' layout."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sdbuild.families.checkpoint import whole_checkpoint
from sdbuild.recipe.places import INDEX

Tensors = dict[str, Tensor]


def make_single(folder: Path, file: Path, family: str, *, t5: bool = True, extra: Tensors | None = None) -> Path:
    """Write the base in a folder as one file, as its authors did."""
    found = whole_checkpoint(folder, {}, torch.float32)
    if family == "sd2":  # they have a layer more, which nobody uses
        found |= {name.replace(".1.", ".2."): tensor.clone() for name, tensor in found.items() if "resblocks" in name}
    if family == "sd3":  # and no projection of the first text encoder
        found.pop("text_encoders.clip_l.transformer.text_projection.weight")
    if not t5:
        found = {name: tensor for name, tensor in found.items() if "t5xxl" not in name}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(found | (extra or {}), file)
    return file


def copy_configurations(folder: Path, target: Path) -> Path:
    """The folder without its weights."""
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".txt") and path.name != "model.safetensors.index.json":
            place = target / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    assert (target / INDEX).is_file()
    return target
