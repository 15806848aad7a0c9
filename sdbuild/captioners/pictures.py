"""Pictures as models are shown them: upright, over the background, scaled down."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from sdbuild.data.records import ImageRecord

if TYPE_CHECKING:
    from PIL.Image import Image

_QUALITY = 92
_SMALL = 256
"""Pictures up to this side are sent without loss."""


def shown(project: Path, record: ImageRecord, background: str, longest_side: int) -> Image:
    """Decode a picture and scale it down so that its longest side is at most so many pixels.

    Raises:
        DataError: it cannot be opened.
    """
    from PIL import Image

    from sdbuild.data.pictures import open_picture
    from sdbuild.data.pixel_budget import PIXEL_BUDGET

    with PIXEL_BUDGET.held():
        image = open_picture(project / record.path, background=background, name=record.path)
        scale = longest_side / max(image.size)
        if scale >= 1:
            return image
        width, height = (max(1, round(side * scale)) for side in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)


def encoded(image: Image) -> tuple[str, str]:
    """Media type and base64 of a picture, as requests hold it."""
    data = io.BytesIO()
    if max(image.size) <= _SMALL:
        image.save(data, "PNG", compress_level=1)
        kind = "image/png"
    else:
        image.save(data, "JPEG", quality=_QUALITY, subsampling=0)
        kind = "image/jpeg"
    return kind, base64.b64encode(data.getbuffer()).decode()
