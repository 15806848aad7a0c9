"""Item shards on disk: safetensors files that many items share, read an item at a time.

A shard `<2 hex>.safetensors` holds the items whose keys start with these digits, as tensors named `<key>/<name>`. Its
bytes are a function of its items alone: names are sorted, nothing is dated. The header's metadata carries the format's
version and a CRC-32 an item, so a damaged item is noticed when it is read. Files are written here by hand, which
streams items from other shards (memory holds one item) and keeps torch out of planning; any safetensors reader opens
them. Torch is imported only where tensors are made.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sdbuild.errors import DataError, Problem
from sdbuild.storage.atomic import renamed_to
from sdbuild.storage.headers import Header, HeaderError, header_of

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "sdbuild-items"
VERSION = 1

DTYPES = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "I16": ("int16", 2),
    "I32": ("int32", 4),
    "I64": ("int64", 8),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F32": ("float32", 4),
    "F64": ("float64", 8),
}
"""Safetensors' names of element types: torch's name and bytes an element."""

Stamp = tuple[int, int, int]
"""Inode, size and modification time (ns) of a shard file: its identity while others may replace it."""


class ShardDamagedError(Exception):
    """A shard or an item in it is not whole."""


class ShardVersionError(DataError):
    """A shard is of another format or version."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type (safetensors' name) and shape of one tensor of an item."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype][1]


@dataclass(frozen=True, slots=True)
class Part:
    """One item that can be written into a shard: its tensors, sorted by name, and where its bytes come from."""

    key: str
    tensors: tuple[TensorSpec, ...]
    crc: int
    load: Callable[[], bytes]
    """The tensors' bytes, one after the other; raises `ShardDamagedError` when they do not fit the CRC."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One item in a shard file."""

    tensors: tuple[TensorSpec, ...]
    crc: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Index:
    """What a shard file holds."""

    stamp: Stamp
    entries: dict[str, Entry]


def shard_name(key: str) -> str:
    """File name of the shard that a key, which is a digest, belongs to."""
    if not key[:2].isalnum():
        raise ValueError(f"{key[:80]!a} is no key of an item")
    return f"{key[:2]}.safetensors"


def pack(key: str, tensors: Mapping[str, Tensor]) -> Part:
    """Bytes of an item's tensors (torch, any device and layout), ready to be written."""
    import torch

    names = {name: short for short, (name, _) in DTYPES.items()}
    specs: list[TensorSpec] = []
    chunks: list[bytes] = []
    for name in sorted(tensors):
        tensor = torch.as_tensor(tensors[name]).detach().cpu().contiguous()
        specs.append(TensorSpec(name, names[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape)))
        chunks.append(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    data = b"".join(chunks)
    return Part(key, tuple(specs), zlib.crc32(data), lambda: data)


def unpack(tensors: Sequence[TensorSpec], data: bytes) -> dict[str, Tensor]:
    """The tensors of an item from their bytes; they own their memory."""
    import torch

    result: dict[str, Tensor] = {}
    offset = 0
    for spec in tensors:
        dtype = getattr(torch, DTYPES[spec.dtype][0])
        if spec.size == 0:
            result[spec.name] = torch.empty(spec.shape, dtype=dtype)
            continue
        buffer = bytearray(data[offset : offset + spec.size])
        result[spec.name] = torch.frombuffer(buffer, dtype=dtype).reshape(spec.shape)
        offset += spec.size
    return result


def stamp_of(status: os.stat_result) -> Stamp:
    """Identity of an open or listed shard file."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def read_index(file: BinaryIO, name: str) -> Index:
    """Read and check the header of an open shard.

    Raises:
        ShardDamagedError: it is cut short or not a shard at all.
        ShardVersionError: it is a shard of another version.
    """
    stamp = stamp_of(os.fstat(file.fileno()))
    try:
        header = header_of(file)
    except HeaderError as error:
        raise ShardDamagedError(f"it {error}") from error
    metadata = header.metadata
    if not {"format", "version", "crc"} <= metadata.keys():
        raise ShardDamagedError("its header is of no shard")
    version = metadata["version"] if metadata["format"] == FORMAT else "unknown"
    if version != str(VERSION):
        message = f"items of version {version}, this sdbuild reads {VERSION}: update sdbuild, or delete the file"
        raise ShardVersionError([Problem(file=name, message=f"{message} and build again")])
    try:
        entries = _entries(header, metadata["crc"].split())
    except (ValueError, KeyError) as error:
        raise ShardDamagedError("its header is not consistent") from error
    return Index(stamp, entries)


def write_shard(path: Path, parts: Iterable[Part]) -> None:
    """Write a shard whole, to a temporary name which is then renamed; an existing one is replaced.

    There is no fsync: a file that a power failure leaves short is noticed on reading, and its items are made again.

    Raises:
        ShardDamagedError: the bytes of a part are damaged where they come from; nothing was written.
    """
    ordered = sorted(parts, key=lambda part: part.key)
    name = f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    with renamed_to(path, name) as temporary, temporary.open("wb") as file:
        file.write(_header(ordered))
        for part in ordered:
            file.write(part.load())


def shard_size(parts: Collection[Part]) -> int:
    """Bytes of a shard with these parts; 0 for none, since there is no such file."""
    ordered = sorted(parts, key=lambda part: part.key)
    return len(_header(ordered)) + sum(spec.size for part in ordered for spec in part.tensors) if ordered else 0


def _header(parts: Sequence[Part]) -> bytes:
    crcs = " ".join(f"{part.crc:08x}" for part in parts)
    header: dict[str, Any] = {"__metadata__": {"crc": crcs, "format": FORMAT, "version": str(VERSION)}}
    offset = 0
    for part in parts:
        for spec in part.tensors:
            offsets = [offset, offset + spec.size]
            header[f"{part.key}/{spec.name}"] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": offsets}
            offset += spec.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _entries(header: Header, crcs: Sequence[str]) -> dict[str, Entry]:
    tensors: dict[str, list[TensorSpec]] = {}
    sizes: dict[str, int] = {}
    offset = 0
    for full_name, stored in header.tensors.items():
        key, _, name = full_name.partition("/")
        spec = TensorSpec(name, stored.dtype, stored.shape)
        if (stored.start, stored.end) != (offset, offset + spec.size):
            raise ValueError(full_name)
        offset += spec.size
        tensors.setdefault(key, []).append(spec)
        sizes[key] = sizes.get(key, 0) + spec.size
    entries: dict[str, Entry] = {}
    position = header.start
    for key, crc in zip(tensors, crcs, strict=True):
        entries[key] = Entry(tuple(tensors[key]), int(crc, 16), position, sizes[key])
        position += sizes[key]
    return entries
