"""Rows on disk: what is written is read back, in one order and one spelling."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdbuild.data.buckets import Fit
from sdbuild.data.records import (
    CaptionRecord,
    ImageRecord,
    SkippedImage,
    iter_images,
    read_captions,
    read_images,
    read_skipped,
    write_captions,
    write_images,
    write_lines,
)
from sdbuild.errors import DataError


def image(path: str = "datasets/x/a.png", dataset: int = 0, **changes: object) -> ImageRecord:
    fields = {
        "digest": "d" * 64,
        "width": 100,
        "height": 80,
        "bucket": (72, 56),
        "resize": (72, 58),
        "crop": (0, 1),
        "split": "train",
    }
    return ImageRecord(path=path, dataset=dataset, **{**fields, **changes})  # type: ignore[arg-type]


def caption(digest: str, dataset: int = 0, text: str = "a cat") -> CaptionRecord:
    return CaptionRecord(digest=digest, dataset=dataset, text=text, origin="sidecar", split="train")


def test_images_are_sorted_and_read_back(tmp_path: Path) -> None:
    first, second = image("datasets/x/ä\n.png", duplicates=("datasets/x/b.png",)), image("datasets/x/猫.png")
    skipped = SkippedImage(path="datasets/x/c.png", dataset=0, skipped="is empty")
    third = image("datasets/w/a.png", 1, split="holdout")
    write_images(tmp_path / "images.jsonl", [third, second, skipped, first])
    assert list(iter_images(tmp_path / "images.jsonl")) == [skipped, first, second, third]
    assert read_images(tmp_path / "images.jsonl") == [first, second, third]
    assert read_skipped(tmp_path / "images.jsonl") == [skipped]


def test_images_have_the_documented_keys(tmp_path: Path) -> None:
    write_images(tmp_path / "images.jsonl", [image()])
    row = json.loads((tmp_path / "images.jsonl").read_text())
    assert list(row) == ["path", "dataset", "digest", "width", "height", "bucket", "resize", "crop", "split"]
    assert row["bucket"] == [72, 56]


def test_further_ways_and_masks_are_read_back(tmp_path: Path) -> None:
    fits = (Fit(bucket=(96, 64), resize=(96, 77), crop=(0, 6)), Fit(bucket=(72, 56), resize=(72, 58), crop=(0, 2)))
    row = image(further=fits, mask="datasets/x/a.mask.png")
    write_images(tmp_path / "images.jsonl", [row])
    assert read_images(tmp_path / "images.jsonl") == [row]
    assert row.fits == (Fit(bucket=(72, 56), resize=(72, 58), crop=(0, 1)), *fits)
    assert json.loads((tmp_path / "images.jsonl").read_text())["further"][0]["bucket"] == [96, 64]
    texts = replace(caption("a"), others=("a dog", "a fox"))
    write_captions(tmp_path / "captions.jsonl", [texts])
    assert read_captions(tmp_path / "captions.jsonl") == [texts]


def test_captions_are_sorted_and_read_back(tmp_path: Path) -> None:
    rows = [caption("b"), caption("a", 1), caption("a", 0, "a \u2028 line")]
    write_captions(tmp_path / "captions.jsonl", rows)
    assert read_captions(tmp_path / "captions.jsonl") == [rows[2], rows[0], rows[1]]
    assert b"path" not in (tmp_path / "captions.jsonl").read_bytes()


def test_equal_rows_are_equal_bytes(tmp_path: Path) -> None:
    rows = [caption(str(number)) for number in range(5)]
    write_captions(tmp_path / "a", rows)
    write_captions(tmp_path / "b", reversed(rows))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_captions(tmp_path / "captions.jsonl", [caption("a")])
    before = (tmp_path / "captions.jsonl").read_bytes()

    def rows() -> Iterator[Mapping[str, Any]]:
        yield {"text": "b"}
        raise RuntimeError("no more rows")

    with pytest.raises(RuntimeError, match="no more rows"):
        write_lines(tmp_path / "captions.jsonl", rows())
    assert (tmp_path / "captions.jsonl").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["captions.jsonl"]


@pytest.mark.parametrize("line", ["{", "[1]", '{"path": "a"}', "\xff"])
def test_a_damaged_row_names_file_and_line(tmp_path: Path, line: str) -> None:
    write_images(tmp_path / "images.jsonl", [image()])
    write_captions(tmp_path / "captions.jsonl", [caption("a")])
    readers: dict[str, Callable[[Path], object]] = {"images.jsonl": read_images, "captions.jsonl": read_captions}
    for name, read in readers.items():
        with (tmp_path / name).open("a", encoding="latin-1") as file:
            file.write(line + "\n")
        with pytest.raises(DataError, match=rf"{name}:2: .*build again"):
            read(tmp_path / name)


def test_keys_of_picture_and_caption_agree() -> None:
    assert image(digest="abc", dataset=2).key == caption("abc", 2).key == "2:abc"
