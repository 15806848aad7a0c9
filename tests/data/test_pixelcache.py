"""The cache remembers, forgets what is doubtful, and never stands in the way."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdbuild.data.pixelcache import VERSION, PixelCache, Pixels

OLD = 1_600_000_000_000_000_000
PIXELS = Pixels("d" * 64, 40, 30, True)
FILE = (100, OLD, 7)
M = ("m", "white")


def filled(path: Path) -> PixelCache:
    cache = PixelCache(path)
    cache.record({FILE: "m"}, {M: PIXELS})
    return cache


def test_it_remembers(tmp_path: Path) -> None:
    filled(tmp_path / "sub" / "pixels.sqlite")
    cache = PixelCache(tmp_path / "sub" / "pixels.sqlite")
    assert cache.md5s([FILE, (1, 2, 3)]) == {FILE: "m"}
    assert cache.pixels([M, ("n", "white")]) == {M: PIXELS}
    assert cache.pixels([("m", "black"), ("m", "white alpha")]) == {}
    assert len(cache.pixels([*((str(number), "white") for number in range(2000)), M])) == 1


def test_asking_makes_no_file(tmp_path: Path) -> None:
    assert PixelCache(tmp_path / "a").pixels([M]) == {}
    PixelCache(tmp_path / "a").record({}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_file_changed_just_now_is_not_trusted(tmp_path: Path) -> None:
    cache = PixelCache(tmp_path / "a")
    now = (1, time.time_ns(), 2)
    cache.record({now: "m"}, {M: PIXELS})
    assert cache.md5s([now]) == {}
    assert cache.pixels([M]) == {M: PIXELS}


@pytest.mark.parametrize("damage", [b"", b"not a database" * 100])
def test_a_damaged_file_is_begun_anew(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "a").write_bytes(damage)
    assert PixelCache(tmp_path / "a").md5s([FILE]) == {}
    (tmp_path / "a").write_bytes(damage)
    assert filled(tmp_path / "a").md5s([FILE]) == {FILE: "m"}


def test_a_truncated_file_is_begun_anew(tmp_path: Path) -> None:
    filled(tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data[: len(data) // 2])
    assert PixelCache(tmp_path / "a").md5s([FILE]) in ({}, {FILE: "m"})
    assert filled(tmp_path / "a").md5s([FILE]) == {FILE: "m"}


def test_another_version_is_begun_anew(tmp_path: Path) -> None:
    filled(tmp_path / "a")
    connection = sqlite3.connect(tmp_path / "a")
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    assert PixelCache(tmp_path / "a").pixels([M]) == {}
    assert filled(tmp_path / "a").pixels([M]) == {M: PIXELS}


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert filled(tmp_path / "file" / "pixels.sqlite").pixels([M]) == {}


def test_processes_write_at_once(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from sdbuild.data.pixelcache import PixelCache, Pixels
cache = PixelCache(Path(sys.argv[1]))
for number in range(20):
    cache.record({}, {(f"{sys.argv[2]}-{number}", "white"): Pixels("d", 1, 2, False)})
"""
    command = [sys.executable, "-c", script, str(tmp_path / "a")]
    processes = [subprocess.Popen([*command, str(number)]) for number in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    keys = [(f"{process}-{number}", "white") for process in range(4) for number in range(20)]
    assert len(PixelCache(tmp_path / "a").pixels(keys)) == 80
