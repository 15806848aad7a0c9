"""The latents step."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdbuild.data.buckets import Fit
from sdbuild.data.items import ShardReader
from sdbuild.data.masks import ALPHA
from sdbuild.data.pictures import decode, pixel_digest
from sdbuild.data.records import ImageRecord, read_images, write_images
from sdbuild.data.wanted import wanted_latents
from sdbuild.errors import DataError
from sdbuild.families import load, networks, sd1
from sdbuild.families.digest import read_digest
from sdbuild.steps import latents
from tests.steps.stage import Stage, write_records
from tests.tiny import make_pictures, make_pipeline

SPEC = {"version": 1, "datasets": ["pictures"], "flip": False, "background": "white", "dtype": "float32"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("base"))


@pytest.fixture
def stage(tmp_path: Path, base: Path) -> Stage:
    return Stage(tmp_path, base)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def index(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "latents/index.jsonl").read_text().splitlines()]


def test_latents_are_the_vaes_own(stage: Stage) -> None:
    pictures = make_pictures(stage.project / "pictures", 3, size=(64, 56))
    images = write_records(stage.project, pictures)
    items, out = stage.run(latents, SPEC, images=images)
    assert (items.total, items.computed) == (3, 3)
    assert stage.told == [(done, 3, "latents") for done in range(4)]
    reader, encoder = ShardReader(out / "latents"), load(stage.base).load_vae()
    keys = {row["digest"]: row["key"] for row in index(out)}
    for record in read_images(images):
        array = np.asarray(Image.open(stage.project / record.path).convert("RGB"))
        pixels = torch.from_numpy(array.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        mean, logvar = encoder.encode(pixels)
        item = reader.read(keys[record.digest])
        assert item["mean"].shape == (4, 7, 8)
        assert item["mean"].dtype == item["logvar"].dtype == torch.float32
        torch.testing.assert_close(item["mean"], mean)
        torch.testing.assert_close(item["logvar"], logvar)


def test_only_new_pictures_are_encoded(stage: Stage) -> None:
    folder = stage.project / "pictures"
    stage.run(latents, SPEC, images=write_records(stage.project, make_pictures(folder, 40)))
    items, out = stage.run(latents, SPEC, images=write_records(stage.project, make_pictures(folder, 41)))
    assert (items.total, items.computed) == (41, 1)
    before, after = files(stage.previous / "latents"), files(out / "latents")
    changed = {name for name in after if before.get(name) != after[name]}
    assert len(changed) == 2
    assert "index.jsonl" in changed
    items, out = stage.run(latents, SPEC, images=write_records(stage.project, make_pictures(folder, 40)))
    assert (items.total, items.computed) == (40, 0)
    assert files(out / "latents") == before


def test_nothing_is_loaded_when_nothing_is_missing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_records(stage.project, make_pictures(stage.project / "pictures", 2))
    stage.run(latents, SPEC, images=images)
    monkeypatch.setattr(sd1, "family", None)
    assert stage.run(latents, SPEC, images=images)[0].computed == 0


def test_the_last_out_serves_where_the_store_is_gone(stage: Stage) -> None:
    images = write_records(stage.project, make_pictures(stage.project / "pictures", 4))
    _, first = stage.run(latents, SPEC, images=images)
    for path in (stage.items / "latents").iterdir():
        path.unlink()
    items, second = stage.run(latents, SPEC, images=images)
    assert items.computed == 0
    assert files(first / "latents") == files(second / "latents")


def test_bytes_do_not_depend_on_what_else_is_encoded(tmp_path: Path, base: Path) -> None:
    whole, grown = Stage(tmp_path / "a", base), Stage(tmp_path / "b", base)
    _, out = whole.run(latents, SPEC, images=write_records(whole.project, make_pictures(whole.project / "p", 5)))
    for n in (2, 5):
        _, last = grown.run(latents, SPEC, images=write_records(grown.project, make_pictures(grown.project / "p", n)))
    assert files(out / "latents") == files(last / "latents")


def test_equal_pixels_are_one_item(stage: Stage) -> None:
    pictures = make_pictures(stage.project / "pictures", 2)
    pictures[1].write_bytes(pictures[0].read_bytes())
    items, out = stage.run(latents, SPEC, images=write_records(stage.project, pictures))
    assert (items.total, items.computed) == (1, 1)
    assert len(index(out)) == 1


def test_flipped_pictures_are_items_of_their_own(stage: Stage) -> None:
    (picture,) = make_pictures(stage.project / "pictures", 1)
    images = write_records(stage.project, [picture])
    stage.run(latents, SPEC, images=images)
    items, out = stage.run(latents, {**SPEC, "flip": True}, images=images)
    assert (items.total, items.computed) == (2, 1)
    plain, flipped = index(out)
    assert (plain["flip"], flipped["flip"]) == (False, True)
    mirrored = np.asarray(Image.open(picture).convert("RGB"))[:, ::-1].astype(np.float32) / 127.5 - 1
    mean, _ = load(stage.base).load_vae().encode(torch.from_numpy(mirrored.copy()).permute(2, 0, 1)[None])
    torch.testing.assert_close(ShardReader(out / "latents").read(flipped["key"])["mean"], mean)


def masked_records(stage: Stage) -> tuple[Path, Image.Image]:
    """`images.jsonl` of one picture whose left half counts, seen in two ways by dataset 0 and in one by dataset 1."""
    (picture,) = make_pictures(stage.project / "pictures", 1, size=(64, 56))
    mask = Image.new("L", (64, 56))
    mask.paste(255, (0, 0, 32, 56))
    mask.save(stage.project / "pictures/0000.mask.png")
    (record,) = read_images(write_records(stage.project, [picture]))
    record = replace(
        record, digest=pixel_digest(Image.open(picture).convert("RGB"), mask), mask="pictures/0000.mask.png"
    )
    small = Fit(bucket=(32, 24), resize=(32, 28), crop=(0, 3))
    rows = [replace(record, further=(small,)), replace(record, dataset=1)]
    write_images(stage.project / "images.jsonl", rows)
    return stage.project / "images.jsonl", mask


def test_masks_lie_beside_their_latents(stage: Stage) -> None:
    images, _ = masked_records(stage)
    items, out = stage.run(latents, {**SPEC, "flip": True}, images=images)
    assert (items.total, items.computed) == (4, 4)
    reader, found = ShardReader(out / "latents"), {}
    for row in index(out):
        item = reader.read(row["key"])
        assert item["mask"].shape == (1, *item["mean"].shape[1:])
        found[row["flip"], item["mask"].shape[-1]] = item["mask"], row.get("datasets")
    left = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]).expand(1, 7, 8)
    assert torch.equal(found[False, 8][0], left)
    assert torch.equal(found[True, 8][0], left.flip(-1))
    assert found[False, 4][0][0, 0].tolist() == pytest.approx([1, 1, 0, 0], abs=0.1), "scaled masks have soft edges"
    assert (found[False, 8][1], found[False, 4][1]) == (None, [0])


def test_what_has_no_transparency_to_mask_it_is_said(stage: Stage) -> None:
    opaque, masked = make_pictures(stage.project / "pictures", 2)
    image = Image.open(masked).convert("RGB")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(masked)
    rows = read_images(write_records(stage.project, [opaque]))
    decoded = decode(masked.read_bytes(), background="white", name="a")
    rows += [replace(*rows, path="pictures/0001.png", digest=pixel_digest(decoded.image, decoded.alpha))]
    images = stage.project / "images.jsonl"
    write_images(images, [replace(row, mask=ALPHA) for row in rows])
    for _ in range(2):
        stage.run(latents, {**SPEC, "flip": True}, images=images)
    word = "1 picture without transparency for mask: {from: alpha}, learned as a whole (pictures/0000.png)"
    assert stage.warnings == [word] * 2


def test_a_changed_mask_is_noticed(stage: Stage) -> None:
    images, mask = masked_records(stage)
    mask.paste(255, (0, 0, 40, 56))
    mask.save(stage.project / "pictures/0000.mask.png")
    with pytest.raises(DataError, match=r"^pictures/0000.png: changed while it was being built; build again$"):
        stage.run(latents, SPEC, images=images)


def test_families_that_see_size_and_crop_have_them(stage: Stage, tmp_path: Path) -> None:
    xl = make_pipeline(tmp_path / "xl", family="sdxl")
    images = write_records(stage.project, make_pictures(stage.project / "pictures", 1))
    (record,) = read_images(images)
    narrow = Fit(bucket=(24, 32), resize=(32, 32), crop=(2, 0))
    record = replace(record, bucket=(32, 24), resize=(32, 32), crop=(0, 6), further=(narrow,))
    write_images(images, [record])
    _, out = stage.run(latents, {**SPEC, "flip": True}, images=images, base=xl)
    reader = ShardReader(out / "latents")
    found = {(row["flip"], *reader.read(row["key"])["geometry"].tolist()) for row in index(out)}
    assert found == {
        (False, 64, 64, 6, 0, 24, 32),
        (True, 64, 64, 6, 0, 24, 32),
        (False, 64, 64, 0, 2, 32, 24),
        (True, 64, 64, 0, 6, 32, 24),
    }


def test_another_vae_or_bucket_is_another_item(stage: Stage, tmp_path: Path) -> None:
    pictures = make_pictures(stage.project / "pictures", 2)
    stage.run(latents, SPEC, images=write_records(stage.project, pictures))
    other = make_pipeline(tmp_path / "other", seed=1)
    items, _ = stage.run(latents, SPEC, images=write_records(stage.project, pictures), base=other)
    assert items.computed == 2
    items, _ = stage.run(latents, SPEC, images=write_records(stage.project, pictures, bucket=(64, 32)))
    assert items.computed == 2


def test_pictures_that_change_meanwhile_are_refused(stage: Stage) -> None:
    pictures = make_pictures(stage.project / "pictures", 3)
    images = write_records(stage.project, pictures)
    Image.new("RGB", (64, 64), "red").save(pictures[1])
    with pytest.raises(DataError, match=r"^pictures/0001.png: changed while it was being built; build again$"):
        stage.run(latents, SPEC, images=images)


def test_buckets_that_the_base_cannot_take_are_refused(stage: Stage) -> None:
    images = write_records(stage.project, make_pictures(stage.project / "pictures", 1, size=(60, 64)))
    with pytest.raises(DataError, match=r"images.buckets.step: buckets 60×64: sides must be multiples of 8"):
        stage.run(latents, SPEC, images=images)


def test_what_was_encoded_is_kept_when_a_later_picture_fails(stage: Stage) -> None:
    pictures = make_pictures(stage.project / "pictures", 30)
    images = write_records(stage.project, pictures)
    wanted = wanted_latents(read_images(images), SPEC, read_digest(SPEC, stage.base, latents.COMPONENTS))
    last = stage.project / wanted[max(wanted)].placement.record.path
    good = last.read_bytes()
    last.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        stage.run(latents, SPEC, images=images)
    last.write_bytes(good)
    assert stage.run(latents, SPEC, images=images)[0].computed <= latents.AHEAD + 1


def test_few_pictures_are_in_memory_at_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_records(stage.project, make_pictures(stage.project / "pictures", 60))
    lock, alive, most = threading.Lock(), 0, 0
    read, encode = latents.read_pixels, networks.KLEncoder.encode

    def counted_read(*arguments: Any) -> Any:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return read(*arguments)

    def counted_encode(self: networks.KLEncoder, pixels: torch.Tensor) -> Any:
        nonlocal alive
        with lock:
            alive -= 1
        return encode(self, pixels)

    monkeypatch.setattr(latents, "read_pixels", counted_read)
    monkeypatch.setattr(networks.KLEncoder, "encode", counted_encode)
    stage.run(latents, SPEC, images=images)
    assert alive == 0
    assert 1 < most <= latents.AHEAD + 1


def test_asking_what_is_wanted_is_light() -> None:
    code = (
        "import sys; import sdbuild.steps.latents, sdbuild.steps.text, sdbuild.steps.samples;"
        "sys.exit(bool({'torch', 'diffusers', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_keys_are_fixed() -> None:
    record = ImageRecord(
        path="a.png",
        dataset=0,
        digest="d",
        width=64,
        height=64,
        bucket=(64, 64),
        resize=(64, 64),
        crop=(0, 0),
        split="train",
    )
    (key,) = wanted_latents([record], SPEC, "vae")
    assert key == "c2ebf7f06c5e90e853572e646126bde3bfe2f4946f040997916bebe9625fbc8e"


def test_tiling_is_for_pictures_larger_than_the_vae_was_made_for(stage: Stage) -> None:
    pictures = make_pictures(stage.project / "pictures", 1, size=(128, 64))
    small = make_pictures(stage.project / "pictures" / "small", 1, size=64, seed=1)
    images = write_records(stage.project, [*pictures, *small])
    _, whole = stage.run(latents, SPEC, images=images)
    items, tiled = stage.run(latents, {**SPEC, "vae_tiling": True}, images=images)
    assert items.computed == 2, "latents made otherwise are other items"
    found = [
        (ShardReader(out / "latents"), {row["digest"]: row["key"] for row in index(out)}) for out in (whole, tiled)
    ]
    alike = []
    for record in read_images(images):
        one, other = (reader.read(keys[record.digest])["mean"] for reader, keys in found)
        assert one.shape == other.shape
        assert (one - other).abs().mean() < one.abs().mean(), "tiles are of the same picture"
        alike.append(torch.equal(one, other))
    assert alike == [False, True]
