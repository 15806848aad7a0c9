"""Colours, depths and metadata of pictures, against values that are computed here from the standards."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from sdbuild.data import formats
from sdbuild.data.pictures import decode, pixel_digest
from sdbuild.errors import DataError
from tests.data.files import chunk, encoded, pattern

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
P3 = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
ADOBE = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
SRGB = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)


def png(values: NDArray[Any], depth: int, kind: int, *chunks: bytes) -> bytes:
    """A PNG of [height, width, channels], written by hand."""
    height, width = values.shape[:2]
    flat = values.reshape(height, -1)
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in flat]
    else:
        bits = np.unpackbits(flat.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        rows = [np.packbits(row.ravel()).tobytes() for row in bits]
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def seen(data: bytes, name: str = "a.png", background: str = "white") -> NDArray[np.uint8]:
    return np.asarray(decode(data, background=background, name=name).image)


def linear(values: NDArray[Any]) -> NDArray[Any]:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def stored(values: NDArray[Any]) -> NDArray[Any]:
    values = values.clip(0, 1)
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


def to_xyz(primaries: tuple[float, ...]) -> NDArray[Any]:
    white, *corners = (
        np.array([x / y, 1, (1 - x - y) / y]) for x, y in zip(primaries[::2], primaries[1::2], strict=True)
    )
    matrix = np.stack(corners, axis=1)
    return matrix * np.linalg.solve(matrix, white)


def as_srgb(values: NDArray[Any], primaries: tuple[float, ...], gamma: float | None) -> NDArray[Any]:
    """8-bit colours of D65 primaries in sRGB; without a gamma the curve is sRGB's."""
    scaled = values / 255
    light = linear(scaled) if gamma is None else scaled**gamma
    return stored(light @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(primaries)).T) * 255


def colours() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(20, 236, (12, 12, 3)).astype(np.uint8)


def close(found: NDArray[Any], wanted: NDArray[Any], most: float = 2.5) -> None:
    inside = (wanted > 0.5) & (wanted < 254.5)
    assert np.abs(found.astype(float) - wanted)[inside].max() <= most


