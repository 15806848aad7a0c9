"""Formats of pictures, told by a file's first bytes; those that need an extra package are made known to Pillow."""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "PPM", "JPEG2000")
"""What Pillow may open by itself (JPEG includes MPO); formats that run other programs are not among them."""
UNMARKED = {".tga": "TGA"}
"""Formats that no first bytes tell, by ending."""

_STARTS = (
    *((start, "PNG") for start in (b"\x89PNG\r\n\x1a\n",)),
    *((start, "JPEG") for start in (b"\xff\xd8\xff",)),
    *((start, "GIF") for start in (b"GIF87a", b"GIF89a")),
    *((start, "TIFF") for start in (b"II*\0", b"MM\0*")),
    *((start, "JPEG2000") for start in (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")),
    *((start, "JXL") for start in (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")),
    *((start, "PSD") for start in (b"8BPS",)),
)
_HEIF = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
_AVIF = frozenset({b"avif", b"avis"})


@dataclass(frozen=True, slots=True)
class Extra:
    """A format that a package of its own reads."""

    called: str
    module: str
    package: str
    """Name of the extra of sdbuild."""


EXTRAS = {
    "HEIF": Extra("HEIC", "pillow_heif", "heic"),
    "JXL": Extra("JPEG XL", "pillow_jxl", "jxl"),
}
_known: set[str] = set()
_lock = threading.Lock()


def format_of(start: bytes) -> str | None:
    """The format that a file's first bytes tell, as Pillow calls it; None for another or none."""
    for mark, name in _STARTS:
        if start.startswith(mark):
            return name
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[:2] == b"BM" and start[6:10] == bytes(4):
        return "BMP"
    if start[4:8] == b"ftyp":
        size = int.from_bytes(start[:4], "big")
        brands = {start[place : place + 4] for place in (8, *range(16, min(size, len(start)), 4))}
        if brands & _AVIF:
            return "AVIF"
        return "HEIF" if brands & _HEIF else None
    return None


def make_known(name: str) -> Extra | None:
    """Let Pillow open a format that an extra reads; returns that extra where it is not installed."""
    extra = EXTRAS[name]
    with _lock:
        if name not in _known:
            try:
                module = importlib.import_module(extra.module)
            except ImportError:
                return extra
            if name == "HEIF":
                module.register_heif_opener()
            _known.add(name)
    return None


def jxl_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG XL (ISO/IEC 18181-1, A.3), whose reader decodes it to tell them; None if unknown."""
    start = data[: 2**16]
    if start[:2] != b"\xff\x0a":
        found = [start.find(box) for box in (b"jxlc", b"jxlp")]
        place = min((at for at in found if at >= 0), default=-1)
        if place < 0:
            return None
        start = start[place + (4 if start[place : place + 4] == b"jxlc" else 8) :]
        if start[:2] != b"\xff\x0a":
            return None
    bits = int.from_bytes(start[2:34], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = take(3)
    over, under = ((0, 0), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio]
    return (height * over // under if ratio else side()), height
