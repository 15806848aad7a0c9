"""Grey pictures of any depth become 8 bits, and a transparent grey or colour becomes an opacity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from sdbuild.data.pngfile import Png

_BITS, _PHOTOMETRIC, _LOWEST, _HIGHEST = 258, 262, 340, 341
"""Tags of TIFF: bits a channel, what zero means, and the range of values."""
_WHITE_IS_ZERO = 0
_TWELVE_BITS = 4096
_REMEDY = "save it with 8 bits a channel"


class RangeError(ValueError):
    """Nothing says which value of a picture is white."""


def to_8_bits(image: Image.Image, file: Image.Image) -> Image.Image:
    """Cut 16-bit grey to its upper 8 bits, as Pillow does with 16-bit colours, and scale what gives its range.

    Args:
        image: decoded; other modes than grey of more than 8 bits stay as they are.
        file: that it came from, with its format and tags.

    Raises:
        RangeError: the range of its values is not known; the message says so, with the remedy.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    tags = getattr(file, "tag_v2", {})
    if image.mode == "F" or (file.format == "TIFF" and image.mode == "I"):
        return Image.fromarray(_scaled(image, tags))
    pixels = np.asarray(image).astype(np.int64)
    least, most = int(pixels.min()), int(pixels.max())
    if least < 0 or most > 0xFFFF:
        raise RangeError(f"has pixels of more than 16 bits, whose range is unknown; {_REMEDY}")
    shift = 4 if _number(tags.get(_BITS)) == 12 else 8
    if shift == 8 and 0 < most < _TWELVE_BITS:
        raise RangeError(
            f"has 16 bits a channel, of which only values to {most} are used: black, or a range that is "
            f"unknown; {_REMEDY}"
        )
    found = (pixels >> shift).astype(np.uint8)
    return Image.fromarray(255 - found if _number(tags.get(_PHOTOMETRIC)) == _WHITE_IS_ZERO else found)


def opacity(image: Image.Image, png: Png, low_bytes: Callable[[], Image.Image]) -> Image.Image | None:
    """Where the one transparent grey or colour of a PNG is not, white; None for a PNG without.

    Args:
        image: decoded by Pillow: grey scaled to 8 bits or of 16 bits, colours cut to 8 bits.
        png: its chunks.
        low_bytes: gives the lower bytes of 16-bit colours as a picture of the same size.
    """
    if png.clear is None:
        return None
    if image.mode == "RGB":
        pixels, wanted = np.asarray(image), np.array(png.clear)
        same = (pixels == (wanted >> 8 if png.depth == 16 else wanted)).all(axis=-1)
        if png.depth == 16 and same.any():
            same &= (np.asarray(low_bytes()) == (wanted & 0xFF)).all(axis=-1)
    else:
        scale = 1 if png.depth == 16 else 255 // (2**png.depth - 1)
        grey = image.convert("L") if image.mode == "1" else image
        same = np.asarray(grey) == png.clear[0] * scale
    return Image.fromarray(np.where(same, 0, 255).astype(np.uint8))


def _scaled(image: Image.Image, tags: object) -> NDArray[np.uint8]:
    """Values of a TIFF from the range that its tags give."""
    of = getattr(tags, "get", dict[int, object]().get)
    lowest, highest = _number(of(_LOWEST)), _number(of(_HIGHEST))
    if lowest is None or highest is None or not highest > lowest:
        what = "floating-point pixels" if image.mode == "F" else "pixels of more than 16 bits or with a sign"
        raise RangeError(f"has {what}, whose range is unknown; {_REMEDY}")
    pixels = np.nan_to_num((np.asarray(image).astype(np.float64) - lowest) / (highest - lowest))
    found = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    return 255 - found if _number(of(_PHOTOMETRIC)) == _WHITE_IS_ZERO else found


def _number(value: object) -> float | None:
    """A tag's value, of several the first."""
    value = value[0] if isinstance(value, tuple) and value else value
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
