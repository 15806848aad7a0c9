"""Comparing a grid's pictures with those trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from sdbuild.data.items import ShardReader
from sdbuild.data.records import read_captions, read_lines
from sdbuild.families.contract import Family
from sdbuild.sampling.measures import features, figures
from sdbuild.steps.latents import as_input


class Measuring:
    """Collects what pictures show, and compares it; see `sampling.measures`."""

    def __init__(self, family: Family, captions: Path, latents: Path, device: torch.device) -> None:
        self._vae = family.load_vae(device=str(device))
        self._captions = captions
        self._latents = latents
        self._drawn: dict[str, dict[str, list[Tensor]]] = {}

    def add(self, picture: Image, strength: str, prompt: str) -> None:
        """Look at a picture."""
        mean, _ = self._vae.encode(as_input(np.array(picture.convert("RGB"))))
        self._drawn.setdefault(strength, {}).setdefault(prompt, []).append(features(mean))

    def figures(self) -> dict[str, dict[str, float]] | None:
        """Return what came out, by strength; None where there are too few pictures to compare with."""
        return figures(self._drawn, [features(latent) for latent in self._trained()])

    def _trained(self) -> Iterator[Tensor]:
        """Yield the latents of the pictures trained on, as they are, not flipped."""
        kept = {record.digest for record in read_captions(self._captions) if record.split == "train"}
        reader = ShardReader(self._latents)
        for row in read_lines(self._latents / "index.jsonl"):
            if row["digest"] in kept and not row["flip"]:
                yield reader.read(row["key"])["mean"]
