"""The images step on whole folders, good and bad."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdbuild.data import formats
from sdbuild.data.pictures import pixel_digest
from sdbuild.data.records import ImageRecord, read_images, read_skipped
from sdbuild.errors import DataError
from sdbuild.steps import images
from sdbuild.steps.contract import Inputs, Items
from tests.data.files import animated, bomb, encoded, pattern, write

FOLDER = "datasets/x"


class Build:
    """A step's context, which remembers what it was told."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.items = project / ".sdbuild" / "items"
        self.scratch = project / ".sdbuild" / "scratch"
        self.previous = project / "build" / "cat"
        self.warnings: list[str] = []
        self.shown: list[tuple[int, int]] = []

    def progress(self, done: int, total: int, unit: str, **figures: float) -> None:
        self.shown.append((done, total))

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def run(self, *datasets: str, holdout: int = 0, **changes: Any) -> Items:
        spec = {
            "datasets": [{"path": path, "holdout": holdout} for path in datasets or (FOLDER,)],
            "resolution": 32,
            "buckets": {"step": 8, "max_aspect": 2.0},
            "crop": "center",
            "background": "white",
            "on_error": "fail",
            **changes,
        }
        self.warnings = []
        self.previous.mkdir(parents=True, exist_ok=True)
        return images.run(spec, Inputs(project=self.project), self.previous, self)

    @property
    def rows(self) -> list[ImageRecord]:
        return read_images(self.previous / "images.jsonl")

    def put(self, name: str, data: bytes | str | None = None, seed: int = 0) -> Path:
        return write(self.project / FOLDER / name, encoded(pattern(seed=seed)) if data is None else data)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    (tmp_path / FOLDER).mkdir(parents=True)
    return Build(tmp_path)


def test_rows(build: Build) -> None:
    build.put("b.png", seed=1)
    build.put("sub/猫 1.jpg", encoded(pattern(60, 20), "JPEG"))
    build.put("a.txt", "a cat")
    assert build.run() == Items(total=2, computed=2)
    first, second = build.rows
    assert first == ImageRecord(
        path="datasets/x/b.png",
        dataset=0,
        digest=pixel_digest(pattern(seed=1)),
        width=40,
        height=30,
        bucket=(40, 24),
        resize=(40, 30),
        crop=(0, 3),
        split="train",
    )
    assert second.path == "datasets/x/sub/猫 1.jpg"
    assert build.warnings == []
    assert build.shown[-1] == (2, 2)


def test_nothing_is_decoded_twice(build: Build) -> None:
    for seed in range(4):
        old = build.put(f"{seed}.png", seed=seed)
        os.utime(old, (1_600_000_000, 1_600_000_000))
    assert build.run().computed == 4
    before = (build.previous / "images.jsonl").read_bytes()
    assert build.run().computed == 0
    folder = build.project / FOLDER
    (folder / "0.png").touch()
    (folder / "1.png").rename(folder / "renamed.png")
    shutil.copy(folder / "2.png", folder / "copy.png")
    assert build.run() == Items(total=4, computed=0)
    assert build.run(resolution=64).computed == 0
    assert build.run(background="black").computed == 4
    shutil.rmtree(build.items)
    (folder / "renamed.png").rename(folder / "1.png")
    (folder / "copy.png").unlink()
    assert build.run().computed == 4
    assert (build.previous / "images.jsonl").read_bytes() == before


def test_changed_pixels_are_seen_even_at_the_same_size_and_time(build: Build) -> None:
    raw = encoded(pattern(), "BMP")
    path = build.put("a.bmp", raw)
    build.run()
    path.write_bytes(raw[:-3] + bytes(3))
    assert build.run().computed == 1


def test_saving_anew_without_loss_changes_no_digest(build: Build) -> None:
    build.put("a.png")
    build.run()
    (before,) = build.rows
    build.put("a.png", encoded(pattern(), compress_level=0))
    assert build.run().computed == 1
    assert build.rows == [before]


BAD: dict[str, tuple[bytes, str]] = {
    "bomb.png": (bomb(), "has more than 178 million pixels"),
    "empty.png": (b"", "is empty"),
    "long.png": (encoded(pattern(2000, 20)), "less than a quarter of it would be seen"),
    "text.png": (b"a cat", "is text, not a picture"),
    "tiny.png": (encoded(pattern(1, 1)), r"too small \(1×1 pixels\) for its bucket of 32×32; use at least 4×4"),
    "truncated.jpg": (encoded(pattern(300, 300), "JPEG")[:2000], "is cut short"),
}


def bad_folder(build: Build) -> None:
    for name, (data, _) in BAD.items():
        build.put(name, data)
    (build.project / FOLDER / "link.png").symlink_to("nowhere.png")
    build.put("good.png")


