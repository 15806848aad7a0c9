from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sdbuild.report import grids
from sdbuild.report.grids import PAD, draw_beside


def pictures(folder: Path, *sizes: tuple[int, int]) -> list[Path]:
    paths = [folder / f"{index}.png" for index in range(len(sizes))]
    for index, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        Image.new("RGB", size, (index * 40, 100, 200)).save(path)
    return paths


def drawn(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def test_two_stand_side_by_side_under_their_labels(tmp_path: Path) -> None:
    paths = pictures(tmp_path, (300, 200), (300, 200))
    assert draw_beside(paths, ["one", "other"], tmp_path / "out/beside.png")
    beside = drawn(tmp_path / "out/beside.png")
    assert beside.width == 2 * 300 + 3 * PAD
    top = beside.height - 200 - PAD
    for index, path in enumerate(paths):
        x = PAD + index * (300 + PAD)
        assert beside.crop((x, top, x + 300, top + 200)).tobytes() == drawn(path).tobytes()
        label = beside.crop((x, 0, x + 300, top))
        assert label.getextrema() == ((0, 255),) * 3, "black on white"


def test_rows_and_labels_of_several_lines(tmp_path: Path) -> None:
    paths = pictures(tmp_path, (50, 40), (60, 80), (50, 40))
    labels = ["1.\nmethod.rank 4\ntrain.learning_rate 0.001", "2.", "3."]
    assert draw_beside(paths, labels, tmp_path / "beside.png", across=2)
    beside = drawn(tmp_path / "beside.png")
    assert beside.width > 2 * 60 + 3 * PAD, "the longest label fits"
    assert beside.crop((PAD, beside.height - PAD - 40, PAD + 50, beside.height - PAD)).tobytes() == (
        drawn(paths[2]).tobytes()
    )


def test_what_would_be_too_large_is_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "MOST_PIXELS", 20_000)
    assert draw_beside(pictures(tmp_path, (400, 400), (400, 400)), ["a", "b"], tmp_path / "beside.png")
    assert max(drawn(tmp_path / "beside.png").size) < 400


def test_what_is_no_picture_is_told(tmp_path: Path) -> None:
    good, bad = pictures(tmp_path, (9, 9), (9, 9))
    bad.write_bytes(b"no")
    assert not draw_beside([good, bad], ["a", "b"], tmp_path / "beside.png")
    assert not (tmp_path / "beside.png").exists()