def profile(description: str, primaries: tuple[float, ...], gamma: float | None, *, grey: bool = False) -> bytes:
    """An ICC profile, version 2, written by hand: tables of curves, colorants adapted to D50."""
    ramp = np.linspace(0, 1, 1024)
    curve = np.round((linear(ramp) if gamma is None else ramp**gamma) * 65535).astype(">u2").tobytes()
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.9642, 1, 0.8249])
    x, y = primaries[:2]
    ratio = (bradford @ d50) / (bradford @ np.array([x / y, 1, (1 - x - y) / y]))
    columns = (np.linalg.inv(bradford) @ np.diag(ratio) @ bradford @ to_xyz(primaries)).T

    def xyz(values: Any) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(float(value) * 65536) for value in values))

    name = description.encode() + b"\0"
    tags = {b"desc": b"desc" + struct.pack(">II", 0, len(name)) + name + bytes(79), b"wtpt": xyz(d50)}
    shape = b"curv" + struct.pack(">II", 0, 1024) + curve
    if grey:
        tags[b"kTRC"] = shape
    else:
        tags |= {name: xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), shape)
    table, body = struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        table += tag + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = 132 + 12 * len(tags) + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"", 0x02400000, b"mntr", b"GRAY" if grey else b"RGB ", b"XYZ ")
    header += struct.pack(">6H4s", 2000, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    header += struct.pack(">3i", *(round(float(value) * 65536) for value in d50))
    return header.ljust(128, b"\0") + table + body


def iccp(content: bytes) -> bytes:
    return chunk(b"iCCP", b"any\0\0" + zlib.compress(content))


def test_a_profile_is_judged_by_what_it_does_and_not_by_its_name() -> None:
    values = colours()
    for name in ("sRGB IEC61966-2.1", "my SRGB, linear", "something else"):
        for primaries, gamma in ((SRGB, 1.0), (P3, None), (ADOBE, 2.2), (SRGB, 2.2)):
            close(seen(png(values, 8, 2, iccp(profile(name, primaries, gamma)))), as_srgb(values, primaries, gamma))
    named = profile("sRGB IEC61966-2.1", SRGB, None)
    assert np.array_equal(seen(png(values, 8, 2, iccp(named))), values), "sRGB's own values stay as they are"
    close(seen(png(values, 8, 2, iccp(profile("other", SRGB, None)))), values.astype(float), 1)
    builtin = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(seen(encoded(Image.fromarray(values), icc_profile=builtin)), values)


def test_profiles_in_other_formats() -> None:
    image = Image.fromarray(np.full((16, 16, 3), (90, 140, 60), dtype=np.uint8))
    wanted = as_srgb(np.asarray(image), SRGB, 1.0)
    content = profile("sRGB", SRGB, 1.0)
    for kind, how in (
        ("JPEG", {"quality": 100}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("AVIF", {"quality": 100}),
    ):
        close(seen(encoded(image, kind, icc_profile=content, **how)), wanted, 4)


def test_chunks_of_png_say_the_colours() -> None:
    values = colours()

    def chrm(primaries: tuple[float, ...]) -> bytes:
        return chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in primaries)))

    def gama(value: float) -> bytes:
        return chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))

    srgb = chunk(b"sRGB", b"\0")
    for chunks, primaries, gamma in (
        ([gama(1)], SRGB, 1.0),
        ([gama(1), chrm(P3)], P3, 1.0),
        ([chrm(P3)], P3, None),
        ([gama(1 / 2.2), chrm(ADOBE)], ADOBE, None),
        ([gama(0.55556)], SRGB, 1.8),
        ([chunk(b"cICP", bytes([12, 13, 0, 1])), srgb], P3, None),
        (
            [chunk(b"cICP", bytes([9, 8, 0, 1])), iccp(profile("x", ADOBE, 2.2))],
            (*P3[:2], 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
            1.0,
        ),
        ([gama(1), iccp(profile("x", P3, None))], P3, None),
    ):
        close(seen(png(values, 8, 2, *chunks)), as_srgb(values, primaries, gamma))
    for chunks in (
        [srgb, gama(1), chrm(P3)],
        [gama(0.45455), chrm(SRGB)],
        [gama(0.45455)],
        [gama(0)],
        [gama(0.00001)],
        [gama(20_000)],
        [chrm((0.0,) * 8)],
        [chunk(b"cICP", bytes([1, 13, 0, 1]))],
        [chunk(b"cICP", bytes([2, 2, 0, 1]))],
        [iccp(b"no profile"), srgb],
        [chunk(b"iCCP", b"x\0\0 not packed")],
        [chunk(b"gAMA", b"\0"), chunk(b"cHRM", b"\0"), chunk(b"sRGB", b""), chunk(b"pHYs", b"\0")],
    ):
        assert np.array_equal(seen(png(values, 8, 2, *chunks)), values)
    close(seen(png(values, 8, 2, iccp(b"no profile"), gama(1))), as_srgb(values, SRGB, 1.0))
    grey = np.arange(256).reshape(16, 16, 1)
    close(seen(png(grey, 8, 0, gama(1), chrm(P3)))[..., :1], stored(grey / 255) * 255)
    for transfer in (16, 18):
        with pytest.raises(DataError, match=r"is of high dynamic range \((PQ|HLG)\).*save it in sRGB"):
            seen(png(values, 8, 2, chunk(b"cICP", bytes([9, transfer, 0, 1]))))


def test_grey_profiles_are_for_grey_with_alpha_and_without() -> None:
    grey = np.arange(1, 256, dtype=np.uint16).reshape(15, 17, 1)
    clear = np.full_like(grey, 255)
    content = iccp(profile("grey", SRGB, 1.0, grey=True))
    wanted = stored(grey / 255) * 255
    both = np.concatenate([grey, clear], axis=-1)
    for data in (
        png(grey, 8, 0, content),
        png(both, 8, 4, content),
        png(grey * 257, 16, 0, content),
        png(both * 257, 16, 4, content),
    ):
        close(seen(data)[..., :1][grey > 24], wanted[grey > 24])
    rgb = iccp(profile("linear", SRGB, 1.0))
    for data in (png(grey, 8, 0, rgb), png(both, 8, 4, rgb), png(grey.repeat(3, axis=-1), 8, 2, content)):
        assert np.array_equal(seen(data)[..., :1], grey), "a profile for another kind of picture is passed over"
    half = np.concatenate([grey, np.full_like(grey, 128)], axis=-1)
    over = seen(png(half, 8, 4, content))[..., :1]
    close(over[grey > 24], (wanted * 128 / 255 + 127)[grey > 24])


def test_cameras_say_adobe_rgb_in_their_exif() -> None:
    image = Image.fromarray(np.full((16, 16, 3), (90, 140, 60), dtype=np.uint8))

    def taken(space: int, index: str) -> bytes:
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0xA001] = space
        exif.get_ifd(0x8769)[0xA005] = {1: index}
        return encoded(image, "JPEG", quality=100, exif=exif)

    plain = seen(encoded(image, "JPEG", quality=100))
    adobe = as_srgb(plain, ADOBE, 563 / 256)
    close(seen(taken(0xFFFF, "R03")), adobe)
    close(seen(taken(2, "R98")), adobe)
    for space, index in ((1, "R98"), (0xFFFF, "R98"), (1, "R03")):
        assert np.array_equal(seen(taken(space, index)), plain)


