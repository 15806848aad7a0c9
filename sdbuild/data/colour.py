"""Converts pictures to sRGB: by their profile, or else by the primaries and the curve that the file gives.

A profile is judged by what it does to colours, not by its name: one that is called sRGB and leaves colours where they
are is not applied, so that such pictures keep their very values. A profile that is damaged or made for another kind of
picture is passed over, as viewers do, and what else the file says counts.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms

from sdbuild.data.pngfile import Png

Primaries = tuple[float, ...]
"""Chromaticities x, y of white, red, green and blue."""
Curve = tuple[float, ...]
"""From stored to linear values: an exponent, or sRGB's five parameters (ICC.1:2022, parametric curves 0 and 3)."""

SRGB = b""
"""In the place of a profile: the colours are sRGB already."""

_D65 = (0.3127, 0.329)
_BT709: Primaries = (*_D65, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_ADOBE: Primaries = (*_D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_SRGB_CURVE: Curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_ADOBE_CURVE: Curve = (563 / 256,)

_CODED_PRIMARIES: dict[int, Primaries] = {
    1: _BT709,
    4: (0.31, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.6, 0.15, 0.06),
    6: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    7: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (*_D65, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (*_D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    22: (*_D65, 0.63, 0.34, 0.295, 0.605, 0.155, 0.077),
}
"""By code (ITU-T H.273, table 2)."""
_CODED_CURVES: dict[int, Curve] = {
    **dict.fromkeys((1, 6, 13, 14, 15), _SRGB_CURVE),  # video's curves are seen on screens as sRGB is
    4: (2.2,),
    5: (2.8,),
    8: (1.0,),
}
"""By code (ITU-T H.273, table 3)."""
HDR = {16: "PQ", 18: "HLG"}
"""Codes of curves whose brightness goes beyond white, so that no picture in sRGB shows what they mean."""

_SAME_PRIMARIES = 0.002
_SAME_GAMMA = 0.05
"""Share by which a gamma may differ from 1/2.2, which stands for sRGB's curve; libpng's threshold."""
_LEAST_GAMMA = 0.05
"""One beyond this or its inverse is a mistake."""
_SAME_COLOUR = 3
"""Of 255: profiles of sRGB differ so much, as their curves are tables of some length."""
_MOST_JUDGED = 1024

_judged: dict[bytes, bool] = {}
"""Whether profiles are sRGB, by their digest."""


class Made(bytes):
    """A profile made here, of RGB: grey is brought there first."""


class HdrError(ValueError):
    """The picture's curve is one of high dynamic range."""


def described(image: Image.Image, data: bytes, png: Png | None) -> list[bytes]:
    """Profiles that a file gives its colours, the first that can be applied counts; `SRGB` ends them.

    Args:
        image: open, with its metadata.
        data: the file's bytes.
        png: its chunks, if it is a PNG.

    Raises:
        HdrError: they are of high dynamic range.
    """
    return list(_of_png(png) if png is not None else _of_others(image, data))


def to_srgb(image: Image.Image, profiles: list[bytes]) -> Image.Image:
    """Return RGB in sRGB.

    Args:
        image: grey (L), RGB or CMYK.
        profiles: from `described`.
    """
    for profile in profiles:
        if profile == SRGB:
            break
        own = image.convert("RGB") if isinstance(profile, Made) else image
        if (converted := _applied(own, profile)) is not None:
            return converted
    return image.convert("RGB")


def _of_png(png: Png) -> Iterator[bytes]:
    """In the order of the standard (PNG, third edition, 4.3): code points, profile, sRGB, gamma with primaries."""
    if png.code_points is not None:
        primaries, transfer, matrix, full = png.code_points
        if matrix == 0 and full == 1:
            yield from _coded(1 if png.is_grey else primaries, transfer)
    if png.profile:
        yield png.profile
    if png.is_srgb:
        yield SRGB
    if png.gamma is None and png.primaries is None:
        return
    curve: Curve = _SRGB_CURVE
    if png.gamma is not None and _LEAST_GAMMA < png.gamma < 1 / _LEAST_GAMMA and abs(png.gamma * 2.2 - 1) > _SAME_GAMMA:
        curve = (1 / png.gamma,)
    yield _made(_BT709 if png.is_grey else png.primaries or _BT709, curve)


def _of_others(image: Image.Image, data: bytes) -> Iterator[bytes]:
    profile = image.info.get("icc_profile")
    if profile:
        yield profile
    nclx = image.info.get("nclx_profile")
    if isinstance(nclx, dict):
        yield from _coded(int(nclx["color_primaries"]), int(nclx["transfer_characteristics"]))
    elif image.format == "AVIF" and not profile and (place := data.find(b"colrnclx", 0, 2**16)) >= 0:
        codes = data[place + 8 : place + 12]
        if len(codes) == 4:
            yield from _coded(*struct.unpack(">HH", codes))
    elif _is_adobe(image):
        yield _made(_ADOBE, _ADOBE_CURVE)


def _coded(primaries: int, transfer: int) -> Iterator[bytes]:
    if transfer in HDR:
        raise HdrError(HDR[transfer])
    if primaries in _CODED_PRIMARIES and transfer in _CODED_CURVES:
        yield _made(_CODED_PRIMARIES[primaries], _CODED_CURVES[transfer])


def _is_adobe(image: Image.Image) -> bool:
    """Whether the camera says that it took the picture in Adobe RGB (DCF 2.0: interoperability index R03)."""
    try:
        exif = image.getexif()
        own = exif.get_ifd(ExifTags.IFD.Exif)
        space = own.get(ExifTags.Base.ColorSpace)
        index = exif.get_ifd(ExifTags.IFD.Interop).get(1) or own.get(ExifTags.IFD.Interop, {}).get(1)
    except Exception:  # whatever damaged metadata makes of it: they are no damage of the picture
        return False
    index = index.decode("latin-1") if isinstance(index, bytes) else index
    return space == 2 or (space != 1 and isinstance(index, str) and index.startswith("R03"))


def _applied(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The picture in sRGB; None where the profile cannot be applied to it."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower() and _is_srgb(profile):
            return image
        return ImageCms.profileToProfile(image, source, _srgb(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _is_srgb(profile: bytes) -> bool:
    """Whether a profile leaves sRGB's colours where they are."""
    digest = hashlib.sha256(profile).digest()
    if digest not in _judged:
        if len(_judged) >= _MOST_JUDGED:
            _judged.clear()
        _judged[digest] = any(_moves(profile, intent) <= _SAME_COLOUR for intent in _INTENTS)
    return _judged[digest]


_INTENTS = (ImageCms.Intent.PERCEPTUAL, ImageCms.Intent.RELATIVE_COLORIMETRIC)


def _moves(profile: bytes, intent: ImageCms.Intent) -> int:
    """Of 255: by how much a profile moves a colour at most, of a grid and all greys."""
    steps = np.linspace(0, 255, 17).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    probe = np.concatenate([grid, greys])[None]
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    moved = ImageCms.profileToProfile(Image.fromarray(probe), source, _srgb(), renderingIntent=intent, outputMode="RGB")
    return int(np.abs(np.asarray(moved).astype(int) - probe).max())


def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")


def _made(primaries: Primaries, curve: Curve) -> bytes:
    """A profile of some primaries and a curve; `SRGB` for its own."""
    alike = max(abs(one - other) for one, other in zip(primaries, _BT709, strict=True)) <= _SAME_PRIMARIES
    if alike and curve == _SRGB_CURVE:
        return SRGB
    kind, values = (0, curve) if len(curve) == 1 else (3, curve)
    shape = b"para" + struct.pack(">IHH", 0, kind, 0) + _fixed(*values)
    colorants = _colorants(primaries)
    if colorants is None:
        return SRGB
    names = (b"rXYZ", b"gXYZ", b"bXYZ")
    tags = {b"wtpt": _xyz(_D50), **{name: _xyz(xyz) for name, xyz in zip(names, colorants, strict=True)}}
    return _icc({**tags, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), shape)})


_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def _colorants(primaries: Primaries) -> list[tuple[float, ...]] | None:
    """XYZ of red, green and blue under D50 (Lindbloom, RGB/XYZ matrices; Bradford's adaptation); None of no colours."""
    if any(y <= 0 for y in primaries[1::2]):
        return None
    white, *corners = (
        np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in zip(primaries[::2], primaries[1::2], strict=True)
    )
    try:
        matrix = np.stack(corners, axis=1)
        matrix = matrix * np.linalg.solve(matrix, white)
        ratio = (_BRADFORD @ np.array(_D50)) / (_BRADFORD @ white)
        matrix = np.linalg.inv(_BRADFORD) @ np.diag(ratio) @ _BRADFORD @ matrix
    except np.linalg.LinAlgError:
        return None
    if not np.isfinite(matrix).all() or np.abs(matrix).max() > 4:
        return None
    return [tuple(float(value) for value in column) for column in matrix.T]


def _icc(tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile, version 4.3, of a display."""
    start = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", start + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    header = struct.pack(">I4sI4s4s4s", start + len(body), b"", 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    header += struct.pack(">6H4s", 2000, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + _fixed(*_D50)
    return Made(header.ljust(128, b"\0") + table + body)


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(*values)


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))
