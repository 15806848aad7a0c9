"""The item store: whole or absent, shared, and the same bytes for the same items."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from sdbuild.data.items import ItemStore, ShardReader, export, item_key, reuse, windows
from sdbuild.data.shards import ShardVersionError, shard_name
from sdbuild.errors import DataError, StepError

KEYS = sorted(item_key("test", number=number) for number in range(600))


def item(key: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(int(key[:8], 16))
    return {"mean": torch.randn(4, 2, 3, generator=generator), "logvar": torch.full((4, 2, 3), int(key[:2], 16) / 7)}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def filled(folder: Path, keys: list[str] = KEYS) -> ItemStore:
    store = ItemStore(folder)
    assert store.fill((key, item(key)) for key in keys) == len(keys)
    return store


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix == ".safetensors"}


def damage(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 0xFF
    path.write_bytes(data)


def test_keys_name_everything() -> None:
    assert item_key("latent", digest="a", bucket=[1, 2]) == item_key("latent", bucket=(1, 2), digest="a")
    variants: list[dict[str, Any]] = [{"digest": "a"}, {"digest": "b"}, {"digest": "a", "flip": True}]
    assert len({item_key(kind, **parts) for kind in ("latent", "text") for parts in variants}) == 6


def test_items_come_back(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    assert store.missing([*KEYS, "ff" * 32]) == ["ff" * 32]
    assert list(ShardReader(tmp_path / "store").keys()) == KEYS
    assert len(store) == len(KEYS)
    assert all(same(store.read(key), item(key)) for key in KEYS)
    with pytest.raises(KeyError, match="ffff"):
        store.read("ff" * 32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_all_element_types(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "odd": torch.arange(7, dtype=torch.uint8),
        "x": torch.arange(6).reshape(2, 3).to(dtype).t(),
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.empty(0, 4, dtype=dtype),
    }
    store = ItemStore(tmp_path)
    store.add({KEYS[0]: tensors})
    assert same(store.read(KEYS[0]), tensors)
    with safe_open(tmp_path / shard_name(KEYS[0]), "pt") as file:
        assert torch.equal(file.get_tensor(f"{KEYS[0]}/x"), tensors["x"])
        assert file.metadata()["version"] == "1"


def test_windows_are_whole_shards_in_order() -> None:
    cut = list(windows(reversed(KEYS), 50))
    assert [key for window in cut for key in window] == KEYS
    assert all(len(window) <= 50 for window in cut)
    assert all(one[-1][:2] != other[0][:2] for one, other in pairwise(cut))
    assert list(windows(["aa1", "aa2", "aa3", "ab1"], 2)) == [["aa1", "aa2"], ["aa3", "ab1"]]
    assert list(windows([], 2)) == []


def test_export_holds_exactly_the_wanted(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    export(KEYS[::2], tmp_path / "out", [store])
    assert list(ShardReader(tmp_path / "out").keys()) == KEYS[::2]
    assert all(same(ShardReader(tmp_path / "out").read(key), item(key)) for key in KEYS[:40:2])


def test_bytes_depend_on_the_items_alone(tmp_path: Path) -> None:
    export(KEYS[:100], tmp_path / "one", [filled(tmp_path / "a")])
    other = ItemStore(tmp_path / "b")
    for key in reversed(KEYS[:100]):
        other.add({key: item(key)})
    export(reversed(KEYS[:100]), tmp_path / "two", [other])
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_one_more_item_changes_one_shard(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    export(KEYS[1:], tmp_path / "one", [store])
    export(KEYS, tmp_path / "two", [reuse(tmp_path / "one"), store])
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert {name for name in two if one.get(name) != two[name]} == {shard_name(KEYS[0])}


def test_the_last_out_is_preferred_and_is_enough(tmp_path: Path) -> None:
    elsewhere = ItemStore(tmp_path / "elsewhere")
    elsewhere.add({key: {"mean": torch.zeros(2)} for key in KEYS[:3]})
    export(KEYS[:3], tmp_path / "previous", [elsewhere])
    previous, empty = reuse(tmp_path / "previous"), ItemStore(tmp_path / "store")
    assert empty.missing(KEYS[:4], previous) == [KEYS[3]]
    store = filled(tmp_path / "store", KEYS[:4])
    export(KEYS[:4], tmp_path / "out", [previous, store])
    assert same(ShardReader(tmp_path / "out").read(KEYS[0]), {"mean": torch.zeros(2)})
    assert same(ShardReader(tmp_path / "out").read(KEYS[3]), item(KEYS[3]))


def test_an_item_that_went_missing(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="items went missing while the step ran"):
        export(KEYS, tmp_path / "out", [filled(tmp_path / "store", KEYS[1:])])


@pytest.mark.parametrize("how", ["short", "header", "empty", "garbage"])
def test_a_damaged_shard_counts_as_absent(tmp_path: Path, how: str) -> None:
    filled(tmp_path)
    path = tmp_path / shard_name(KEYS[0])
    whole = path.read_bytes()
    lost = [key for key in KEYS if shard_name(key) == path.name]
    cut = {"short": whole[:-1], "header": whole[:20], "empty": b"", "garbage": b"\xff" * 500}
    path.write_bytes(cut[how])
    warnings: list[str] = []
    store = ItemStore(tmp_path, warn=warnings.append)
    assert store.missing(KEYS) == lost
    assert len(warnings) == 1
    assert path.name in warnings[0]
    assert "items are made again" in warnings[0]
    store.fill((key, item(key)) for key in lost)
    assert path.read_bytes() == whole
    assert store.missing(KEYS) == []


def test_a_flipped_bit_costs_one_item(tmp_path: Path) -> None:
    filled(tmp_path)
    damage(tmp_path / shard_name(KEYS[0]), 0.99)
    lost = max(key for key in KEYS if shard_name(key) == shard_name(KEYS[0]))
    warnings: list[str] = []
    store = ItemStore(tmp_path, warn=warnings.append)
    assert store.missing(KEYS, check=False) == []
    assert store.missing(KEYS) == [lost]
    assert "does not fit its checksum" in warnings[0]
    store.add({lost: item(lost)})
    assert ItemStore(tmp_path).missing(KEYS) == []


def test_damage_is_passed_by_while_writing(tmp_path: Path) -> None:
    previous = filled(tmp_path / "previous")
    store = filled(tmp_path / "store")
    damage(tmp_path / "previous" / shard_name(KEYS[0]), 0.99)
    export(KEYS, tmp_path / "out", [reuse(previous.folder), store])
    assert files(tmp_path / "out") == files(tmp_path / "store")


def test_damage_in_an_out_is_an_error(tmp_path: Path) -> None:
    filled(tmp_path)
    damage(tmp_path / shard_name(KEYS[0]), 0.99)
    lost = max(key for key in KEYS if shard_name(key) == shard_name(KEYS[0]))
    with pytest.raises(DataError, match=r"damaged \(item .* does not fit its checksum\); delete it and build again"):
        ShardReader(tmp_path).read(lost)


def test_other_versions_are_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / shard_name(KEYS[0])
    path.write_bytes(path.read_bytes().replace(b'"version":"1"', b'"version":"2"'))
    for reader in (ItemStore(tmp_path), ShardReader(tmp_path)):
        with pytest.raises(ShardVersionError, match=r"items of version 2, this sdbuild reads 1: update sdbuild, or"):
            reader.read(KEYS[0])
    assert KEYS[0] not in reuse(tmp_path)


def test_foreign_safetensors_are_not_items(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / shard_name(KEYS[0]))
    with pytest.raises(DataError, match="damaged"):
        ShardReader(tmp_path).read(KEYS[0])


def test_what_was_computed_is_kept_when_a_step_fails(tmp_path: Path) -> None:
    def items() -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        for key in KEYS[:10]:
            yield key, item(key)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        ItemStore(tmp_path).fill(items())
    assert ItemStore(tmp_path).missing(KEYS) == KEYS[10:]


def test_leftovers_of_a_killed_process_go(tmp_path: Path) -> None:
    leftover = tmp_path / f".{shard_name(KEYS[0])}.123-ab.tmp"
    leftover.write_bytes(b"half")
    filled(tmp_path, KEYS[:1])
    assert not leftover.exists()
    assert list(ShardReader(tmp_path).keys()) == KEYS[:1]


def test_a_reader_follows_replaced_shards(tmp_path: Path) -> None:
    store = filled(tmp_path, KEYS[1:])
    part = store.find(KEYS[1])
    assert part is not None
    before = part.load()
    smaller = "00" * 32
    filled(tmp_path, [KEYS[0], smaller])  # moves the items behind it
    assert part.load() == before
    assert store.missing(KEYS) == []


def test_processes_add_at_once(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
import torch
from sdbuild.data.items import ItemStore
store = ItemStore(Path(sys.argv[1]))
for number in range(25):
    store.add({f"aa{sys.argv[2]}{number:061x}": {"x": torch.full((3,), number)}})
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(number)]) for number in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    keys = [f"aa{process}{number:061x}" for process in range(2) for number in range(25)]
    store = ItemStore(tmp_path)
    assert store.missing(keys) == []
    assert store.read(keys[7])["x"].tolist() == [7, 7, 7]


MEMORY = """
import resource, sys
from pathlib import Path
import torch
from sdbuild.data.items import ItemStore, ShardReader, export, item_key
folder, count = Path(sys.argv[1]), int(sys.argv[2])
keys = sorted(item_key("m", number=number) for number in range(count))
store = ItemStore(folder / "store")
store.fill((key, {"x": torch.full((16384,), 1.0)}) for key in keys)
assert store.missing(keys) == []
export(keys, folder / "out", [store])
reader = ShardReader(folder / "out")
assert all(reader.read(key)["x"][0] == 1 for key in keys)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_items(tmp_path: Path) -> None:
    """64 KiB an item: 2,500 items more are 160 MB, of which memory must show next to nothing."""

    def peak(count: int) -> int:
        command = [sys.executable, "-c", MEMORY, str(tmp_path / str(count)), str(count)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert peak(3500) - peak(1000) < 30 * 1024


def test_items_that_nobody_wants_are_dropped(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    assert store.surplus(set(KEYS)) == {}
    wanted = set(KEYS[::2]) - {key for key in KEYS if key.startswith("0")}
    surplus, before = store.surplus(wanted), files(tmp_path / "store")
    for name, size in surplus.items():
        ItemStore(tmp_path / "store").drop_surplus(name, wanted)
        path = tmp_path / "store" / name
        assert size == len(before[name]) - (path.stat().st_size if path.exists() else 0)
    filled(tmp_path / "other", sorted(wanted))
    assert files(tmp_path / "store") == files(tmp_path / "other")
    assert store.missing(wanted) == []
