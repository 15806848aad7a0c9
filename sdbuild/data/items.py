"""The item store: latents and text embeddings by the content that they were made from.

Keys name everything that an item depends on (`item_key`), so an item is never stale, only absent. A store is local,
shared by all recipes and processes, and safe to delete at any moment. A step asks it first, then the last good version
of its own out, computes only what neither has, and writes its out with `export`.

    store = ItemStore(context.items / "latents", warn=context.warn)
    previous = reuse(context.previous / "latents")
    missing = store.missing(keys, previous)
    store.fill((key, encode(key)) for key in missing)
    export(keys, out / "latents", [previous, store])

Importing this module is light, and so is asking what is missing: the planner does.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbuild.data.listing import shown
from sdbuild.data.shards import (
    Entry,
    Index,
    Part,
    ShardDamagedError,
    ShardVersionError,
    pack,
    read_index,
    shard_name,
    shard_size,
    stamp_of,
    unpack,
    write_shard,
)
from sdbuild.errors import DataError, Problem, StepError

if TYPE_CHECKING:
    from torch import Tensor

FLUSH_ITEMS = 256
FLUSH_BYTES = 64 * 1024 * 1024
FLUSH_SECONDS = 10.0
"""A kill loses at most so much finished work."""


def item_key(kind: str, **parts: Any) -> str:
    """Name of an item: the sha256 (hex) of its kind and of everything that it depends on (JSON-able)."""
    canonical = json.dumps({"kind": kind, **parts}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def windows(keys: Iterable[str], max_items: int) -> Iterator[list[str]]:
    """Cut keys into sorted windows of whole shards; a shard with more than `max_items` is split."""
    window: list[str] = []
    for shard in _by_shard(keys).values():
        if window and len(window) + len(shard) > max_items:
            yield window
            window = []
        window += shard
        while len(window) > max_items:
            yield window[:max_items]
            window = window[max_items:]
    if window:
        yield window


class ShardReader:
    """Reads items from a folder of shards, one at a time; memory holds the index and the item.

    Files may be replaced by others while they are read: an index belongs to a file's inode, size and time.
    """

    def __init__(self, folder: Path, *, on_damage: Callable[[str], None] | None = None) -> None:
        """Read `folder`, which may be absent.

        Args:
            folder: holds `<2 hex>.safetensors`.
            on_damage: called with a message when a shard or item is damaged, which then counts as absent. Without it
                damage raises DataError.
        """
        self.folder = folder
        self._on_damage = on_damage
        self._indexes: dict[str, Index] = {}

    def __contains__(self, key: str) -> bool:
        """Whether the folder holds the item; its bytes are not checked."""
        return self._entry(key) is not None

    def __len__(self) -> int:
        return sum(len(self._index(name).entries) for name in self._names())

    def keys(self) -> Iterator[str]:
        """All keys, sorted."""
        for name in self._names():
            yield from self._index(name).entries

    def read(self, key: str) -> dict[str, Tensor]:
        """The tensors of an item.

        Raises:
            KeyError: the folder does not hold it, or it is damaged and `on_damage` was told.
            DataError: it is damaged.
        """
        part = self.find(key)
        if part is None:
            raise KeyError(key)
        try:
            data = part.load()
        except ShardDamagedError as error:
            raise KeyError(key) from error
        return unpack(part.tensors, data)

    def find(self, key: str) -> Part | None:
        """The item as something that can be written elsewhere; its bytes are read and checked on `load`."""
        entry = self._entry(key)
        if entry is None:
            return None
        return Part(key, entry.tensors, entry.crc, lambda: self._load(key, entry))

    def is_whole(self, key: str) -> bool:
        """Whether the folder holds the item with undamaged bytes; reads them."""
        part = self.find(key)
        if part is None:
            return False
        try:
            part.load()
        except ShardDamagedError:
            return False
        return True

    def _names(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if _is_shard(path.name))

    def _entry(self, key: str) -> Entry | None:
        return self._index(shard_name(key)).entries.get(key)

    def _index(self, name: str) -> Index:
        path = self.folder / name
        known = self._indexes.get(name)
        try:
            if known is not None and known.stamp == stamp_of(path.stat()):
                return known
            with path.open("rb") as file:
                stamp = stamp_of(os.fstat(file.fileno()))
                index = read_index(file, shown(path))
        except (FileNotFoundError, NotADirectoryError):
            index = Index((0, 0, 0), {})
        except ShardDamagedError as error:
            self._damaged(path, str(error))
            index = Index(stamp, {})
        except ShardVersionError:
            if not self._tolerates_versions():
                raise
            index = Index(stamp, {})
        self._indexes[name] = index
        return index

    def _tolerates_versions(self) -> bool:
        return False

    def _load(self, key: str, entry: Entry) -> bytes:
        name = shard_name(key)
        path = self.folder / name
        data = b""
        for _ in range(3):  # the file may be replaced between the index and the read
            try:
                with path.open("rb") as file:
                    file.seek(entry.offset)
                    data = file.read(entry.size)
            except FileNotFoundError as error:
                raise ShardDamagedError(f"{path} is gone") from error
            if zlib.crc32(data) == entry.crc:
                return data
            current = self._index(name).entries.get(key)
            if current == entry:
                break
            if current is None or (current.tensors, current.crc) != (entry.tensors, entry.crc):
                raise ShardDamagedError(f"{key} was replaced")
            entry = current
        self._damaged(path, f"item {key[:12]} in it does not fit its checksum")
        self._index(name).entries.pop(key, None)
        raise ShardDamagedError(key)

    def _damaged(self, path: Path, reason: str) -> None:
        if self._on_damage is None:
            raise DataError([Problem(file=shown(path), message=f"damaged ({reason}); delete it and build again")])
        self._on_damage(f"{path.name} is damaged ({reason}); its items are made again")


class _PreviousOut(ShardReader):
    """The last good version of an out: what cannot be used of it is passed over in silence."""

    def _tolerates_versions(self) -> bool:
        return True


def reuse(folder: Path) -> ShardReader:
    """Read the last good version of an out: absent, damaged and other versions' shards count as empty."""
    return _PreviousOut(folder, on_damage=lambda message: None)


