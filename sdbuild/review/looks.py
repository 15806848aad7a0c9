"""What pictures look like, to find those that are nearly the same: resized, re-compressed, slightly retouched.

A hash of the low frequencies of brightness (Zauner 2010, "Implementation and benchmarking of perceptual image hash
functions", pHash) finds candidates; small colour thumbnails tell apart what has the same shapes in other colours.
Remembered by pixel digest.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sdbuild.data.pictures import open_picture
from sdbuild.data.pixel_budget import PIXEL_BUDGET
from sdbuild.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

CACHE_NAME = "looks.sqlite"
"""Name of the cache beside the item stores, in `.sdbuild/items`."""
VERSION = 1
"""Raised when looks come out differently."""
SIDE, LOW, THUMBNAIL = 32, 8, 8
BITS = 8
"""Of 64: at most so many may differ."""
COLOURS = 10.0
"""Of 255: at most so much may colours differ in the mean."""
THREADS = 4

Look = bytes
"""Hash (8 bytes), then the thumbnail's RGB."""


def look_of(image: Image.Image) -> Look:
    """What an RGB picture looks like."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    cosines = np.cos(np.pi * np.outer(np.arange(LOW), 2 * np.arange(SIDE) + 1) / (2 * SIDE))
    low = (cosines @ grey @ cosines.T).ravel()
    bits = low > np.median(low[1:])
    bits[0] = False  # brightness itself: the thumbnail compares it
    small = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.packbits(bits).tobytes() + small.tobytes()


def looks(paths: Mapping[str, Path], cache: Path, background: str) -> dict[str, Look]:
    """Looks of pictures by pixel digest; those that cannot be opened are left out.

    Args:
        paths: a file for each pixel digest.
        cache: the SQLite file of `CACHE_NAME`.
        background: colour under transparent pixels.
    """
    known = _recall(cache, paths)
    missing = sorted(digest for digest in paths if digest not in known)

    def look(digest: str) -> Look | None:
        with PIXEL_BUDGET.held():
            try:
                return look_of(open_picture(paths[digest], background=background))
            except DataError:
                return None

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        made = {digest: found for digest, found in zip(missing, pool.map(look, missing), strict=True) if found}
    _record(cache, made)
    return known | made


def alike(found: Mapping[str, Look]) -> dict[str, list[str]]:
    """Digests of pictures that look nearly the same, by digest; only those that have some."""
    digests = sorted(found)
    if len(digests) < 2:
        return {}
    table = np.frombuffer(b"".join(found[digest] for digest in digests), dtype=np.uint8).reshape(len(digests), -1)
    hashes, colours = table[:, :8].copy().view(np.uint64)[:, 0], table[:, 8:].astype(np.int16)
    near: dict[str, list[str]] = {}
    for index, digest in enumerate(digests):
        candidates = _candidates(hashes, index)
        distance = np.abs(colours[candidates] - colours[index]).mean(axis=1)
        others = [digests[other] for other in candidates[distance <= COLOURS] if other != index]
        if others:
            near[digest] = others
    return near


def _candidates(hashes: NDArray[np.uint64], index: int) -> NDArray[np.intp]:
    return np.flatnonzero(np.bitwise_count(hashes ^ hashes[index]) <= BITS)


def _recall(cache: Path, digests: Iterable[str]) -> dict[str, Look]:
    if not cache.is_file():
        return {}
    try:
        with contextlib.closing(sqlite3.connect(cache, timeout=30)) as connection:
            if connection.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                raise sqlite3.DatabaseError
            find = "SELECT look FROM looks WHERE digest = ?"
            rows = ((digest, connection.execute(find, (digest,)).fetchone()) for digest in digests)
            return {digest: bytes(row[0]) for digest, row in rows if row is not None}
    except sqlite3.OperationalError:
        return {}
    except sqlite3.DatabaseError:
        cache.unlink(missing_ok=True)
        return {}


def _record(cache: Path, made: Mapping[str, Look]) -> None:
    """Remember looks. A cache that cannot be written is no error."""
    if not made:
        return
    with contextlib.suppress(sqlite3.Error, OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(cache, timeout=30)) as connection, connection:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("CREATE TABLE IF NOT EXISTS looks (digest TEXT PRIMARY KEY, look BLOB NOT NULL)")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.executemany("INSERT OR REPLACE INTO looks VALUES (?, ?)", list(made.items()))
