"""Grids side by side, to see what a change did."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

from sdbuild.build.project import write_atomic

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

    loaded: list[Image.Image] = []
    try:
        for path in pictures:
            with warnings.catch_warnings(), Image.open(path) as picture:
                warnings.simplefilter("ignore")  # of Pillow, about large pictures
                loaded.append(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    across = across or len(loaded)
    rows = [range(start, min(start + across, len(loaded))) for start in range(0, len(loaded), across)]
    font = ImageFont.load_default(TEXT)
    top = PAD + max(label.count("\n") + 1 for label in labels) * (TEXT + PAD // 2) + PAD // 2
    scale = _scale([[loaded[index].size for index in row] for row in rows])
    if scale < 1:
        loaded = [each.resize([max(1, round(side * scale)) for side in each.size]) for each in loaded]
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    widths = [
        max(
            max(loaded[row[column]].width, math.ceil(measure.multiline_textbbox((0, 0), labels[row[column]], font)[2]))
            for row in rows
            if column < len(row)
        )
        for column in range(across)
    ]
    heights = [top + max(loaded[index].height for index in row) + PAD for row in rows]
    beside = Image.new("RGB", (sum(widths) + (across + 1) * PAD, sum(heights)), "white")
    pen = ImageDraw.Draw(beside)
    for number, row in enumerate(rows):
        for column, index in enumerate(row):
            x, y = PAD + sum(widths[:column]) + column * PAD, sum(heights[:number])
            pen.multiline_text((x, y + PAD), labels[index], fill="black", font=font, spacing=PAD // 2)
            beside.paste(loaded[index], (x, y + top))
    file = io.BytesIO()
    beside.save(file, format="PNG")
    write_atomic(target, file.getvalue())
    return True


def _scale(rows: Sequence[Sequence[tuple[int, int]]]) -> float:
    """How much rows of pictures are made smaller so that the whole has a size that can be looked at."""
    width = max(sum(width for width, _ in row) for row in rows)
    height = sum(max(height for _, height in row) for row in rows)
    return min(1.0, MOST / max(width, height), math.sqrt(MOST_PIXELS / (width * height)))
