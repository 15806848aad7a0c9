"""Headers of safetensors files: what the library refuses is refused, what it reads is read."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from sdbuild.data.shards import ShardDamagedError, ShardVersionError, read_index
from sdbuild.errors import DataError
from sdbuild.families.layout import damages
from sdbuild.storage.headers import BITS, MOST, read_header
from sdbuild.training.tensorfile import write_tensors
from tests.conftest import Work

NUMBERS = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw(header: object, data: int = 0, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data)


def one(**changes: Any) -> dict[str, Any]:
    return {"a": {key: value for key, value in {**NUMBERS, **changes}.items() if value != "absent"}}


def row(text: str) -> bytes:
    return b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]' + text.encode() + b"}}"


def malformed() -> Iterator[tuple[bytes, str]]:
    """Files that are none, and what is said of them."""
    metadata: Any
    dtype: Any
    shape: Any
    offsets: Any
    yield b"", "cut short"
    yield b"\1\2\3", "cut short"
    yield b"x" * 12, "is no safetensors file"
    yield b"\x89PNG\r\n\x1a\n and more", "is no safetensors file"
    yield raw({}, 0, MOST + 1), "is no safetensors file"
    yield raw({}, 0, 2**63), "is no safetensors file"
    yield raw({}, 0, 2**64 - 1), "is no safetensors file"
    yield raw({}, 0, 50), "cut short in its header"
    yield raw(one(), 8)[:-1], "cut short: it has"
    yield raw(one(), 9), "longer than its header"
    for text in (b"[1]", b"1", b"null", b'"a"', b" {}", b"\xef\xbb\xbf{}", "{}".encode("utf-16")):
        yield raw(text), "is no safetensors file"
    for text in (
        b"{ ",
        b"{}}",
        b"{]",
        b'{"a"}',
        b"{}\0",
        b'{"a":1,}',
        b"{'a':1}",
        b'{"\xff":1}',
        b'{"a\nb":1}',
        b'{"a":0x1}',
    ):
        yield raw(text), "header is no JSON"
    for opened in (b"[", b'{"a":'):
        yield raw(b'{"a":' + opened * 100_000), "header is no JSON"
        yield raw(b'{"__metadata__":' + opened * 100_000), "header is no JSON"
    for word in ("NaN", "Infinity", "-Infinity", "1e999"):
        yield raw(row(f',"x":{word}'), 8), "header has"
        yield raw(f'{{"a":{word}}}'.encode()), "header has"
    yield raw(row(',"x":' + "9" * 5000), 8), "too large"
    yield raw(row(',"x":[[1]]'), 8), "more than the format"
    for metadata in ([], 1, "a", {"a": 1}, {"a": None}, {"a": ["b"]}, {"a": {"b": "c"}}, True):
        yield raw({"__metadata__": metadata, **one()}, 8), "metadata is not all text"
    yield raw(b'{"__metadata__":{"a":"b","a":"c"}}'), "names a twice"
    yield (
        raw(b'{"a":' + json.dumps(NUMBERS).encode() + b',"a":' + json.dumps(NUMBERS).encode() + b"}", 8),
        "names a twice",
    )
    yield raw(row(',"dtype":"F32"'), 8), "names dtype twice"
    yield raw(b'{"\\ud800":' + json.dumps(NUMBERS).encode() + b"}", 8), "no Unicode"
    yield raw(b'{"__metadata__":{"a":"\\udfff"}}'), "no Unicode"
    for value in (None, 1, "a", [], [1], True, 1.5):
        yield raw({"a": value}), "a is not described"
    for key in NUMBERS:
        yield raw(one(**{key: "absent"}), 8), f"a has no {key}"
    for dtype in ("F31", "f32", "", "float32", 32, None, [], {}, True, 1.5, "\x1b]0;x\x07", "F" * 1000):
        yield raw(one(dtype=dtype), 8), "unknown dtype"
    for shape in (None, 2, "2", {}, [2.0], ["2"], [None], [True], [-2], [[2]], [1e10], 1.5, True):
        yield raw(one(shape=shape), 8), "shape that is no list"
    for shape in ([2**62, 2**62], [2**40] * 3, [10**6] * 20, [2**64 - 1]):
        yield raw(one(shape=shape), 8), "too large"
    yield raw(one(shape=[2**65]), 8), "too large"
    for offsets in (
        None,
        8,
        "0 8",
        {},
        [],
        [0],
        [0, 8, 8],
        ["0", "8"],
        [0, None],
        [0.0, 8.0],
        [-8, 0],
        [False, 8],
        [[0], [8]],
    ):
        yield raw(one(data_offsets=offsets), 8), "data_offsets that are not two"
    for offsets in ([8, 0], [0, 7], [0, 9], [1, 8], [0, 0], [0, 2**63]):
        yield raw(one(data_offsets=offsets), 8), "its shape and dtype take 8"
    yield raw(one(data_offsets=[1, 9]), 9), "begins at byte 1"
    yield raw(one(data_offsets=[2**60, 2**60 + 8]), 8), "begins at byte"
    yield raw({**one(), "b": NUMBERS}, 8), "begins at byte 0"
    yield raw({**one(), "b": {**NUMBERS, "data_offsets": [4, 12]}}, 12), "begins at byte 4"
    yield raw({**one(), "b": {**NUMBERS, "data_offsets": [12, 20]}}, 20), "begins at byte 12"
    yield raw({**one(), "b": {**NUMBERS, "shape": [0], "data_offsets": [4, 4]}}, 8), "begins at byte"
    yield raw(one(dtype="F4", shape=[3], data_offsets=[0, 1]), 1), "its shape and dtype take 1.5"


def accepted(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as opened:
            opened.metadata()
    except (SafetensorError, OSError):
        return False
    return True


def test_malformed_headers_are_refused_in_one_line_that_says_why(tmp_path: Path) -> None:
    cases = list(malformed())
    assert len(cases) > 100
    for at, (content, reason) in enumerate(cases):
        path = tmp_path / f"{at}.safetensors"
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_header(path)
        said = str(caught.value)
        assert said.startswith(f"{path}: is "), said
        assert reason in said, (reason, said)
        assert len(said.splitlines()) == 1
        assert len(said) < 400 + len(str(path))
        assert list(damages(path))
        with path.open("rb") as file, pytest.raises((ShardDamagedError, ShardVersionError)):
            read_index(file, path.name)


def test_what_the_library_reads_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    files = [
        save({}),
        save(
            {
                "a": torch.zeros(2, 3),
                "b": torch.zeros(0),
                "c": torch.tensor(1.0),
                "é": torch.zeros(1, dtype=torch.bfloat16),
            }
        ),
        save({"a": torch.zeros(3, dtype=torch.bool)}, metadata={"key": "täxt", "": ""}),
        raw({"__metadata__": None, **one()}, 8),
        raw({}),
        raw(b"{}     \n\t\r"),
        raw({"b": {**NUMBERS, "data_offsets": [8, 16]}, **one()}, 16),
        raw({"": NUMBERS}, 8),
        raw(one(further=1), 8),
        *(raw(one(dtype=dtype, shape=[8], data_offsets=[0, bits]), bits) for dtype, bits in BITS.items()),
    ]
    for content in files:
        path.write_bytes(content)
        header = read_header(path)
        with safe_open(path, framework="pt") as opened:
            assert sorted(header.tensors) == sorted(opened.keys())
            assert dict(header.metadata) == (opened.metadata() or {})
            for name in opened.keys():  # noqa: SIM118
                assert list(header.tensors[name].shape) == opened.get_slice(name).get_shape()


def test_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.float16)}, {"key": "täxt"})
    header = read_header(path)
    assert header.metadata == {"key": "täxt"}
    assert (len(header.tensors), header.numbers, header.dtypes) == (2, 10, ("F16", "F32"))


def test_nothing_is_accepted_that_the_library_refuses(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    good = save({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.float16)}, metadata={"key": "text"})
    random_ = random.Random(0)
    seen = {True: 0, False: 0}
    for _ in range(3000):
        content = bytearray(good)
        length = struct.unpack("<Q", good[:8])[0]
        for _ in range(random_.choice((1, 1, 2, 5))):
            at = random_.randrange(8 + length) if random_.random() < 0.9 else random_.randrange(len(content))
            kind = random_.random()
            if kind < 0.6:
                content[at] = random_.choice(b'0123456789{}[],:"\\-.eE null\x00\xff')
            elif kind < 0.8:
                del content[at : at + random_.randrange(1, 4)]
            else:
                content[at:at] = random_.choice(
                    (b"0", b"1", b"{", b"[", b'"', b",", b"-", b"\\u0041", b"null", b"true")
                )
        if random_.random() < 0.7:  # keep the length right
            content[:8] = struct.pack("<Q", max(0, len(content) - 8 - 32))
        path.write_bytes(content)
        try:
            read_header(path)
        except DataError:
            seen[False] += 1
        else:
            seen[True] += 1
            assert accepted(path), bytes(content)
    assert min(seen.values()) > 50, seen


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no file"):
        read_header(tmp_path)
    with pytest.raises(DataError, match="is not there"):
        read_header(tmp_path / "gone")


def test_check_looks_at_every_file_of_weights_that_a_recipe_names(work: Work) -> None:
    work.write("models/vae.safetensors", b"x" * 12)
    work.write("adapters/cut.safetensors", raw(one(), 8)[:-1])
    work.write("adapters/odd.safetensors", raw(one(shape=None), 8))
    adapters = [{"path": f"adapters/{name}.safetensors"} for name in ("cut", "odd")]
    work.recipe(base={"vae": "./models/vae.safetensors"}, sample={"adapters": adapters})
    said = work.sdbuild("check", code=2).err.splitlines()
    assert len(said) == 3
    assert said[0].startswith("recipes/cat.yaml:3: base.vae: models/vae.safetensors is no safetensors file")
    assert "sample.adapters[0].path: adapters/cut.safetensors is damaged (cut short: it has" in said[1]
    assert "sample.adapters[1].path: adapters/odd.safetensors is damaged (a has a shape that is no list" in said[2]
    work.recipe()
    weights = next((work.root / "base/unet").glob("*.safetensors"))
    weights.write_bytes(raw(one(data_offsets=["0", "8"]), 8))
    assert "is damaged (a has data_offsets that are not two whole numbers)" in work.sdbuild("check", code=2).err
