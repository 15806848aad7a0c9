"""Headers of safetensors files: read by themselves, and refused where the format does not allow what they say.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian length, JSON header, tensor data). What passes
here is read by the library too. Light: neither the library nor torch is needed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from sdbuild.errors import DataError, Problem
from sdbuild.storage.phrases import cut

MOST = 100_000_000
"""Bytes that a header may have; the format's own limit."""
BITS: Mapping[str, int] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}
"""Bits a number has, by the format's name of its type."""

_LARGEST = 2**64 - 1
_SHOWN = 80
"""Letters of a tensor's name that are shown."""


class HeaderError(ValueError):
    """The file is not a whole safetensors file; the message follows the file's name: `is damaged (…)`."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file."""

    dtype: str
    """A key of `BITS`."""
    shape: tuple[int, ...]
    start: int
    end: int
    """Bytes, counted from the first one behind the header."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What a safetensors file says of itself."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Stored]
    """In the order of the header."""
    start: int
    """Where the data begins in the file."""

    @property
    def numbers(self) -> int:
        """In all tensors."""
        return sum(math.prod(each.shape) for each in self.tensors.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Types of numbers, each once."""
        return tuple(sorted({each.dtype for each in self.tensors.values()}))


def read_header(path: Path, *, file: str | None = None) -> Header:
    """Read the header of a file.

    Args:
        path: of the file.
        file: what messages call it; its path by default.

    Raises:
        DataError: it cannot be read, is no safetensors file, or not a whole one.
    """
    try:
        if not path.is_file():
            raise HeaderError("is no file" if path.exists() else "is not there")
        with path.open("rb") as opened:
            return header_of(opened)
    except HeaderError as error:
        raise DataError([Problem(file=file or str(path), message=str(error))]) from None
    except OSError as error:
        reason = (error.strerror or "unknown error").lower()
        raise DataError([Problem(file=file or str(path), message=f"cannot be read: {reason}")]) from None


def header_of(file: BinaryIO) -> Header:
    """Read the header of an open file, which is left behind it.

    Raises:
        HeaderError: it is no safetensors file, or not a whole one.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8:
        _damaged(f"cut short: it has {size} bytes")
    if not 2 <= length <= MOST:
        raise HeaderError("is no safetensors file, or its start is damaged; copy or download it again")
    content = file.read(length)
    if not content.startswith(b"{"):
        raise HeaderError("is no safetensors file, or its start is damaged; copy or download it again")
    if len(content) < length:
        _damaged(f"cut short in its header, at {size} bytes")
    metadata, tensors = _parsed(content)
    end = 8 + length + _covered(tensors)
    if size != end:
        _damaged(f"cut short: it has {size} of {end} bytes" if size < end else "longer than its header says")
    return Header(metadata=metadata, tensors=tensors, start=8 + length)


def _parsed(content: bytes) -> tuple[Mapping[str, str], Mapping[str, Stored]]:
    try:
        rows = json.loads(
            content.decode(),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
    except HeaderError:
        raise
    except (ValueError, RecursionError):
        _damaged("its header is no JSON")
    metadata = rows.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    elif not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        _damaged("its metadata is not all text")
    if not all(map(_is_unicode, (*metadata, *metadata.values(), *rows))):
        _damaged("its header is no Unicode")
    return metadata, {name: _stored(name, row) for name, row in rows.items()}


def _stored(name: str, row: Any) -> Stored:
    if not isinstance(row, dict):
        _wrong(name, "is not described")
    for key in ("dtype", "shape", "data_offsets"):
        if key not in row:
            _wrong(name, f"has no {key}")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        _wrong(name, f"has the unknown dtype {json.dumps(dtype)[:_SHOWN]}")
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        _wrong(name, "has a shape that is no list of whole numbers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        _wrong(name, "has data_offsets that are not two whole numbers")
    if any(isinstance(value, list | dict) for key, value in row.items() if key not in ("shape", "data_offsets")):
        _wrong(name, "is described by more than the format has")
    bits = BITS[dtype]
    for side in shape:  # as the library multiplies, which ends at the largest number it can hold
        bits *= side
        if bits > _LARGEST:
            _wrong(name, "has a shape that is too large")
    start, end = offsets
    if bits % 8 or end - start != bits // 8:
        _wrong(name, f"has {end - start} bytes, and its shape and dtype take {bits / 8:.15g}")
    return Stored(dtype, tuple(shape), start, end)


def _covered(tensors: Mapping[str, Stored]) -> int:
    """Bytes of all tensors, which lie one behind the other without a gap."""
    at = 0
    for name, each in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if each.start != at:
            _wrong(name, f"begins at byte {each.start}, and the tensor before it ends at {at}")
        at = each.end
    return at


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        _damaged(f"its header names {cut(next(key for key in keys if keys.count(key) > 1), _SHOWN)} twice")
    return found


def _integer(text: str) -> int:
    number = -1 if text.startswith("-") else int(text) if len(text) <= 20 else _LARGEST + 1
    if number > _LARGEST:
        _damaged("its header has a number that is too large")
    return number


def _float(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _constant(text)


def _constant(text: str) -> NoReturn:
    _damaged(f"its header has {text[:_SHOWN]}, which JSON has not")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _wrong(name: str, reason: str) -> NoReturn:
    _damaged(f"{cut(name, _SHOWN)} {reason}")


def _damaged(reason: str) -> NoReturn:
    raise HeaderError(f"is damaged ({reason}); copy or download it again")