def test_all_problems_are_listed_together(build: Build) -> None:
    bad_folder(build)
    with pytest.raises(DataError, match="is text") as caught:
        build.run()
    messages = [str(problem) for problem in caught.value.problems]
    assert [message.split(": ")[0] for message in messages] == [
        f"{FOLDER}/{name}" for name in sorted([*BAD, "link.png"])
    ]
    for _, expected in BAD.values():
        with pytest.raises(DataError, match=expected):
            raise caught.value
    assert not (build.previous / "images.jsonl").exists()


def test_bad_pictures_can_be_skipped(build: Build) -> None:
    bad_folder(build)
    assert build.run(on_error="skip").total == 1
    assert [row.path for row in read_skipped(build.previous / "images.jsonl")] == [
        f"{FOLDER}/{name}" for name in sorted([*BAD, "link.png"])
    ]
    assert build.warnings == [
        f"7 pictures skipped, as they cannot be used: images.jsonl says why ({FOLDER}/bomb.png, …)"
    ]
    (build.project / FOLDER / "good.png").unlink()
    with pytest.raises(DataError, match=r"none of its 7 pictures can be used\n"):
        build.run(on_error="skip")


def test_names_that_are_not_unicode(build: Build) -> None:
    try:
        (build.project / FOLDER / os.fsdecode(b"caf\xe9.png")).write_bytes(encoded(pattern()))
    except OSError:
        pytest.skip("this file system takes Unicode only")
    with pytest.raises(DataError, match=r"caf\\udce9\.png: its name is not valid Unicode; rename it"):
        build.run()
    build.put("good.png", seed=1)
    assert build.run(on_error="skip").total == 1


def test_folders(build: Build) -> None:
    write(build.project / "datasets/file", "x")
    with pytest.raises(DataError, match="there is no such folder") as caught:
        build.run(FOLDER, "datasets/none", "datasets/file")
    assert [str(problem).split(";")[0] for problem in caught.value.problems] == [
        "datasets/x: holds no pictures",
        "datasets/none: there is no such folder",
        "datasets/file: is a file",
    ]


def test_the_same_picture_twice(build: Build) -> None:
    build.put("a.png")
    build.put("b.png", encoded(pattern(), compress_level=0))
    build.put("c.png", seed=1)
    assert build.run().total == 2
    assert build.rows[0].duplicates == (f"{FOLDER}/b.png",)
    assert build.warnings == [
        f"1 picture left out, as another in the same dataset has the same pixels ({FOLDER}/b.png)"
    ]


def test_what_is_said_once_with_a_count(build: Build) -> None:
    build.put("a.gif", animated("GIF"))
    build.put("b.webp", animated("WEBP", 2))
    build.put("c.CR2", "x")
    build.put("d.psd", "x")
    build.put("d.txt", "a caption of a picture that is not read")
    build.put("noending", encoded(pattern()))
    build.put("notes.md", "no picture")
    build.put("small.png", encoded(pattern(10, 10)))
    build.put("z.png", seed=5)
    build.run()
    said = [
        f"1 picture left out: .cr2 is not read; save as PNG or JPEG ({FOLDER}/c.CR2)",
        f"1 picture left out with its caption: .psd is not read; save as PNG or JPEG ({FOLDER}/d.psd)",
        "1 picture left out: a picture without the file extension of one; rename it, e.g. to .png or .jpg "
        f"({FOLDER}/noending)",
        f"2 pictures animated or of several pages: only the first is used ({FOLDER}/a.gif, …)",
        f"1 picture enlarged to more than twice the size ({FOLDER}/small.png)",
    ]
    assert build.warnings == said
    build.run()
    assert build.warnings == said, "also when all is remembered"


