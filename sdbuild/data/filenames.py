"""What a picture's file name says: its words, and whether a person chose them. Light."""

from __future__ import annotations

import re

from sdbuild.data.listing import nfc
from sdbuild.storage.text_cleaning import clean

_GIVEN = frozenset(
    {
        *("am", "and", "at", "bildschirmfoto", "burst", "captura", "capture", "cimg", "comfyui", "copy"),
        *("crop", "cropped", "dji", "download", "downloads", "dsc", "dscf", "dscn", "dscs", "edit", "edited"),
        *("export", "fb", "file", "final", "frame", "generated", "gopr", "grid", "hdr", "imag", "image"),
        *("images", "img", "kimg", "kopie", "mp", "mvi", "new", "of", "output", "pano", "photo", "photos"),
        *("pic", "pics", "pict", "picture", "pm", "pxl", "received", "resized", "result", "sam", "scan"),
        *("scanned", "screen", "screenshot", "shot", "signal", "snapshot", "telegram", "temp", "the", "tmp"),
        *("unnamed", "untitled", "upscaled", "vid", "whatsapp", "wp"),
    }
)
"""Words that cameras, phones and programs give."""
_CODE = re.compile(r"[0-9a-f]{8,}|\w*\d\w*[^\W\d]\w*\d\w*|[^\W\d_]{1,2}\d{3,}", re.IGNORECASE)
"""Hashes, and letters and digits in turn."""


def caption_from_name(name: str) -> str:
    """Words of a file's stem: `cat_face-02` gives `cat face`. Empty when there are only numbers."""
    words = re.sub(r"[_\-\s]+", " ", nfc(name)).strip()
    return clean(re.sub(r"(?:(?:^|\s+)(?:\d+|\(\d+\)|\[\d+\]))+$", "", words).strip())


def is_given(name: str) -> bool:
    """Whether a camera or a program made up a file's stem, as `IMG_2041`, `Screenshot 2024-05-01` or a hash."""
    if re.fullmatch(r"(?=.*\d.*\d)[0-9a-f -]{12,}", name, re.IGNORECASE):
        return True
    return not any(map(_says_something, re.split(r"[\W_]+", nfc(name))))


def _says_something(word: str) -> bool:
    if _CODE.fullmatch(word):
        return False
    letters = re.sub(r"\d+", "", word)
    if not letters.isascii():
        return True
    return len(letters) > 1 and letters.lower() not in _GIVEN