def test_high_dynamic_range_of_other_formats_is_refused() -> None:
    data = encoded(pattern(), "AVIF")
    place = data.index(b"colrnclx") + 8
    assert seen(data).shape == (30, 40, 3)
    wide = seen(data[:place] + struct.pack(">HH", 12, 13) + data[place + 4 :])
    close(wide, as_srgb(seen(data), P3, None))
    with pytest.raises(DataError, match="is of high dynamic range"):
        seen(data[:place] + struct.pack(">HH", 9, 16) + data[place + 4 :])


def test_large_texts_and_profiles_are_no_damage() -> None:
    values = colours()
    text = b"workflow " * 400_000
    texts = [
        chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(text)),
        chunk(b"zTXt", b"prompt\0\0" + zlib.compress(text)),
        chunk(b"tEXt", b"parameters\0" + text),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2**24))),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b" " * 2**24)),
        chunk(b"zTXt", b"damaged\0\0 not packed"),
    ]
    for each in texts:
        before, after = png(values, 8, 2, each, each), png(values, 8, 2)
        after = after[:-12] + each * 70 * (len(each) < 60_000) + after[-12:]
        assert np.array_equal(seen(before), values)
        assert np.array_equal(seen(after), values)
    noise = np.random.default_rng(0).bytes(3_000_000)
    close(seen(png(values, 8, 2, iccp(profile("x", P3, None) + noise))), as_srgb(values, P3, None))
    assert np.array_equal(seen(png(values, 8, 2, iccp(bytes(2**26)))), values), "a bomb is unpacked up to a bound"


def test_orientation_in_texts_of_png_still_counts() -> None:
    values = colours()[:6]
    xmp = b'<x:xmpmeta xmlns:tiff="t"><d tiff:Orientation="6"/></x:xmpmeta>'
    for body in (b"\0\0\0\0" + xmp, b"\1\0\0\0" + zlib.compress(xmp)):
        turned = seen(png(values, 8, 2, chunk(b"iTXt", b"XML:com.adobe.xmp\0" + body)))
        assert np.array_equal(turned, np.rot90(values, -1))


def test_grey_of_every_depth() -> None:
    for depth in (1, 2, 4, 8, 16):
        most = 2**depth - 1
        values = (np.arange(256) * 257 % (most + 1)).reshape(16, 16, 1)
        wanted = values >> 8 if depth == 16 else values * (255 // most)
        assert np.array_equal(seen(png(values, depth, 0))[..., :1], wanted)
        value = int(values[3, 5, 0])
        clear = chunk(b"tRNS", struct.pack(">H", value))
        over = np.where(values == value, 10, wanted)
        assert np.array_equal(seen(png(values, depth, 0, clear), background="#0a0a0a")[..., :1], over)
        if depth >= 8:
            half = np.concatenate([values, np.where(values == value, 0, most)], axis=-1)
            assert np.array_equal(seen(png(half, depth, 4), background="#0a0a0a")[..., :1], over)


def test_a_transparent_colour_of_every_depth() -> None:
    for depth in (8, 16):
        values = np.random.default_rng(1).integers(0, 2**depth, (9, 11, 3))
        if depth == 16:
            values[4, 4] = values[2, 3] + (1 if values[2, 3, 0] & 255 < 255 else -1)  # the same when cut to 8 bits
            values[4, 4, 1:] = values[2, 3, 1:]
        clear = chunk(b"tRNS", struct.pack(">3H", *values[2, 3]))
        over = values >> (depth - 8)
        over[2, 3] = 10
        assert np.array_equal(seen(png(values, depth, 2, clear), background="#0a0a0a"), over)
        alpha = np.full((9, 11, 1), 2**depth - 1)
        alpha[2, 3] = 0
        both = np.concatenate([values, alpha], axis=-1)
        assert np.array_equal(seen(png(both, depth, 6), background="#0a0a0a"), over)


def tiff(values: NDArray[Any], bits: int, kind: int, *, photometric: int = 1, more: Any = ()) -> bytes:
    """A grey TIFF written by hand; `values` are rows of bytes or numbers, `more` tags as (number, type, value)."""
    width = values.shape[1] * values.itemsize * 8 // bits
    data = values.tobytes()
    tags = [(256, 4, width), (257, 4, len(values)), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 4, len(values)), (279, 4, len(data)), (339, 3, kind), *more]
    out = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags))
    for number, type_, value in sorted(tags):
        content = struct.pack("<HH", value, 0) if type_ == 3 else struct.pack("<f" if type_ == 11 else "<i", value)
        out += struct.pack("<HHI", number, {4: 4, 3: 3, 11: 11, 9: 9}[type_], 1) + content
    return out + bytes(4)


