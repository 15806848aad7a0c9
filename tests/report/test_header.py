from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sdbuild.errors import DataError
from sdbuild.report.header import MOST, read_header
from sdbuild.training.tensorfile import write_tensors


def raw(header: object, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text


def test_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.float16)}, {"key": "täxt"})
    header = read_header(path)
    assert header.metadata == {"key": "täxt"}
    assert (header.tensors, header.numbers, header.dtypes) == (2, 10, ("F16", "F32"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="is cut off: it has"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no safetensors file"),
        (b"\x89PNG\r\n\x1a\n and more", "is no safetensors file"),
        (raw({}, MOST + 1), "is no safetensors file"),
        (raw({}, 2**63), "is no safetensors file"),
        (raw({}, 50), "is cut off in its header"),
        (raw(b"[1]"), "is no safetensors file"),
        (raw(b"{}}"), "its header cannot be read"),
        (raw(b"\xff" * 20), "is no safetensors file"),
        (raw(b'{"a":' + b"[" * 100_000), "its header cannot be read"),
        (raw({"__metadata__": {"a": 1}}), "its header cannot be read"),
        (raw({"__metadata__": []}), None),
        (raw({"a": {"dtype": "F32", "shape": [1]}}), "its header cannot be read"),
        (raw({"a": {"dtype": "F32", "shape": [10**300] * 20, "data_offsets": [0, 0]}}), "more numbers"),
        (raw({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}), "is cut off"),
    ],
)
def test_refuses_what_is_no_whole_file(tmp_path: Path, content: bytes, message: str | None) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    if message is None:
        assert read_header(path).metadata == {}
        return
    with pytest.raises(DataError, match=message) as caught:
        read_header(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: is a directory"):
        read_header(tmp_path)