class ItemStore(ShardReader):
    """A folder of shards that any number of processes read and add to at once."""

    def __init__(self, folder: Path, *, warn: Callable[[str], None] | None = None) -> None:
        """Use `folder`, which is made on the first `add`; `warn` is told of damaged shards."""
        super().__init__(folder, on_damage=warn or (lambda message: None))

    def missing(self, keys: Iterable[str], *others: ShardReader, check: bool = True) -> list[str]:
        """Sorted keys that neither the store nor the others hold.

        Args:
            keys: in any order, repeats allowed.
            others: further places to find items, e.g. the last version of an out.
            check: read every item and count damaged ones as missing; without it only headers are read (planning).
        """
        places: tuple[ShardReader, ...] = (self, *others)
        if check:
            return [key for key in sorted(set(keys)) if not any(place.is_whole(key) for place in places)]
        return [key for key in sorted(set(keys)) if not any(key in place for place in places)]

    def add(self, items: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Add items, replacing those of the same key; each touched shard is rewritten whole and renamed."""
        self._add({key: pack(key, tensors) for key, tensors in items.items()})

    def fill(self, items: Iterable[tuple[str, Mapping[str, Tensor]]]) -> int:
        """Add items as they are computed, a window at a time, and return how many there were.

        Sorted keys touch each shard least often. What was computed is kept when the iterable raises.
        """
        window: dict[str, Part] = {}
        size = count = 0
        flushed = time.monotonic()
        try:
            for key, tensors in items:
                part = pack(key, tensors)
                window[key] = part
                count += 1
                size += sum(spec.size for spec in part.tensors)
                if len(window) >= FLUSH_ITEMS or size >= FLUSH_BYTES or time.monotonic() - flushed > FLUSH_SECONDS:
                    full, window, size = window, {}, 0
                    self._add(full)
                    flushed = time.monotonic()
        finally:
            self._add(window)
        return count

    def surplus(self, wanted: Container[str]) -> dict[str, int]:
        """Shards that hold other items than the wanted: the bytes that come free without those."""
        found: dict[str, int] = {}
        for name in self._names():
            index = self._index(name)
            if any(key not in wanted for key in index.entries):
                found[name] = index.stamp[1] - shard_size(self._wanted_parts(name, wanted))
        return found

    def drop_surplus(self, name: str, wanted: Container[str]) -> None:
        """Write a shard without the items that are not wanted, or delete it if none is."""
        with _locked(self.folder / f"{name[:2]}.lock"):
            kept = [part.key for part in self._wanted_parts(name, wanted)]
            if kept:
                _write(self.folder / name, kept, [self.find])
            else:
                (self.folder / name).unlink(missing_ok=True)

    def _wanted_parts(self, name: str, wanted: Container[str]) -> list[Part]:
        parts = (self.find(key) for key in self._index(name).entries if key in wanted)
        return [part for part in parts if part is not None]

    def _add(self, parts: Mapping[str, Part]) -> None:
        for name, keys in _by_shard(parts).items():
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder / f"{name[:2]}.lock"):
                for stale in self.folder.glob(f".{name}.*.tmp"):  # of a killed process: the lock is ours
                    stale.unlink(missing_ok=True)
                new = {key: parts[key] for key in keys}
                _write(self.folder / name, [*self._index(name).entries, *keys], [new.get, self.find])


def export(keys: Iterable[str], out: Path, places: Sequence[ShardReader]) -> None:
    """Write shards with exactly these items into the folder `out`, which is made.

    The first place that holds an item gives it. With the last version of the out in front, shards whose items did not
    change keep their bytes, even where another machine computed them.

    Raises:
        StepError: an item is in no place (any more).
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, shard in _by_shard(keys).items():
        if _write(out / name, shard, [place.find for place in places]):
            raise StepError("items went missing while the step ran (was .sdbuild deleted?); build again")


def _write(path: Path, keys: Iterable[str], finders: Sequence[Callable[[str], Part | None]]) -> list[str]:
    """Write a shard with those keys that can be found, and return the others."""
    wanted = sorted(set(keys))
    while True:
        found = {key: next((part for find in finders if (part := find(key)) is not None), None) for key in wanted}
        try:
            write_shard(path, [part for part in found.values() if part is not None])
        except ShardDamagedError:
            continue  # the place that held the damaged item has forgotten it
        return [key for key, part in found.items() if part is None]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock among processes and threads; it goes with the process, however that ends."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _by_shard(keys: Iterable[str]) -> dict[str, list[str]]:
    shards: dict[str, list[str]] = {}
    for key in sorted(set(keys)):
        shards.setdefault(shard_name(key), []).append(key)
    return shards


def _is_shard(name: str) -> bool:
    return name.endswith(".safetensors") and len(name) == len("00.safetensors")
