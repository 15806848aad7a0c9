"""The grid's layout."""

from __future__ import annotations

import pytest
from PIL import Image, ImageFont

from sdbuild.sampling.grid import LABELS, Row, cell_size, make_grid, wrap

FONT = ImageFont.load_default(16)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((64, 64), (192, 192)),
        ((48, 64), (144, 192)),
        ((100, 100), (200, 200)),
        ((512, 256), (512, 256)),
        ((1024, 768), (512, 384)),
    ],
)
def test_small_pictures_are_enlarged_by_whole_factors(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert cell_size(*size) == shown


def test_pictures_are_in_their_places() -> None:
    colours = ["red", "green", "blue", "yellow", "black", "purple"]
    pictures = (Image.new("RGB", (64, 64), colour) for colour in colours)
    rows = [Row(prompt="a cat", note=f"seed {seed}") for seed in range(3)]
    grid = make_grid(rows, ["base", "strength 1"], pictures, (64, 64), "title")
    left, top = grid.width - 2 * 200, grid.height - 3 * 200
    assert left > LABELS
    found = [grid.getpixel((left + x * 200 + 96, top + y * 200 + 96)) for y in range(3) for x in range(2)]
    assert found == [Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in colours]


def test_labels_are_drawn() -> None:
    def grid(prompt: str, note: str, column: str, title: str) -> bytes:
        picture = Image.new("RGB", (64, 64))
        return make_grid([Row(prompt=prompt, note=note)], [column], [picture], (64, 64), title).tobytes()

    texts = [
        ("a", "b", "c", "d"),
        ("x", "b", "c", "d"),
        ("a", "x", "c", "d"),
        ("a", "b", "x", "d"),
        ("a", "b", "c", "x"),
    ]
    assert len({grid(*text) for text in texts}) == 5


@pytest.mark.parametrize("text", ["", "one", "a photo of a cat in a hat " * 4, "x" * 100])
def test_wrapped_lines_fit_and_lose_nothing(text: str) -> None:
    lines = wrap(text, FONT, 120, 100)
    assert all(FONT.getlength(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_what_does_not_fit_ends_with_dots() -> None:
    lines = wrap("a photo of a cat in a hat " * 10, FONT, 120, 3)
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert FONT.getlength(lines[-1]) <= 120
