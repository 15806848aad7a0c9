"""Pictures and captions of an emoji folder, decoded once into memory."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SIZE = 64
HELD_OUT_OF = 20
"""One Noto picture in this many, chosen by its digest, is kept out of all training."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A folder's pictures in the order of its ``captions.jsonl``.

    ``pixels`` is uint8 of shape (count, 3, 64, 64); the other fields have one entry a picture.
    """

    pixels: torch.Tensor
    files: list[str]
    captions: list[str]
    aliases: list[str]
    categories: list[str]
    subcategories: list[str]
    held_out: list[bool]

    def __len__(self) -> int:
        return len(self.files)

    def normalised(self, indices: torch.Tensor) -> torch.Tensor:
        """The chosen pictures as float32 in [-1, 1]."""
        return self.pixels[indices].float() / 127.5 - 1

    def indices(self, *, held_out: bool) -> torch.Tensor:
        """Positions of the pictures that are held out, or of all others."""
        return torch.tensor([i for i, held in enumerate(self.held_out) if held == held_out])


def decode(path: Path) -> np.ndarray:
    """One picture as uint8 (64, 64, 3), its transparency laid over white."""
    with Image.open(path) as opened:
        picture = opened.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(white, picture).convert("RGB")
    if flat.size != (SIZE, SIZE):
        flat = flat.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(flat)


def is_held_out(pixels: np.ndarray) -> bool:
    """Whether the digest of these pixels falls among the held-out share."""
    return int.from_bytes(hashlib.sha256(pixels.tobytes()).digest()[:8], "big") % HELD_OUT_OF == 0


def load(folder: Path) -> Pictures:
    """Every picture that ``folder/captions.jsonl`` names."""
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    arrays = [decode(folder / row["file"]) for row in rows]
    return Pictures(
        pixels=torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous(),
        files=[row["file"] for row in rows],
        captions=[row["caption"] for row in rows],
        aliases=[str(row.get("alias") or row["caption"]).replace("_", " ").replace("-", " ") for row in rows],
        categories=[str(row.get("category") or "").lower() for row in rows],
        subcategories=[str(row.get("subcategory") or "").lower() for row in rows],
        held_out=[is_held_out(array) for array in arrays],
    )
