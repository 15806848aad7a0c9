"""Safetensors files whose bytes depend on nothing but their content.

The library writes header entries in the order of a hash map with a random seed; this module sorts them.
Format: https://huggingface.co/docs/safetensors (8 bytes little-endian length, JSON header, tensor data).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sdbuild.storage.atomic import renamed_to

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def content_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 (hex) of the data region that `write_tensors` writes."""
    digest = hashlib.sha256()
    for name in _order(tensors):
        digest.update(_data(tensors[name]))
    return digest.hexdigest()


def file_size(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Return the bytes that `write_tensors` would write; the tensors may be without data."""
    data = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return len(_header(tensors, metadata)) + data


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file to a temporary name beside `path`, flush it to the disk, and rename it."""
    with renamed_to(path) as temporary, temporary.open("wb") as file:
        file.write(_header(tensors, metadata))
        file.writelines(_data(tensors[name]) for name in _order(tensors))
        file.flush()
        os.fsync(file.fileno())


def _order(tensors: Mapping[str, Tensor]) -> Iterable[str]:
    """Wide types first, so that all tensors are aligned; by name among equals."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in _order(tensors):
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _data(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]
