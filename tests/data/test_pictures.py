"""Every kind of picture that people have: what opens opens as RGB, what does not says why."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from sdbuild.data import formats
from sdbuild.data.buckets import Fit
from sdbuild.data.examine import examine
from sdbuild.data.pictures import decode, fit, open_picture, pixel_digest
from sdbuild.data.pixelcache import PixelCache
from sdbuild.errors import DataError
from tests.data.files import animated, bomb, chunk, encoded, pattern, write


def opened(data: bytes, background: str = "white") -> Image.Image:
    image = decode(data, background=background, name="a.png").image
    assert image.mode == "RGB"
    return image


def pixel(data: bytes, background: str = "white") -> tuple[int, ...]:
    value = opened(data, background).getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


def test_lossless_files_have_the_digest_of_their_pixels() -> None:
    image = pattern()
    files = [encoded(image, "PNG"), encoded(image, "PNG", compress_level=0), encoded(image, "BMP")]
    files += [encoded(image, "WEBP", lossless=True), encoded(image, "TIFF"), encoded(image.convert("RGBA"), "PNG")]
    assert {pixel_digest(opened(data)) for data in files} == {pixel_digest(image)}


def test_the_digest_knows_the_shape() -> None:
    flat = Image.new("RGB", (6, 2))
    assert pixel_digest(flat) != pixel_digest(flat.resize((2, 6)))
    assert pixel_digest(pattern(seed=0)) != pixel_digest(pattern(seed=1))


def test_the_digest_is_the_one_of_this_version() -> None:
    """Golden: a change here makes every recipe compute every latent anew."""
    assert pixel_digest(pattern(3, 2)) == "d88b35e5f0399cd7a32fc02fc181643465ce20e4d463e88c2fa4ed9bb5e16e6a"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_pictures_upright(orientation: int) -> None:
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = pattern()
    stored = image.transpose(back[orientation]) if orientation in back else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert pixel_digest(opened(encoded(stored, "PNG", exif=exif))) == pixel_digest(image)


@pytest.mark.filterwarnings("ignore")
def test_broken_exif_is_passed_over() -> None:
    data = encoded(pattern(), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert pixel_digest(opened(data)) == pixel_digest(pattern())


def test_alpha_lies_over_the_background() -> None:
    clear = encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))
    assert pixel(clear) == (255, 255, 255)
    assert pixel(clear, "#102030") == (16, 32, 48)
    assert pixel(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 51))), "black") == (51, 0, 0)


def test_a_tga_says_whether_its_fourth_byte_is_alpha() -> None:
    for descriptor, shown in ((0, (10, 20, 30)), (8, (255, 255, 255))):
        head = bytes([0, 0, 2, *[0] * 9, 4, 0, 4, 0, 32, descriptor])
        found = decode(head + bytes([30, 20, 10, 0]) * 16, background="white", name="a.tga").image
        assert found.getpixel((0, 0)) == shown


def test_grey_with_alpha() -> None:
    assert pixel(encoded(Image.new("LA", (4, 4), (0, 0)))) == (255, 255, 255)
    assert pixel(encoded(Image.new("LA", (4, 4), (80, 255)))) == (80, 80, 80)


def test_palettes() -> None:
    image = Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4)
    assert pixel(encoded(image)) == (10, 200, 30)
    index = image.getpixel((0, 0))
    assert pixel(encoded(image, transparency=index)) == (255, 255, 255)
    assert pixel(encoded(image, transparency=bytes([0] * 256))) == (255, 255, 255)
    assert pixel(encoded(image, "GIF", transparency=index), "black") == (0, 0, 0)


def test_black_and_white() -> None:
    assert pixel(encoded(Image.new("1", (9, 4), 1))) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_range(kind: str) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    image = opened(encoded(Image.fromarray(values), kind))
    assert np.array_equal(np.asarray(image)[..., 0], (values >> 8).astype(np.uint8))


def test_floating_point_is_refused() -> None:
    with pytest.raises(DataError, match=r"a\.png: has floating-point pixels.*save it with 8 bits"):
        opened(encoded(Image.new("F", (4, 4), 0.5), "TIFF"))


def test_cmyk() -> None:
    image = opened(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))
    red, green, blue = np.asarray(image)[0, 0]
    assert red > 200
    assert max(green, blue) < 60


def test_other_colour_profiles_become_srgb() -> None:
    image = Image.new("RGB", (4, 4), (200, 60, 60))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert pixel(encoded(image, icc_profile=srgb)) == (200, 60, 60)
    assert pixel(encoded(image, icc_profile=b"not a profile")) == (200, 60, 60)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert pixel(encoded(image, icc_profile=lab)) == (200, 60, 60), "a profile for another mode is passed over"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_give_their_first_frame(kind: str) -> None:
    picture = decode(animated(kind), background="white", name="a.gif")
    assert picture.frames_dropped
    difference = np.abs(np.asarray(picture.image).astype(int) - np.asarray(pattern()).astype(int))
    assert difference.mean() < (12 if kind == "GIF" else 0.01)
    assert not decode(encoded(pattern(), kind), background="white", name="a.gif").frames_dropped


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_files_are_refused(kind: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(DataError, match=r"^a\.png: (is cut short|is damaged|is no picture).*(delete it)$"):
        opened(data[: int(len(data) * part)])


def test_a_truncated_jpeg_is_called_so() -> None:
    with pytest.raises(DataError, match=r"is cut short \(truncated\); copy it again or delete it"):
        opened(encoded(pattern(400, 400), "JPEG")[:3000])


@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_never_escape_as_other_errors() -> None:
    extras = [kind for kind in formats.EXTRAS if formats.make_known(kind) is None]
    random = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", *extras):
        whole = encoded(pattern(), kind)
        for _ in range(60):
            data = bytearray(whole)
            for place in random.integers(0, len(data), 4):
                data[place] = random.integers(0, 256)
            with contextlib.suppress(DataError):
                opened(bytes(data))


def test_a_palette_that_is_missing() -> None:
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 3, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(bytes(9 * 8))) + chunk(b"IEND", b"")
    with pytest.raises(DataError, match=r"a\.png: is damaged"):
        decode(data, background="white", name="a.png")


def test_text_is_not_a_picture() -> None:
    with pytest.raises(DataError, match=r"a\.png: is text, not a picture, in spite of its \.png"):
        opened("a cat, sitting — 猫".encode())
    with pytest.raises(DataError, match=r"is text, not a picture"):
        opened(b"<html>404</html>")
    with pytest.raises(DataError, match=r"is no picture in a known format"):
        opened(b"\x00\x01\x02" * 100)


def test_equal_files_are_named_by_their_own_endings(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.jpg"):
        (tmp_path / name).write_text("a cat")
    cache = PixelCache(tmp_path / "pixels.sqlite")
    found = examine(["a.png", "b.jpg", "c.jpg"], {}, tmp_path, cache, "white", lambda done, total: None).problems
    assert {name: problem.message.partition("its ")[2][:4] for name, problem in found.items()} == {
        "a.png": ".png",
        "b.jpg": ".jpg",
        "c.jpg": ".jpg",
    }


def test_scripts_that_draw_are_not_run() -> None:
    with pytest.raises(DataError, match="is text, not a picture"):
        opened(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")


def test_a_decompression_bomb_is_refused() -> None:
    with pytest.raises(DataError, match=r"has more than 178 million pixels \(.*\); scale it down"):
        opened(bomb())


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x/gone\.png: is gone"):
        open_picture(tmp_path / "gone.png", name="x/gone.png")
    with pytest.raises(DataError, match=r"empty\.png: is empty \(zero bytes\)"):
        open_picture(write(tmp_path / "empty.png", b""))
    os.truncate(write(tmp_path / "large.png", b"\x89PNG"), 1 << 40)
    with pytest.raises(DataError, match=r"large\.png: has 1,048,576 MiB; files of up to 1,536 MiB are read"):
        open_picture(tmp_path / "large.png")
    (tmp_path / "link.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"links to a file that is not there"):
        open_picture(tmp_path / "link.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        open_picture(tmp_path / "folder.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_permissions(tmp_path: Path) -> None:
    write(tmp_path / "a.png", encoded(pattern())).chmod(0)
    with pytest.raises(DataError, match=r"may not be read; mend its permissions"):
        open_picture(tmp_path / "a.png")


def test_permissions_by_the_systems_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, most: int) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sdbuild.data.pictures.read_regular", refuse)
    with pytest.raises(DataError, match=r"may not be read; mend its permissions"):
        open_picture(tmp_path / "a.png")


def test_names_in_any_script(tmp_path: Path) -> None:
    for name in ("猫.png", "кот 1.png", "é.png", "قط.png", "👩‍🚀.png"):
        assert open_picture(write(tmp_path / name, encoded(pattern()))).size == (40, 30)


def test_fit_scales_and_crops() -> None:
    pixels = fit(pattern(80, 40), Fit(resize=(64, 32), crop=(16, 0), bucket=(32, 32)))
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    whole = fit(pattern(80, 40), Fit(resize=(64, 32), crop=(0, 0), bucket=(64, 32)))
    assert np.array_equal(pixels, whole[:, 16:48])
    assert np.array_equal(fit(pattern(), Fit(resize=(40, 30), crop=(0, 0), bucket=(40, 30))), np.asarray(pattern()))
