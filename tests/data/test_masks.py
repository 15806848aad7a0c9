"""Which file is the mask of which picture, and what a masked picture is remembered by."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdbuild.data.buckets import Fit
from sdbuild.data.masks import ALPHA, pair, pixel_keys, treatment
from sdbuild.data.pictures import decode, fit, mask_of, open_masked, pixel_digest
from sdbuild.errors import DataError
from tests.data.files import encoded, pattern, write

SIDECAR = {"from": "sidecar", "suffix": ".mask"}
FOLDER = {"from": "folder", "folder": "masks"}


def grey(value: int = 128, width: int = 40, height: int = 30) -> Image.Image:
    """White on the left, `value` on the right."""
    image = Image.new("L", (width, height), 255)
    image.paste(value, (width // 2, 0, width, height))
    return image


def test_without_masks_all_are_pictures() -> None:
    paths = ["a.mask.png", "a.png", "masks/a.png"]
    assert pair(paths, None).pictures == tuple(paths)
    assert pair(paths, None).masks == {}
    assert pair(paths, {"from": ALPHA}).masks == dict.fromkeys(paths, ALPHA)


def test_masks_beside_pictures() -> None:
    paths = [".mask.png", "a.jpg", "a.mask.png", "a.mask.webp", "a.png", "b.mask.png", "sub/a.mask.png", "sub/a.png"]
    found = pair(sorted(paths), SIDECAR)
    assert found.pictures == (".mask.png", "a.jpg", "a.png", "sub/a.png")
    assert found.masks == {"a.jpg": "a.mask.png", "a.png": "a.mask.png", "sub/a.png": "sub/a.mask.png"}
    assert (found.twice, found.alone) == (("a.mask.webp",), ("b.mask.png",))
    assert pair(["a-masklabel.png", "a.png"], {**SIDECAR, "suffix": "-masklabel"}).masks == {"a.png": "a-masklabel.png"}


def test_masks_in_a_folder() -> None:
    found = pair(["a.jpg", "masks/a.png", "masks/sub/b.png", "sub/b.png", "sub/masks/b.png"], FOLDER)
    assert found.pictures == ("a.jpg", "sub/b.png", "sub/masks/b.png")
    assert found.masks == {"a.jpg": "masks/a.png", "sub/b.png": "masks/sub/b.png"}


def test_names_across_unicode_forms() -> None:
    composed, apart = (unicodedata.normalize(form, "ä") for form in ("NFC", "NFD"))
    assert pair([f"{apart}.mask.png", f"{composed}.png"], SIDECAR).masks == {f"{composed}.png": f"{apart}.mask.png"}


def test_what_pixels_are_remembered_by() -> None:
    listing = {"a.png": "1", "a.mask.png": "2", "b.png": "3"}
    assert list(pixel_keys(listing, SIDECAR, "white")) == [("1", "white mask 2"), ("3", "white")]
    assert list(pixel_keys({"a.png": "1"}, {"from": ALPHA}, "grey")) == [("1", "grey alpha")]
    assert treatment("white", None, {}) == "white"


def test_the_digest_covers_the_mask() -> None:
    image = pattern()
    digests = {pixel_digest(image, mask) for mask in (None, grey(), grey(127), grey().transpose(Image.Transpose(0)))}
    assert len(digests) == 4


def masked(image: Image.Image, mask: Image.Image) -> Image.Image | None:
    picture = decode(encoded(image), background="white", name="a.png")
    return mask_of(picture, "a.mask.png", encoded(mask), name="a.png")


def test_a_white_mask_is_none() -> None:
    assert masked(pattern(), grey(255)) is None
    assert mask_of(decode(encoded(pattern()), background="white", name="a.png"), ALPHA, None, name="a.png") is None


def test_values_of_masks_stay() -> None:
    for mode in ("L", "RGB", "RGBA", "LA"):
        found = masked(pattern(), grey(100).convert(mode))
        assert found is not None
        assert np.array_equal(np.asarray(found), np.asarray(grey(100)))


def test_alpha_is_a_mask() -> None:
    image = pattern()
    image.putalpha(grey(0))
    found = mask_of(decode(encoded(image), background="black", name="a.png"), ALPHA, None, name="a.png")
    assert found is not None
    assert np.array_equal(np.asarray(found), np.asarray(grey(0)))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (encoded(grey(0, 41, 30)), "a.png: its mask a.mask.png has 41×30 pixels, the picture 40×30; save both in one"),
        (encoded(Image.new("L", (40, 30))), r"a.png: has a mask that is black \(a.mask.png\) everywhere, so nothing"),
        (b"text", "a.png: its mask a.mask.png is text, not a picture"),
        (None, "a.png: its mask a.mask.png is gone"),
    ],
)
def test_bad_masks(tmp_path: Path, mask: bytes | None, message: str) -> None:
    write(tmp_path / "a.png", encoded(pattern()))
    if mask is not None:
        write(tmp_path / "a.mask.png", mask)
    with pytest.raises(DataError, match=message):
        open_masked(tmp_path, "a.png", "a.mask.png", "white")


def test_a_transparent_picture_teaches_nothing(tmp_path: Path) -> None:
    image: Any = pattern()
    image.putalpha(0)
    write(tmp_path / "a.png", encoded(image))
    with pytest.raises(DataError, match="is transparent everywhere"):
        open_masked(tmp_path, "a.png", ALPHA, "white")


def test_masks_fit_without_overshooting() -> None:
    how = Fit(bucket=(16, 16), resize=(20, 16), crop=(2, 0))
    found = fit(grey(10, 100, 80), how)
    assert found.shape == (16, 16)
    assert (found.min(), found.max()) == (10, 255)
