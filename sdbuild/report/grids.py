"""Grids side by side, to see what a change did."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

from sdbuild.storage.atomic import write_atomic

MOST = 16_384
"""Pixels of the longest side of the result."""
MOST_PIXELS = 100_000_000
"""Of the result in all."""
PAD, TEXT = 12, 20


def draw_beside(pictures: Sequence[Path], labels: Sequence[str], target: Path, *, across: int | None = None) -> bool:
    """Draw pictures beside each other, each under its label, and write a PNG.

    Args:
        pictures: files, in reading order.
        labels: of each, of one line or several.
        target: the file to write.
        across: pictures a row; all in one if left out.

    Returns:
        False where one of them cannot be read.
    """
    from PIL import Image, ImageDraw, ImageFont

    def size(path: Path) -> tuple[int, int]:
        with Image.open(path) as picture:
            return picture.size

    def load(path: Path, scale: float) -> Image.Image:
        with Image.open(path) as picture:
            whole = picture.convert("RGB")
        return whole if scale == 1 else whole.resize([max(1, round(side * scale)) for side in whole.size])

    across = across or len(pictures)
    rows = [pictures[start : start + across] for start in range(0, len(pictures), across)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about large pictures
            scale = _scale([[size(path) for path in row] for row in rows])
            loaded = [[load(path, scale) for path in row] for row in rows]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    font = ImageFont.load_default(TEXT)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    boxes = [measure.multiline_textbbox((0, 0), label, font, spacing=PAD // 2) for label in labels]
    top = PAD + math.ceil(max(box[3] for box in boxes)) + PAD
    width = max(*(each.width for row in loaded for each in row), *(math.ceil(box[2]) for box in boxes))
    heights = [top + max(each.height for each in row) + PAD for row in loaded]
    beside = Image.new("RGB", (PAD + across * (width + PAD), sum(heights)), "white")
    pen = ImageDraw.Draw(beside)
    for number, row in enumerate(loaded):
        for column, each in enumerate(row):
            x, y = PAD + column * (width + PAD), sum(heights[:number])
            label = labels[number * across + column]
            pen.multiline_text((x, y + PAD), label, fill="black", font=font, spacing=PAD // 2)
            beside.paste(each, (x, y + top))
    file = io.BytesIO()
    beside.save(file, format="PNG")
    write_atomic(target, file.getvalue())
    return True


def _scale(rows: Sequence[Sequence[tuple[int, int]]]) -> float:
    """How much rows of pictures are made smaller so that the whole has a size that can be looked at."""
    width = max(sum(width for width, _ in row) for row in rows)
    height = sum(max(height for _, height in row) for row in rows)
    return min(1.0, MOST / max(width, height), math.sqrt(MOST_PIXELS / (width * height)))
