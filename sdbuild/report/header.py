"""The header of a safetensors file, read alone: nothing of the tensors, no library.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian length, JSON header, tensor data).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdbuild.errors import DataError, Problem

MOST = 100_000_000
"""Bytes that a header may have; the format's own limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What a safetensors file says of itself."""

    metadata: Mapping[str, str]
    tensors: int
    numbers: int
    """In all tensors."""
    dtypes: tuple[str, ...]


def read_header(path: Path) -> Header:
    """Read the header of a file.

    Raises:
        DataError: it is no safetensors file, or a part of one.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= MOST:
                raise _wrong(path, "is no safetensors file")
            content = file.read(length)
    except OSError as error:
        raise _wrong(path, f"cannot be read: {(error.strerror or 'unknown error').lower()}") from None
    if not content.startswith(b"{"):
        raise _wrong(path, "is no safetensors file")
    if len(content) < length:
        raise _wrong(path, f"is cut off in its header, at {size} bytes; copy it again")
    try:
        header, end = _parsed(json.loads(content))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _wrong(path, "is no safetensors file, or damaged: its header cannot be read") from None
    if header.numbers > 8 * size >= 8 * (8 + length + end):
        raise _wrong(path, "is damaged: its header names more numbers than there are bits")
    if size < 8 + length + end:
        raise _wrong(path, f"is cut off: it has {size} of {8 + length + end} bytes; copy it again")
    return header


def _parsed(rows: dict[str, Any]) -> tuple[Header, int]:
    metadata = rows.pop("__metadata__", None) or {}
    if not all(isinstance(text, str) for text in metadata.values()):
        raise TypeError("metadata holds text only")
    header = Header(
        metadata=metadata,
        tensors=len(rows),
        numbers=sum(math.prod(row["shape"]) for row in rows.values()),
        dtypes=tuple(sorted({str(row["dtype"]) for row in rows.values()})),
    )
    return header, max((int(row["data_offsets"][1]) for row in rows.values()), default=0)


def _wrong(path: Path, message: str) -> DataError:
    return DataError([Problem(file=str(path), message=message)])