def test_many_pictures_that_are_wrong_alike_are_one_line(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(formats.EXTRAS, "HEIF", formats.Extra("HEIC", "no_such_module", "heic"))
    monkeypatch.setattr(formats, "_known", set())
    for number in range(9):
        build.put(f"IMG_{number}.HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes([number]))
    build.put("a.png")
    with pytest.raises(DataError) as caught:
        build.run()
    message = 'is HEIC: pip install "sdbuild[heic]", or save it as PNG or JPEG'
    more = "(and 8 more: IMG_1.HEIC, IMG_2.HEIC, …)"
    assert str(caught.value) == f"{FOLDER}/IMG_0.HEIC: {message} {more}"


def test_the_hold_out_is_chosen_by_digest(build: Build) -> None:
    for seed in range(6):
        build.put(f"{seed}.png", seed=seed)
    build.run(holdout=2)
    held = {row.digest for row in build.rows if row.split == "holdout"}
    assert len(held) == 2
    for seed in range(6):
        (build.project / FOLDER / f"{seed}.png").rename(build.project / FOLDER / f"{9 - seed}-renamed.png")
    build.run(holdout=2)
    assert {row.digest for row in build.rows if row.split == "holdout"} == held
    build.run(holdout=3)
    assert {row.digest for row in build.rows if row.split == "holdout"} > held


@pytest.mark.parametrize("holdout", [2, 3])
def test_a_hold_out_larger_than_the_data(build: Build, holdout: int) -> None:
    build.put("a.png")
    build.put("b.png", seed=1)
    message = rf"datasets\[0\]\.holdout: is {holdout}, but only 2 pictures of datasets/x can .* lower it to 1"
    with pytest.raises(DataError, match=message):
        build.run(holdout=holdout)


def test_pixels_held_out_of_one_dataset_are_held_out_of_all(build: Build) -> None:
    for seed in range(5):
        build.put(f"{seed}.png", seed=seed)
    shutil.copytree(build.project / FOLDER, build.project / "datasets/y")
    write(build.project / "datasets/y/more.png", encoded(pattern(seed=6)))
    build.run(FOLDER, "datasets/y", holdout=2)
    held = {row.digest for row in build.rows if row.split == "holdout"}
    assert held.isdisjoint(row.digest for row in build.rows if row.split == "train")
    assert [row.dataset for row in build.rows] == [0] * 5 + [1] * 6


def test_several_resolutions_and_crops(build: Build) -> None:
    build.put("a.png", encoded(pattern(90, 60)))
    spec = {"path": FOLDER, "holdout": 0, "resolutions": [32, 48]}
    assert build.run(datasets=[spec], crop="random", crops=3) == Items(total=1, computed=1)
    (row,) = build.rows
    assert [fit.bucket for fit in row.fits] == [(40, 24)] * 3 + [(56, 40)] * 3
    assert len(set(row.fits)) == 6
    first = row.fits
    build.run(datasets=[{"path": FOLDER, "holdout": 0}], crop="random", crops=1)
    (row,) = build.rows
    assert (row.fits, row.further) == (first[:1], ())


def test_a_picture_too_small_for_one_resolution(build: Build) -> None:
    build.put("a.png", encoded(pattern(8, 8)))
    with pytest.raises(DataError, match=r"a.png: too small .* for its bucket of 96×96"):
        build.run(datasets=[{"path": FOLDER, "holdout": 0, "resolutions": [32, 96]}])


MASKED = {"path": FOLDER, "holdout": 0, "mask": {"from": "sidecar", "suffix": ".mask"}}


def test_masks(build: Build) -> None:
    whole = pixel_digest(pattern())
    for name, value in (("a", 0), ("b", 255)):
        build.put(f"{name}.png", encoded(pattern(seed=ord(name) - 97)))
        mask = Image.new("L", (40, 30), value)
        mask.paste(255, (0, 0, 9, 9))
        build.put(f"{name}.mask.png", encoded(mask))
    build.put("c.png", seed=2)
    build.put("lost.mask.png")
    assert build.run(datasets=[MASKED]) == Items(total=3, computed=3)
    first, second, third = build.rows
    assert (first.mask, second.mask, third.mask) == (f"{FOLDER}/a.mask.png", f"{FOLDER}/b.mask.png", None)
    assert first.digest != whole
    assert second.digest == pixel_digest(pattern(seed=1)), "a white mask is none"
    assert build.warnings == [
        f"1 picture left out: a mask whose picture is not there ({FOLDER}/lost.mask.png)",
        f"1 picture without a mask, learned as a whole ({FOLDER}/c.png)",
    ]
    assert build.run(datasets=[MASKED]) == Items(total=3, computed=0)
    build.put("a.mask.png", encoded(Image.new("L", (40, 30), 7)))
    assert build.run(datasets=[MASKED]) == Items(total=3, computed=1)
    assert build.rows[0].digest not in (first.digest, whole)


def test_bad_masks_are_told_with_their_pictures(build: Build) -> None:
    for name in "ab":
        build.put(f"{name}.png", seed=ord(name))
    build.put("a.mask.png", b"text")
    (build.project / FOLDER / "b.mask.png").symlink_to("nowhere")
    with pytest.raises(DataError) as caught:
        build.run(datasets=[MASKED])
    assert [str(problem).split(";")[0] for problem in caught.value.problems] == [
        f"{FOLDER}/a.png: its mask {FOLDER}/a.mask.png is text, not a picture, in spite of its .png",
        f"{FOLDER}/b.png: its mask {FOLDER}/b.mask.png links to a file that is not there",
    ]
    build.put("c.png", seed=3)
    build.run(datasets=[MASKED], on_error="skip")
    assert [row.path for row in build.rows] == [f"{FOLDER}/c.png"]


def test_an_interrupted_step_keeps_what_it_decoded(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(5):
        build.put(f"{seed}.png", seed=seed)

    def stop(done: int, total: int, unit: str, **figures: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(build, "progress", stop)
    with pytest.raises(KeyboardInterrupt):
        build.run()
    monkeypatch.undo()
    assert build.run().computed == 2