def test_grey_tiffs_of_every_range() -> None:
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    wanted = (values >> 8).astype(np.uint8)
    assert np.array_equal(seen(tiff(values, 16, 1))[..., 0], wanted)
    assert np.array_equal(seen(tiff(values, 16, 1, photometric=0))[..., 0], 255 - wanted)
    twelve = (values >> 4).reshape(-1, 2)
    first, second = twelve[:, 0], twelve[:, 1]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8)
    assert np.array_equal(seen(tiff(packed.reshape(16, 24), 12, 1))[..., 0], wanted)
    ranged = ((340, 11, -1.0), (341, 11, 3.0))
    floats = (values.astype(np.float32) / 65535) * 4 - 1
    close(seen(tiff(floats, 32, 3, more=ranged))[..., 0], wanted.astype(float), 1)
    whole = ((340, 9, 0), (341, 9, 1000))
    close(seen(tiff((values / 65.535).astype(np.int32), 32, 2, more=whole))[..., 0], wanted.astype(float), 1)
    for data, what in (
        (tiff(floats, 32, 3), "floating-point pixels"),
        (tiff(wanted.astype(np.int32), 32, 2), "pixels of more than 16 bits or with a sign"),
        (tiff(wanted.astype(np.uint32), 32, 1), "pixels of more than 16 bits or with a sign"),
        (tiff((values >> 1).astype(np.int16), 16, 2), "pixels of more than 16 bits or with a sign"),
        (tiff(values >> 4, 16, 1), "16 bits a channel, of which only values to 4095 are used"),
    ):
        with pytest.raises(DataError, match=f"has {what}.* save it with 8 bits a channel"):
            seen(data)
    assert not seen(tiff(np.zeros((4, 4), np.uint16), 16, 1)).any(), "black is black"


def test_more_endings_and_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    image = pattern()
    for kind, name in (("PPM", "a.ppm"), ("TGA", "a.TGA"), ("JPEG2000", "a.jp2"), ("PNG", "a.jpg"), ("BMP", "a.dib")):
        assert pixel_digest(decode(encoded(image, kind), background="white", name=name).image) == pixel_digest(image)
    plain = b"P5 2 2 4095\n" + np.array([0, 4095, 2048, 1024], dtype=">u2").tobytes()
    assert seen(plain, "a.pgm")[..., 0].ravel().tolist() == [0, 255, 128, 64]
    assert formats.format_of(encoded(image, "AVIF")[:256]) == "AVIF"


@pytest.mark.parametrize(("kind", "extra"), [("HEIF", "heic"), ("JXL", "jxl")])
def test_formats_of_extras(kind: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(formats.EXTRAS[kind].module)
    assert formats.make_known(kind) is None
    how: dict[str, Any] = (
        {"quality": -1, "chroma": 444, "matrix_coefficients": 0} if kind == "HEIF" else {"lossless": True}
    )
    data = encoded(pattern(), kind, **how)
    assert formats.format_of(data[:256]) == kind
    assert np.abs(seen(data, "a.png").astype(int) - np.asarray(pattern())).max() <= 1
    monkeypatch.setattr(formats, "_known", set())
    monkeypatch.setattr(formats, "EXTRAS", {kind: formats.Extra("it", "no_such_module", extra)})
    with pytest.raises(DataError, match=rf'is it: pip install "sdbuild\[{extra}\]", or save it as PNG or JPEG'):
        seen(data)


def test_the_size_of_a_jxl_is_known_before_it_is_decoded() -> None:
    pytest.importorskip("pillow_jxl")
    formats.make_known("JXL")
    for size in ((40, 30), (64, 64), (1, 1), (300, 200), (64, 48), (257, 1031), (160, 90)):
        buffer = io.BytesIO()
        Image.new("RGB", size).save(buffer, "JXL")
        assert formats.jxl_size(buffer.getvalue()) == size
