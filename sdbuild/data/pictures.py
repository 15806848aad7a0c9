"""Opening pictures: any of the usual files become 8-bit RGB in sRGB, upright, on a background.

What is done, in this order: the first frame or page is decoded completely; EXIF orientation is applied; more than 8
bits are cut to 8; colours other than sRGB are brought there; transparency is laid over the background.
Everything that cannot be opened raises `DataError` with the file's name and a remedy.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageColor, ImageOps, UnidentifiedImageError

from sdbuild.data.bit_depths import RangeError, opacity, to_8_bits
from sdbuild.data.buckets import Fit
from sdbuild.data.colour import HdrError, described, to_srgb
from sdbuild.data.formats import EXTRAS, FORMATS, UNMARKED, format_of, jxl_size, make_known
from sdbuild.data.listing import ending
from sdbuild.data.masks import ALPHA
from sdbuild.data.pixel_budget import PIXEL_BUDGET
from sdbuild.data.pngfile import GREY_ALPHA, Png, read_png
from sdbuild.errors import DataError, Problem
from sdbuild.storage.regular_files import SpecialFileError, TooLargeError, read_regular

if TYPE_CHECKING:
    from numpy.typing import NDArray

STRIP = 2**18
"""Pixels that are hashed at once."""
MOVING = frozenset({"PNG", "WEBP", "GIF", "TIFF", "AVIF"})
"""Formats whose further frames or pages are left out with a word. Cameras' MPO holds previews: nobody misses them."""

_TGA_DESCRIPTOR = 17
"""Byte of a TGA's head."""
_TGA_ALPHA = 0x0F
"""Its bits that say how many bits of a pixel are alpha."""

MAX_PIXELS = 2 * 89_478_485
"""Pillow's own limit against decompression bombs: about 179 million pixels."""
MOST_BYTES = 3 << 29
"""Of a file: more than the largest picture takes that is not compressed."""
_MOST = f"{MAX_PIXELS // 1_000_000} million"

# Large pictures in large blocks, which go back to the system when they are freed: an arena of a thread would keep them.
Image.core.set_block_size(2**26)  # type: ignore[attr-defined]

# Pillow warns of half its limit and of odd metadata: chatter about pictures which open well.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    NameError,
    BufferError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders are known to raise on damaged files."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture in memory."""

    image: Image.Image
    """RGB, upright."""
    frames_dropped: bool
    """Whether the file holds further frames or pages."""
    alpha: Image.Image | None = None
    """Its opacity, grey; None where all of it is opaque."""


def open_picture(path: Path, *, background: str = "white", name: str | None = None) -> Image.Image:
    """Decode a picture completely.

    Args:
        path: of the file.
        background: what shows through transparent pixels: a colour as Pillow knows it, e.g. `white`, `#c0ffee`.
        name: of the file in messages.

    Returns:
        An RGB picture, upright.

    Raises:
        DataError: it cannot be opened; the message says why and what to do.
    """
    name = name or str(path)
    return decode(read_file(path, name), background=background, name=name).image


def read_file(path: Path, name: str) -> bytes:
    """A file's bytes.

    Raises:
        DataError: it cannot be read, or is empty.
    """
    try:
        data = read_regular(path, most=MOST_BYTES)
    except FileNotFoundError as error:
        link = path.is_symlink()
        raise _bad(name, "links to a file that is not there; mend or delete the link" if link else "is gone") from error
    except PermissionError as error:
        raise _bad(name, "may not be read; mend its permissions (chmod u+r)") from error
    except SpecialFileError as error:
        raise _bad(name, f"is {error.strerror}; delete it") from error
    except TooLargeError as error:
        raise _bad(name, f"{error.strerror}; replace or delete it") from error
    except OSError as error:
        raise _bad(name, f"cannot be read ({error.strerror or error})") from error
    if not data:
        raise _bad(name, "is empty (zero bytes); replace or delete it")
    return data


