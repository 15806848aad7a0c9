"""A grid of pictures with labels that people can read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

LEAST, MOST = 192, 512
"""Sides of a cell in pixels: smaller pictures are enlarged by a whole factor, larger ones reduced."""
TEXT = 16
PAD = 8
LABELS = 200
"""Width of the column of row labels."""
INK, FAINT, PAPER = "black", "#666666", "white"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Labels of one row."""

    prompt: str
    note: str
    """Below the prompt, in grey."""


def cell_size(width: int, height: int) -> tuple[int, int]:
    """Return the size at which a picture is shown."""
    longest = max(width, height)
    if longest > MOST:
        return max(1, width * MOST // longest), max(1, height * MOST // longest)
    factor = -(-LEAST // longest)
    return width * factor, height * factor


def make_grid(
    rows: Sequence[Row], columns: Sequence[str], pictures: Iterable[Image.Image], size: tuple[int, int], title: str
) -> Image.Image:
    """Arrange pictures in reading order.

    Args:
        rows: labels from top to bottom.
        columns: labels from left to right.
        pictures: rows × columns of them; taken one at a time.
        size: width and height of each.
        title: above all.
    """
    font = ImageFont.load_default(TEXT)
    line = TEXT + PAD // 2
    cell = cell_size(*size)
    limit = max(1, (cell[1] - line) // line)
    top, left = PAD + 2 * (line + PAD), PAD + LABELS + PAD
    width = max(left + len(columns) * (cell[0] + PAD), int(font.getlength(title)) + 2 * PAD)
    grid = Image.new("RGB", (width, top + len(rows) * (cell[1] + PAD)), PAPER)
    pen = ImageDraw.Draw(grid)
    pen.text((PAD, PAD), title, fill=INK, font=font)
    for column, label in enumerate(columns):
        x = left + column * (cell[0] + PAD)
        pen.text((x, PAD + line + PAD), wrap(label, font, cell[0], 1)[0], fill=INK, font=font)
    for index, row in enumerate(rows):
        y = top + index * (cell[1] + PAD)
        lines = wrap(row.prompt, font, LABELS, limit)
        for number, text in enumerate(lines):
            pen.text((PAD, y + number * line), text, fill=INK, font=font)
        pen.text((PAD, y + len(lines) * line), row.note, fill=FAINT, font=font)
    places = [
        (left + column * (cell[0] + PAD), top + row * (cell[1] + PAD))
        for row in range(len(rows))
        for column in range(len(columns))
    ]
    for place, picture in zip(places, pictures, strict=True):
        grid.paste(_scaled(picture, cell), place)
    return grid


def wrap(text: str, font: Font, width: int, limit: int) -> list[str]:
    """Break a text into at most `limit` lines of `width` pixels; words that are too long are broken too."""
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".strip()
        if font.getlength(candidate) <= width:
            lines[-1] = candidate
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) <= limit:
        return lines
    last = lines[limit - 1]
    while last and font.getlength(f"{last}…") > width:
        last = last[:-1]
    return [*lines[: limit - 1], f"{last.rstrip()}…"]


def _scaled(picture: Image.Image, cell: tuple[int, int]) -> Image.Image:
    if picture.size == cell:
        return picture
    smaller = cell[0] < picture.width
    return picture.resize(cell, Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST)
