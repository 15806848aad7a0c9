"""Text for terminals: control characters, invisible characters and line breaks inside values are escaped.

Names of files, captions, values of recipes, answers of servers and git's authors come from others. `line` is for
everything that is shown; `guard` puts the same between the process and its terminal, for what libraries print.
"""

from __future__ import annotations

import json
import math
import re
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any, TextIO

_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
"""Characters that are shown as nothing, besides those of the categories below (Unicode's default ignorables)."""
_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"
"""Invisible, but Persian, Indic scripts and emoji are written with them; shown as they are between two such letters."""

_PLAIN = re.compile(r"[ -~]*")
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_CURSOR_UP = re.compile(r"(\x1b\[A)+")


def line(text: str) -> str:
    """One line of a terminal: control characters, marks of direction, line breaks and half surrogates are escaped."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join(
        letter if not _misleads(letter) or _joins(text, at) else _escape(letter) for at, letter in enumerate(text)
    )


def lines(text: str) -> str:
    """The same of several lines, whose breaks stay."""
    return "\n".join(map(line, text.split("\n")))


def as_json(value: Any, indent: int = 1) -> str:
    """JSON of the same value, whose texts show nothing that could steer a terminal; numbers that it lacks are null."""
    try:
        text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, indent=indent)
    return "\n".join(map(_json_line, text.split("\n")))


def guard() -> None:
    """Put a `Guarded` in the place of the standard output and the standard error."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Guarded):
            setattr(sys, name, Guarded(tolerant(stream)))


def unguarded(stream: TextIO) -> TextIO:
    """The stream itself, for one who escapes what it writes."""
    return stream.inner if isinstance(stream, Guarded) else stream


def tolerant(stream: TextIO) -> TextIO:
    """A stream that spells out what its encoding cannot write."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    return stream


class Guarded:
    """A text stream through which nothing reaches a terminal but text, and the moves of a progress bar."""

    def __init__(self, inner: TextIO) -> None:
        self.inner = inner

    def write(self, text: str) -> int:
        """Write a text; a carriage return at its start and steps upwards are those of progress bars."""
        if _CURSOR_UP.fullmatch(text):
            self.inner.write(text)
        else:
            start = "\r" if text.startswith("\r") else ""
            self.inner.write(start + "\t".join(map(lines, text[len(start) :].split("\t"))))
        return len(text)

    def writelines(self, texts: Iterable[str]) -> None:
        """Write several."""
        for text in texts:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _misleads(letter: str) -> bool:
    return unicodedata.category(letter) in _CATEGORIES or _INVISIBLE.match(letter) is not None


def _joins(text: str, at: int) -> bool:
    """Whether a letter is a joiner that belongs to the writing around it."""
    if text[at] not in _JOINERS or not 0 < at < len(text) - 1:
        return False
    return all(around > "\u02ff" and not _misleads(around) for around in (text[at - 1], text[at + 1]))


def _escape(letter: str) -> str:
    code = ord(letter)
    if letter in _NAMED:
        return _NAMED[letter]
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is no Unicode
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_line(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    return "".join(json.dumps(letter)[1:-1] if _misleads(letter) else letter for letter in text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
