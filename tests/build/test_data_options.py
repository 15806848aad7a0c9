"""Resolutions, crops, masks, weights, tags and several captions, through the command line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdbuild.data.items import ShardReader
from tests.conftest import Work
from tests.tiny import make_pictures

CATS: dict[str, Any] = {
    "path": "datasets/cats",
    "trigger": "sks",
    "holdout": 1,
    "weight": 3,
    "resolutions": [32, 48],
    "lines": True,
    "tags": {"variants": 3},
    "mask": {"from": "sidecar", "minimum": 0.1},
}
DOGS: dict[str, Any] = {
    "path": "datasets/dogs",
    "caption": {"from": "jsonl"},
    "weight": 1,
    "mask": {"from": "alpha"},
}
IMAGES = {"resolution": 32, "buckets": {"step": 8, "max_aspect": 1}, "crop": "random", "crops": 2, "flip": True}


def mask(path: Path, right: int) -> None:
    """A mask of the picture `path`: white on the left, `right` on the right."""
    with Image.open(path) as picture:
        image = Image.new("L", picture.size, 255)
    image.paste(right, (image.width // 2, 0, *image.size))
    image.save(path.with_suffix(".mask.png"))


@pytest.fixture(scope="module")
def rich_template(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that uses everything, built once."""
    work = Work(template).copy(tmp_path_factory.mktemp("rich") / "project")
    for index, path in enumerate(make_pictures(work.root / "datasets/cats", 4, size=(64, 40))):
        path.with_suffix(".txt").write_text(f"cat {index}, red, round, old\ntom {index}\n")
        if index:
            mask(path, 0)
    dogs = make_pictures(work.root / "datasets/dogs", 3, seed=1, size=32, captions=False)
    with Image.open(dogs[0]) as opened:
        picture = opened.convert("RGB")
    picture.putalpha(Image.new("L", picture.size, 200))
    picture.save(dogs[0])
    rows: list[dict[str, Any]] = [{"file_name": path.name, "text": f"dog {path.stem}"} for path in dogs]
    rows[1]["text"] = ["a dog", "a hound"]
    work.write("datasets/dogs/metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    work.recipe(datasets=[CATS, DOGS], images=IMAGES, train={"steps": 6, "batch": 2})
    result = work.doit()
    assert "1 picture without a mask, learned as a whole (datasets/cats/0000.png)" in result.text
    return work.root


@pytest.fixture
def rich(rich_template: Path, tmp_path: Path) -> Work:
    return Work(rich_template).copy(tmp_path / "project")


def rows(work: Work, path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in work.read(f"build/cat/{path}").splitlines()]


def fits(row: dict[str, Any]) -> Iterator[tuple[int, ...]]:
    for each in (row, *row.get("further", ())):
        yield (*each["bucket"], *each["crop"])


def ran(work: Work) -> dict[str, int]:
    return {name.removeprefix("cat:"): items for name, items in work.doit().ran.items()}


def test_every_way_of_seeing_is_an_item(rich: Work) -> None:
    assert ran(rich) == {}
    images = rows(rich, "images.jsonl")
    assert [row.get("mask") for row in images if row["dataset"] == 0] == [
        None,
        *(f"datasets/cats/000{index}.mask.png" for index in (1, 2, 3)),
    ]
    buckets = {row["path"]: Counter(fit[:2] for fit in fits(row)) for row in images}
    assert buckets["datasets/cats/0001.png"] == {(32, 32): 2, (48, 48): 2}
    assert buckets["datasets/dogs/0000.png"] == {(32, 32): 1}

    latents = rows(rich, "latents/index.jsonl")
    assert len(latents) == 2 * sum(len(list(fits(row))) for row in images)
    reader = ShardReader(rich.root / "build/cat/latents")
    masked = Counter(row["digest"] for row in latents if "mask" in reader.read(row["key"]))
    with_mask = [row for row in images if ".mask." in row.get("mask", "") or row["path"] == "datasets/dogs/0000.png"]
    assert masked == {row["digest"]: 2 * len(list(fits(row))) for row in with_mask}, "opaque dogs have none"

    held = {row["digest"] for row in images if row["split"] == "holdout"}
    texts = {row["text"] for row in rows(rich, "text/index.jsonl")}
    for row in rows(rich, "captions.jsonl"):
        own = {row["text"], *row.get("others", ())}
        if row["dataset"] == 1 or row["digest"] in held:
            assert row["text"] in texts
        else:
            (tags,) = (text for text in own if "," in text)
            first, *rest = tags.split(", ")
            variants = [text for text in texts if text.startswith(f"{first}, ")]
            assert 1 < len(variants) <= 3
            assert all(sorted(text.split(", ")[1:]) == sorted(rest) for text in variants)
    assert {"a dog", "a hound"} <= texts

    metrics = json.loads(rich.read("build/cat/metrics.json"))
    assert (metrics["pictures"], metrics["holdout"]) == (6, 1)


@pytest.mark.row("change the mask of one picture")
def test_one_change_is_its_own_items_and_no_others(rich: Work) -> None:
    adapter = rich.adapter()
    trained = [row for row in rows(rich, "images.jsonl") if row["dataset"] == 0 and row["split"] == "train"]
    picture = next(rich.root / row["path"] for row in trained if "mask" in row)

    good = picture.with_suffix(".mask.png").read_bytes()
    mask(picture, 90)
    plan = rich.plan()
    assert plan["cat:images"]["items"] == {"total": 7, "todo": 1}
    assert plan["cat:latents"]["items"] == {"total": None, "todo": None}
    assert ran(rich) == {"images": 1, "captions": 1, "latents": 8, "train": 6, "samples": 2}
    assert rich.adapter() != adapter
    picture.with_suffix(".mask.png").write_bytes(good)
    assert ran(rich) == {}
    assert rich.adapter() == adapter

    picture.with_suffix(".txt").write_text("one cat, red, round, old\none tom\n")
    steps = ran(rich)
    texts = [row["text"] for row in rows(rich, "text/index.jsonl") if row["text"].startswith("sks one")]
    assert steps == {"captions": 1, "text": len(texts), "train": 6, "samples": 2}
    assert 3 <= len(texts) <= 4


@pytest.mark.row("change `mask.minimum`, `weight` or `repeats` of a dataset")
def test_settings_run_what_they_concern(rich: Work) -> None:
    def build(cats: dict[str, Any] | None = None, **images: Any) -> dict[str, int]:
        rich.recipe(
            datasets=[{**CATS, **(cats or {})}, DOGS], images={**IMAGES, **images}, train={"steps": 6, "batch": 2}
        )
        return ran(rich)

    assert build({"mask": {"from": "sidecar", "minimum": 0.5}, "weight": 1}) == {"train": 6, "samples": 2}
    more = build({"tags": {"variants": 5}})
    assert more.keys() == {"text", "train", "samples"}
    assert 0 < more["text"] <= 2 * 3
    assert build(crops=3) == {"images": 0, "latents": 4 * 2 * 2, "train": 6, "samples": 2}
    assert build({"resolutions": [32]}) == {"images": 0, "latents": 0, "train": 6, "samples": 2}
    assert build() == {}


def test_mistakes_in_masks_are_told_by_check(rich: Work) -> None:
    Image.new("L", (64, 40)).save(rich.root / "datasets/cats/0001.mask.png")
    Image.new("L", (64, 41), 9).save(rich.root / "datasets/cats/0002.mask.png")
    result = rich.sdbuild("check", code=2)
    assert "datasets/cats/0001.png: has a mask that is black (datasets/cats/0001.mask.png) everywhere" in result.text
    assert "datasets/cats/0002.png: its mask datasets/cats/0002.mask.png has 64×41 pixels" in result.text
