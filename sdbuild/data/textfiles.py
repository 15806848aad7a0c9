"""Text files that people wrote: what is in them, or what is wrong with them. Light."""

from __future__ import annotations

from pathlib import Path

from sdbuild.errors import Problem
from sdbuild.storage.regular_files import SpecialFileError, TooLargeError, read_regular

MOST = 256 << 20
"""Bytes of a file with the captions of a folder: some hundred for each of a million pictures."""
MOST_OF_SIDECAR = 1 << 20
"""Bytes of a file beside its picture."""


def read_text(path: Path, name: str, most: int = MOST) -> str | Problem:
    """A UTF-8 file's text, without a byte order mark."""
    try:
        data = read_regular(path, most=most)
    except FileNotFoundError:
        reason = (
            "links to a file that is not there; mend or delete it" if path.is_symlink() else "there is no such file"
        )
        return Problem(file=name, message=reason)
    except SpecialFileError as error:
        return Problem(file=name, message=f"is {error.strerror}; delete it")
    except TooLargeError as error:
        return Problem(file=name, message=f"{error.strerror}; is it a caption?")
    except OSError as error:
        return Problem(file=name, message=f"cannot be read ({error.strerror}); mend its permissions")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Problem(file=name, message="is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8 (byte 0x{data[error.start]:02x}, as in Latin-1 or Windows text); save it as UTF-8"
        return Problem(file=name, line=line, message=message)


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can hold a text: halves of surrogate pairs cannot be written."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
