"""Two grids side by side, to see what a change did."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from sdbuild.build.project import write_atomic

MOST = 16_384
"""Pixels of the longest side of the result."""
PAD, TEXT = 12, 20


def draw_beside(left: Path, right: Path, labels: tuple[str, str], target: Path) -> bool:
    """Draw two pictures beside each other, with a label above each, and write a PNG.

    Returns:
        False where one of them cannot be read.
    """
    from PIL import Image, ImageDraw, ImageFont

    pictures: list[Image.Image] = []
    try:
        for path in (left, right):
            with warnings.catch_warnings(), Image.open(path) as file:
                warnings.simplefilter("ignore")  # of Pillow, about large pictures
                pictures.append(file.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    scale = min(1.0, MOST / (sum(picture.width for picture in pictures)), MOST / max(p.height for p in pictures))
    if scale < 1:
        pictures = [
            picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
            for picture in pictures
        ]
    font = ImageFont.load_default(TEXT)
    top = PAD + TEXT + PAD
    width = sum(picture.width for picture in pictures) + 3 * PAD
    beside = Image.new("RGB", (width, top + max(picture.height for picture in pictures) + PAD), "white")
    x = PAD
    for picture, label in zip(pictures, labels, strict=True):
        title = Image.new("RGB", (picture.width, TEXT + PAD), "white")  # a long label ends where its picture does
        ImageDraw.Draw(title).text((0, 0), label, fill="black", font=font)
        beside.paste(title, (x, PAD))
        beside.paste(picture, (x, top))
        x += picture.width + PAD
    content = io.BytesIO()
    beside.save(content, format="PNG")
    write_atomic(target, content.getvalue())
    return True