def decode(data: bytes, *, background: str, name: str) -> Decoded:
    """Decode a picture from its file's bytes; see `open_picture`."""
    _need_reader(data, name)
    png = read_png(data)
    try:
        with PIXEL_BUDGET.held(), _opened(data if png is None else png.pixels, name) as image:
            _check_size(image.size, name)
            PIXEL_BUDGET.take(image.width * image.height)
            dropped = image.format in MOVING and bool(getattr(image, "is_animated", False))
            profiles = described(image, data, png)
            image.load()
            if image.format == "TGA" and image.mode == "RGBA" and data[_TGA_DESCRIPTOR] & _TGA_ALPHA == 0:
                image.putalpha(255)  # the fourth byte is unused, and is 0 as a rule
            rgb, alpha = _to_rgb(image, profiles, png, background)
            return Decoded(rgb, dropped, alpha)
    except RangeError as error:
        raise _bad(name, str(error)) from error
    except HdrError as error:
        raise _bad(name, f"is of high dynamic range ({error}), brighter than sRGB's white; save it in sRGB") from error
    except UnidentifiedImageError as error:
        if data.lstrip()[:1] == b"<" or _is_text(data):
            raise _bad(name, f"is text, not a picture, in spite of its {ending(name)}; replace or delete it") from error
        raise _bad(name, "is no picture in a known format, or its start is damaged; replace or delete it") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        counted = re.search(r"\((\d+) pixels\)", str(error))
        size = f" ({int(counted[1]) // 1_000_000} million)" if counted else ""
        raise _bad(name, f"has more than {_MOST} pixels{size}; scale it down") from error
    except _BROKEN as error:
        if "truncated" in str(error).lower():
            raise _bad(name, "is cut short (truncated); copy it again or delete it") from error
        reason = " ".join(str(error).split()).partition(". ")[0] or type(error).__name__
        raise _bad(name, f"is damaged ({reason}); copy it again or delete it") from error


def open_masked(project: Path, path: str, mask: str | None, background: str) -> tuple[Image.Image, Image.Image | None]:
    """Decode a picture of a project with its mask; see `decode` and `mask_of`."""
    picture = decode(read_file(project / path, path), background=background, name=path)
    data = None if mask is None or mask == ALPHA else read_mask(project, path, mask)
    return picture.image, mask_of(picture, mask, data, name=path)


def read_mask(project: Path, path: str, mask: str) -> bytes:
    """Bytes of a mask's file; what is wrong with it is said of the picture `path`."""
    with _blaming(path, mask):
        return read_file(project / mask, mask)


def mask_of(picture: Decoded, mask: str | None, data: bytes | None, *, name: str) -> Image.Image | None:
    """Say what of a picture counts.

    Args:
        picture: decoded.
        mask: path of its mask in messages, `ALPHA`, or None for one without.
        data: of the mask's file, if it is one.
        name: of the picture in messages.

    Returns:
        A grey picture of the same size, white where the picture counts; None where all of it does.

    Raises:
        DataError: the mask cannot be opened, has another size, or leaves nothing.
    """
    if mask is None:
        return None
    found = picture.alpha
    if data is not None:
        with _blaming(name, mask):
            found = decode(data, background="black", name=mask).image.convert("L")
        if found.size != picture.image.size:
            sizes = [f"{width}×{height}" for width, height in (found.size, picture.image.size)]
            raise _bad(name, f"its mask {mask} has {sizes[0]} pixels, the picture {sizes[1]}; save both in one size")
    if found is None or found.getextrema() == (255, 255):
        return None
    if found.getextrema() == (0, 0):
        what = "is transparent" if data is None else f"has a mask that is black ({mask})"
        raise _bad(name, f"{what} everywhere, so nothing of it would be learned; mend or delete it")
    return found


@contextmanager
def _blaming(name: str, mask: str) -> Iterator[None]:
    """Say what is wrong with a mask of the picture that it belongs to."""
    try:
        yield
    except DataError as error:
        raise _bad(name, f"its mask {mask} {error.problems[0].message}") from error


def pixel_digest(image: Image.Image, mask: Image.Image | None = None) -> str:
    """sha256 (hex) of a picture's size, RGB pixels and mask: equal for equal pixels, whatever file they came from."""
    digest = hashlib.sha256(f"RGB {image.width}x{image.height}\n".encode())
    for part in _strips(image):
        digest.update(part)
    if mask is not None:
        digest.update(b"mask\n")
        for part in _strips(mask):
            digest.update(part)
    return digest.hexdigest()


