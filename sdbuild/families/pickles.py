"""Names of tensors in pickled weights, read from the pickle's opcodes without running it. Light."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

from sdbuild.errors import DataError, Problem

MAX_BYTES = 64 << 20
"""A pickle of names; the tensors lie beside it."""
TENSORS = ("torch", "collections", "_codecs", "numpy", "__builtin__", "builtins")
"""Modules of which pickles of tensors name something."""


def names_in(file: Path) -> frozenset[str]:
    """All texts in a checkpoint's pickle, the names of its tensors among them.

    Raises:
        DataError: it is damaged, or holds more than tensors.
    """
    texts: set[str] = set()
    try:
        with zipfile.ZipFile(file) as archive:
            [entry] = [each for each in archive.infolist() if each.filename.endswith("/data.pkl")]
            if entry.file_size > MAX_BYTES:
                raise ValueError("the pickle is too large")
            for code, argument, _ in pickletools.genops(archive.read(entry)):
                if code.name == "GLOBAL" and not str(argument).startswith(TENSORS):
                    raise ValueError(f"{str(argument).split()[0]} is no tensor")
                if isinstance(argument, str):
                    texts.add(argument)
    except (zipfile.BadZipFile, ValueError, KeyError, NotImplementedError, EOFError, RuntimeError, OSError):
        message = "is damaged, or holds more than tensors, which is never read; convert it elsewhere"
        raise DataError([Problem(file=str(file), message=message)]) from None
    return frozenset(texts)
