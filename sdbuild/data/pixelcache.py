"""Remembers what pictures decode to, so that renaming, moving, copying and touching them costs no decoding.

Two tables in one SQLite file: a file's identity (size, modification time, inode) gives the md5 of its bytes, and the
md5 with the background and the mask gives the pixel digest. It is a cache: safe to delete, shared by recipes and
processes, and begun anew when it is damaged or of another version. Importing this module is light, for the planner
asks it too.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

VERSION = 2
"""Raised when a picture's pixels come out differently: all pictures are then decoded again."""

CACHE_NAME = "pixels.sqlite"
"""Name of the cache beside the item stores, in `.sdbuild/items`."""

RACY_NS = 2_000_000_000
"""A file changed this shortly ago may change again within one tick of its clock: its identity is not recorded."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (size INTEGER, mtime_ns INTEGER, inode INTEGER, md5 TEXT NOT NULL,
    PRIMARY KEY (size, mtime_ns, inode)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pixels (md5 TEXT, background TEXT, digest TEXT NOT NULL, width INTEGER NOT NULL,
    height INTEGER NOT NULL, frames_dropped INTEGER NOT NULL, PRIMARY KEY (md5, background)) WITHOUT ROWID;
"""

T = TypeVar("T")
Identity = tuple[int, int, int]
"""Size, modification time in ns, inode."""
PixelKey = tuple[str, str]
"""The md5 of a picture's file, and what else its pixels depend on: see `masks.treatment`."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """What is known of a decoded picture."""

    digest: str
    width: int
    height: int
    frames_dropped: bool


def identity_of(status: os.stat_result) -> Identity:
    """Identity of a file, as long as nobody changes it."""
    return status.st_size, status.st_mtime_ns, status.st_ino


class PixelCache:
    """One SQLite file; use it from one thread."""

    def __init__(self, path: Path) -> None:
        """Use the file `path`, which is made when something is first recorded."""
        self.path = path

    def md5s(self, identities: Iterable[Identity]) -> dict[Identity, str]:
        """The md5 of those files that are known."""
        wanted = set(identities)

        def ask(connection: sqlite3.Connection) -> dict[Identity, str]:
            find = "SELECT md5 FROM files WHERE size = ? AND mtime_ns = ? AND inode = ?"
            rows = ((identity, connection.execute(find, identity).fetchone()) for identity in wanted)
            return {identity: row[0] for identity, row in rows if row is not None}

        return self._read(ask, {})

    def pixels(self, keys: Iterable[PixelKey]) -> dict[PixelKey, Pixels]:
        """Those pictures that are known: the planner counts the others as new."""
        wanted = set(keys)

        def ask(connection: sqlite3.Connection) -> dict[PixelKey, Pixels]:
            find = "SELECT digest, width, height, frames_dropped FROM pixels WHERE md5 = ? AND background = ?"
            rows = ((key, connection.execute(find, key).fetchone()) for key in wanted)
            return {key: Pixels(row[0], row[1], row[2], bool(row[3])) for key, row in rows if row is not None}

        return self._read(ask, {})

    def record(self, files: Mapping[Identity, str], pixels: Mapping[PixelKey, Pixels]) -> None:
        """Remember md5s of files and pixels of pictures. A cache that cannot be written is no error."""
        newest = time.time_ns() - RACY_NS
        file_rows = [(*identity, md5) for identity, md5 in files.items() if identity[1] < newest]
        pixel_rows = [
            (*key, known.digest, known.width, known.height, int(known.frames_dropped)) for key, known in pixels.items()
        ]
        if not file_rows and not pixel_rows:
            return

        def write(connection: sqlite3.Connection) -> None:
            connection.executescript(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", file_rows)
            connection.executemany("INSERT OR REPLACE INTO pixels VALUES (?, ?, ?, ?, ?, ?)", pixel_rows)

        for _ in range(2):  # a damaged file is deleted on the first attempt
            with contextlib.suppress(sqlite3.Error, OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._use(write)
                return

    def _read(self, ask: Callable[[sqlite3.Connection], T], nothing: T) -> T:
        if not self.path.is_file():
            return nothing
        try:
            return self._use(ask)
        except (sqlite3.Error, OSError):
            return nothing

    def _use(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Run `action` in a transaction; a damaged or foreign file is deleted, and the error goes on."""
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=30)) as connection, connection:
                connection.execute("PRAGMA synchronous = OFF")  # it may be lost, and is checked when it is opened
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                if version not in (0, VERSION):
                    raise sqlite3.DatabaseError(f"version {version}")
                return action(connection)
        except sqlite3.OperationalError:  # locked, read-only, disk full, no such table: the file itself may be fine
            raise
        except sqlite3.DatabaseError:
            self.path.unlink(missing_ok=True)
            raise