def _strips(image: Image.Image) -> Iterator[bytes]:
    """The bytes of a picture, some rows at a time."""
    rows = max(1, STRIP // max(1, image.width))
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height))).tobytes()


def fit(image: Image.Image, how: Fit) -> NDArray[np.uint8]:
    """Scale and crop a picture, or its mask, into a bucket.

    Args:
        image: RGB, scaled with Lanczos' filter; or grey, scaled with a linear one, which never exceeds its values.
        how: from its `ImageRecord`.

    Returns:
        Pixels [height, width, 3] or [height, width]; the array is the caller's to write to.
    """
    left, top = how.crop
    if image.size != how.resize:
        filter_ = Image.Resampling.BILINEAR if image.mode == "L" else Image.Resampling.LANCZOS
        image = image.resize(how.resize, filter_)
    if how.resize != how.bucket:
        image = image.crop((left, top, left + how.bucket[0], top + how.bucket[1]))
    return np.array(image, dtype=np.uint8)


def _need_reader(data: bytes, name: str) -> None:
    """Make sure that formats of extras can be opened, and are not too large where opening decodes."""
    kind = format_of(data[:256])
    if kind not in EXTRAS:
        return
    lacking = make_known(kind)
    if lacking is not None:
        raise _bad(name, f'is {lacking.called}: pip install "sdbuild[{lacking.package}]", or save it as PNG or JPEG')
    size = jxl_size(data) if kind == "JXL" else None
    if size is not None:
        _check_size(size, name)


def _opened(data: bytes, name: str) -> Image.Image:
    kind = format_of(data[:256])
    kind = kind if kind in EXTRAS else UNMARKED.get(ending(name))
    return Image.open(io.BytesIO(data), formats=FORMATS if kind is None else (*FORMATS, kind))


def _to_rgb(
    image: Image.Image, profiles: list[bytes], png: Png | None, background: str
) -> tuple[Image.Image, Image.Image | None]:
    """The picture in RGB over the background, and its alpha channel unless all of it is opaque."""
    file, image = image, _upright(image)
    alpha = None
    if png is not None:
        alpha = opacity(image, png, lambda: _upright(_low_bytes(png)))
    image = to_8_bits(image, file)
    if image.has_transparency_data:
        grey = image.mode in ("LA", "La") or (png is not None and png.colour_type == GREY_ALPHA)
        image = image.convert("LA" if image.mode in ("LA", "La") else "RGBA")
        alpha = image.getchannel("A")
        image = image.getchannel(0) if grey else image.convert("RGB")
    image = to_srgb(image if image.mode in ("L", "CMYK") else image.convert("RGB"), profiles)
    if alpha is None or alpha.getextrema() == (255, 255):
        return image, None
    image.putalpha(alpha)
    under = Image.new("RGBA", image.size, (*ImageColor.getrgb(background)[:3], 255))
    return Image.alpha_composite(under, image).convert("RGB"), alpha


def _upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF says; one whose EXIF cannot be read stays as it is."""
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image  # which `exif_transpose` would copy
        return ImageOps.exif_transpose(image)
    except _BROKEN:
        return image


def _low_bytes(png: Png) -> Image.Image:
    """The lower bytes of a PNG's 16-bit colours: the same file with its bytes read in the other order."""
    image = Image.open(io.BytesIO(png.pixels), formats=("PNG",))
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
    image.load()
    return image


def _is_text(data: bytes) -> bool:
    try:
        start = data[:4096].decode("utf-8", "strict" if len(data) <= 4096 else "ignore")
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in start)


def _check_size(size: tuple[int, int], name: str) -> None:
    """Refuse a picture before it is decoded.

    Raises:
        DataError: it has too many pixels.
    """
    width, height = size
    if width * height > MAX_PIXELS:
        raise _bad(name, f"has more than {_MOST} pixels ({width}×{height}); scale it down")


def _bad(name: str, message: str) -> DataError:
    return DataError([Problem(file=name, message=message)])
