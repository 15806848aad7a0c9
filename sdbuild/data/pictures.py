"""Opening pictures: any of the usual files become 8-bit RGB in sRGB, upright, on a background.

What is done, in this order: the first frame or page is decoded completely; EXIF orientation is applied; more than 8
bits are cut to 8; embedded colour profiles other than sRGB are applied; transparency is laid over the background.
Everything that cannot be opened raises `DataError` with the file's name and a remedy.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError

from sdbuild.data.buckets import Fit
from sdbuild.data.listing import ending
from sdbuild.data.masks import ALPHA
from sdbuild.errors import DataError, Problem

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF")
"""What Pillow may open (JPEG includes MPO); formats that run other programs are not among them."""

MOVING = frozenset({"PNG", "WEBP", "GIF", "TIFF", "AVIF"})
"""Formats whose further frames or pages are left out with a word. Cameras' MPO holds previews: nobody misses them."""

MAX_PIXELS = 2 * 89_478_485
"""Pillow's own limit against decompression bombs: about 179 million pixels."""

# Pillow warns of half its limit and of odd metadata: chatter about pictures which open well.
warnings.filterwarnings("ignore", module=r"PIL\.")

_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    EOFError,
    MemoryError,
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
        data = path.read_bytes()
    except FileNotFoundError as error:
        link = path.is_symlink()
        raise _bad(name, "links to a file that is not there; mend or delete the link" if link else "is gone") from error
    except PermissionError as error:
        raise _bad(name, "may not be read; mend its permissions (chmod u+r)") from error
    except OSError as error:
        raise _bad(name, f"cannot be read ({error.strerror or error})") from error
    if not data:
        raise _bad(name, "is empty (zero bytes); replace or delete it")
    return data


def decode(data: bytes, *, background: str, name: str) -> Decoded:
    """Decode a picture from its file's bytes; see `open_picture`."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _too_large(name)
            dropped = image.format in MOVING and bool(getattr(image, "is_animated", False))
            image.load()
            rgb, alpha = _to_rgb(image, background, name)
            return Decoded(rgb, dropped, alpha)
    except UnidentifiedImageError as error:
        if data.lstrip()[:1] == b"<" or _is_text(data):
            raise _bad(name, f"is text, not a picture, in spite of its {ending(name)}; replace or delete it") from error
        raise _bad(name, "is no picture in a known format, or its start is damaged; replace or delete it") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    except _BROKEN as error:
        if "truncated" in str(error).lower():
            raise _bad(name, "is cut short (truncated); copy it again or delete it") from error
        reason = " ".join(str(error).split()) or type(error).__name__
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
    digest.update(image.tobytes())
    if mask is not None:
        digest.update(b"mask\n" + mask.tobytes())
    return digest.hexdigest()


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


def _to_rgb(image: Image.Image, background: str, name: str) -> tuple[Image.Image, Image.Image | None]:
    """The picture in RGB over the background, and its alpha channel unless all of it is opaque."""
    profile: bytes | None = image.info.get("icc_profile")
    image = _to_8_bits(_upright(image), name)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    image = _to_srgb(image if image.mode in ("L", "CMYK") else image.convert("RGB"), profile)
    if alpha is None or alpha.getextrema() == (255, 255):
        return image, None
    image.putalpha(alpha)
    under = Image.new("RGBA", image.size, (*ImageColor.getrgb(background)[:3], 255))
    return Image.alpha_composite(under, image).convert("RGB"), alpha


def _upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF says; one whose EXIF cannot be read stays as it is."""
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN:
        return image


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Cut 16-bit grey to its upper 8 bits, as Pillow does with 16-bit colours."""
    if image.mode == "F":
        raise _bad(name, "has floating-point pixels, whose range is unknown; save it with 8 bits a channel")
    if not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise _bad(name, "has pixels of more than 16 bits, whose range is unknown; save it with 8 bits a channel")
    return Image.fromarray((pixels >> 8).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB in sRGB; a profile that is damaged or meant for another mode is passed over, as viewers do."""
    if not profile:
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        description = ImageCms.getProfileDescription(source)
        if image.mode == "RGB" and "srgb" in description.lower():
            return image
        converted = ImageCms.profileToProfile(image, source, _srgb(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert("RGB")
    return converted if converted is not None else image.convert("RGB")


def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")


def _is_text(data: bytes) -> bool:
    try:
        start = data[:4096].decode("utf-8", "strict" if len(data) <= 4096 else "ignore")
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in start)


def _too_large(name: str) -> DataError:
    return _bad(name, f"has more than {MAX_PIXELS // 1_000_000} million pixels; scale it down")


def _bad(name: str, message: str) -> DataError:
    return DataError([Problem(file=name, message=message)])
