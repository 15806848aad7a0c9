"""PNG files: what their chunks say of colour and transparency, and the file without what decoding does not need.

Texts and profiles of any size are metadata: Pillow refuses files in which they are large, so it gets the file without
them. A profile is unpacked here, up to a bound; texts are never unpacked, but for those that may hold an orientation.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, GREY_ALPHA = 0, 2, 4
"""Colour types without a palette; RGB with alpha is not told apart."""
MAX_PROFILE = 32 * 2**20
"""Bytes of an unpacked profile; those of printers have about 2 MiB."""
MAX_KEPT_TEXT = 2**19
"""Bytes of an unpacked text that Pillow is given."""

_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_COLOURS = (b"sRGB", b"gAMA", b"cHRM", b"cICP", b"pHYs")
"""Read here or by nobody: one that is too short is no damage of the picture."""
_KEPT = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
"""Texts that may say how a picture is turned."""


@dataclass(slots=True)
class Png:
    """What a PNG says before its pixels."""

    depth: int
    """Bits a channel."""
    colour_type: int
    pixels: bytes
    """The file without texts, colours and the one that is transparent, which Pillow compares with scaled values."""
    profile: bytes | None = None
    is_srgb: bool = False
    gamma: float | None = None
    """Exponent of the stored values."""
    primaries: tuple[float, ...] | None = None
    """Chromaticities x, y of white, red, green and blue."""
    code_points: tuple[int, int, int, int] | None = None
    """Primaries, transfer, matrix and range after ITU-T H.273."""
    clear: tuple[int, ...] | None = None
    """The grey or colour that is transparent, in the file's own depth."""

    @property
    def is_grey(self) -> bool:
        """Whether it is grey, with alpha or without."""
        return self.colour_type in (GREY, GREY_ALPHA)


def read_png(data: bytes) -> Png | None:
    """Read the chunks; None for what is no PNG, or not even begins as one should."""
    if not data.startswith(SIGNATURE) or data[12:16] != b"IHDR" or len(data) < 33:
        return None
    found = Png(depth=data[24], colour_type=data[25], pixels=data)
    kept: list[tuple[int, int]] = []
    begun = False
    for kind, start, end in _chunks(data):
        body = data[start + 8 : end - 4] if kind not in (b"IDAT", b"fdAT") else b""
        begun = begun or kind == b"IDAT"
        if kind in _TEXTS and not _may_turn(kind, body):
            continue
        if not begun and kind == b"iCCP":
            found.profile = found.profile or _profile(body)
            continue
        if not begun and kind == b"tRNS" and found.colour_type in (GREY, RGB):
            found.clear = _clear(body, found)
            continue
        if kind in _COLOURS:
            if not begun:
                _note(found, kind, body)
            continue
        if kept and kept[-1][1] == start:
            kept[-1] = kept[-1][0], end
        else:
            kept.append((start, end))
    if kept != [(8, len(data))]:
        found.pixels = b"".join([SIGNATURE, *(data[start:end] for start, end in kept)])
    return found


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk; what follows the last whole one comes as one of no kind."""
    start = len(SIGNATURE)
    while start + 12 <= len(data):
        end = start + 12 + int(struct.unpack_from(">I", data, start)[0])
        if end > len(data):
            break
        yield data[start + 4 : start + 8], start, end
        start = end
    if start < len(data):
        yield b"IDAT", start, len(data)


def _note(found: Png, kind: bytes, body: bytes) -> None:
    if kind == b"sRGB" and body:
        found.is_srgb = True
    elif kind == b"gAMA" and len(body) >= 4:
        found.gamma = struct.unpack(">I", body[:4])[0] / 100_000 or None
    elif kind == b"cHRM" and len(body) >= 32:
        found.primaries = tuple(each / 100_000 for each in struct.unpack(">8I", body[:32]))
    elif kind == b"cICP" and len(body) >= 4:
        found.code_points = body[0], body[1], body[2], body[3]


def _profile(body: bytes) -> bytes | None:
    name, _, packed = body.partition(b"\0")
    if not name or packed[:1] != b"\0":
        return None
    return _unpacked(packed[1:], MAX_PROFILE)


def _unpacked(packed: bytes, most: int) -> bytes | None:
    """Unpack at most so many bytes; None for what is damaged, cut short or longer."""
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(packed, most)
    except zlib.error:
        return None
    return unpacked if unpacker.eof else None


def _may_turn(kind: bytes, body: bytes) -> bool:
    """Whether a text may hold the picture's orientation, and is small enough for Pillow."""
    keyword = next((each for each in _KEPT if body.startswith(each)), None)
    if keyword is None or len(body) > MAX_KEPT_TEXT:
        return False
    rest = body[len(keyword) :]
    if kind == b"zTXt":
        return _unpacked(rest[1:], MAX_KEPT_TEXT) is not None
    if kind == b"iTXt" and rest[:1] == b"\1":
        return _unpacked(rest[2:].split(b"\0", 2)[-1], MAX_KEPT_TEXT) is not None
    return True


def _clear(body: bytes, png: Png) -> tuple[int, ...] | None:
    count = 1 if png.colour_type == GREY else 3
    if len(body) < 2 * count:
        return None
    return tuple(each & (2**png.depth - 1) for each in struct.unpack(f">{count}H", body[: 2 * count]))
