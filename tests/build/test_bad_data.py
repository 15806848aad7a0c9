"""Bad pictures and captions, as a user meets them: one message each, nothing lost, no traceback."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable

import pytest
from PIL import Image

from tests.conftest import Work

PICTURE = "datasets/cats/bad"


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def broken_link(work: Work) -> None:
    (work.root / f"{PICTURE}.png").symlink_to("nowhere.png")


def one_pixel(work: Work) -> None:
    Image.new("RGB", (1, 1)).save(work.root / f"{PICTURE}.png")


def long_one(work: Work) -> None:
    Image.new("RGB", (2000, 20)).save(work.root / f"{PICTURE}.png")


BAD: dict[str, Callable[[Work], object]] = {
    "truncated JPEG": lambda work: work.write(f"{PICTURE}.png", jpeg()[:-200]),
    "zero bytes": lambda work: work.write(f"{PICTURE}.png", b""),
    "text": lambda work: work.write(f"{PICTURE}.png", "I am a picture"),
    "broken link": broken_link,
    "1x1": one_pixel,
    "extreme aspect": long_one,
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_picture(built: Work, kind: str) -> None:
    adapter = built.adapter()
    BAD[kind](built)
    built.write(f"{PICTURE}.txt", "a bad picture")
    result = built.doit(code=2)
    assert f"{PICTURE}.png: " in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert built.adapter() == adapter
    built.recipe(images={"on_error": "skip"})
    skipped = built.doit()
    assert "1 picture skipped" in skipped.out
    assert json.loads(built.read("build/cat/metrics.json"))["skipped"] == 1
    if kind != "broken link":  # which DVC itself stumbles over
        assert "up to date" in built.dvc("status").out
    assert built.doit().ran == {}


def test_all_bad_pictures_are_listed_together(work: Work) -> None:
    for index, make in enumerate(BAD.values()):
        make(work)
        os.rename(work.root / f"{PICTURE}.png", work.root / f"{PICTURE}{index}.png")
    result = work.doit(code=2)
    assert [line for line in result.err.splitlines() if line.startswith(PICTURE)] != []
    assert len(result.err.strip().splitlines()) == len(BAD)


def test_no_pictures(empty: Work) -> None:
    (empty.root / "datasets/cats").mkdir(parents=True)
    empty.recipe()
    assert "datasets/cats: holds no pictures" in empty.doit(code=2).err


def test_hold_out_larger_than_the_data(work: Work) -> None:
    work.recipe(datasets=[{"path": "datasets/cats", "holdout": 9}])
    told = "recipes/cat.yaml:5: datasets[0].holdout: is 9, but only 4 pictures of datasets/cats can be used"
    assert told in work.doit(code=2).err


@pytest.mark.parametrize(
    ("caption", "message"),
    [(b"", "empty"), ("ein grüner Hut".encode("latin-1"), "UTF-8")],
    ids=["empty", "latin-1"],
)
def test_bad_caption(work: Work, caption: bytes, message: str) -> None:
    work.write("datasets/cats/0001.txt", caption)
    result = work.doit(code=2)
    assert "datasets/cats/0001.txt" in result.err
    assert message in result.err


def test_missing_caption(work: Work) -> None:
    (work.root / "datasets/cats/0001.txt").unlink()
    assert "0001.png" in work.doit(code=2).err


def test_long_captions_are_said_once_with_a_count(work: Work) -> None:
    for index in range(3):
        work.write(f"datasets/cats/000{index}.txt", f"a cat {index} " + "and more " * 60)
    result = work.doit()
    assert len([line for line in result.out.splitlines() if line.startswith("warning: cat:text: 3 captions")]) == 1


def test_target_that_matches_no_module(work: Work) -> None:
    work.recipe(method={"targets": ["to_qq"]})
    result = work.doit(code=2)
    assert "to_qq" in result.err
    assert "to_q" in result.err.replace("to_qq", "")
