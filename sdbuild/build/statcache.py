"""Content digests of files and folders, exactly as DVC computes them, remembered by stat.

A file is hashed again when its size, modification time or inode has changed; a folder whose files all look as before
costs one walk and one row. The cache is one SQLite file below `.sdbuild/`, safe to delete; where it cannot be used,
memory takes its place, and each row carries a checksum, so that a damaged one is not believed.

Links to files are files. Links to folders are not followed, and pipes, sockets and devices do not count, as for DVC and
for whoever lists pictures.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import stat
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sdbuild.build.dvcignore import Ignored
from sdbuild.storage.atomic import remove
from sdbuild.storage.regular_files import special

_SETTLED = 50_000_000
"""Nanoseconds: a file younger than this may still change within its time stamp, so its digest is not remembered."""


@dataclass(frozen=True, slots=True)
class Digest:
    """MD5 of a file's bytes, or DVC's MD5 of a folder's listing (ending in ``.dir``)."""

    md5: str
    size: int
    files: int | None = None
    """Number of files in a folder; None for a file."""


class _Entry(NamedTuple):
    """A file as a walk finds it; a tuple, because there may be tens of thousands."""

    relative: str
    path: str
    size: int
    mtime: int
    inode: int

    @property
    def signature(self) -> str:
        return f"{self.size}:{self.mtime}:{self.inode}"


class StatCache:
    """Digests below one root folder; thread-safe."""

    def __init__(self, root: Path, database: Path) -> None:
        self._root = str(root)
        self._database = database
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._ignored = Ignored(root)

    def digest(self, path: str) -> Digest | None:
        """Digest of a file or folder given relative to the root (or absolute); None if it does not exist."""
        full = os.path.join(self._root, path)
        try:
            status = os.stat(full)
        except OSError:
            return None
        if special(status.st_mode):
            return None
        with self._lock:
            if os.path.isdir(full):
                return self._folder(path, full)
            entry = _Entry(path, full, status.st_size, status.st_mtime_ns, status.st_ino)
            return Digest(self._hash([entry], self._recall_file(path))[path], status.st_size)

    def listing(self, path: str, *, whole: bool = False) -> dict[str, str]:
        """MD5 of each file in a folder, by posix path relative to it; `whole` with those that `.dvcignore` names."""
        full = os.path.join(self._root, path)
        with self._lock:
            return self._hash(list(self._walk(full, whole=whole)), self._recall_folder(path), prefix=path)

    def hidden(self, path: str) -> bool:
        """Whether a folder holds files that `.dvcignore` keeps out of its digest."""
        full = os.path.join(self._root, path)
        with self._lock:
            if not self._ignored.may_match(path) or not os.path.isdir(full):
                return False
            return len(list(self._walk(full, whole=True))) > len(list(self._walk(full)))

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _folder(self, path: str, full: str) -> Digest:
        entries = list(self._walk(full))
        lines = sorted(f"{relative}\0{size}:{mtime}:{inode}" for relative, _, size, mtime, inode in entries)
        signature = hashlib.blake2b("\n".join(lines).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        size = sum(entry.size for entry in entries)
        for known, md5, check in self._ask("SELECT signature, md5, sum FROM folder WHERE path = ?", (path,)):
            if known == signature and check == _checksum(path, known, md5):
                return Digest(md5, size, len(entries))
        found = self._hash(entries, self._recall_folder(path), prefix=path)
        md5 = folder_md5(found)
        if all(_settled(entry) for entry in entries):
            check = _checksum(path, signature, md5)
            self._learn("REPLACE INTO folder VALUES (?, ?, ?, ?)", [(path, signature, md5, check)])
        return Digest(md5, size, len(entries))

    def _walk(self, top: str, *, whole: bool = False) -> Iterator[_Entry]:
        start = len(top.rstrip("/")) + 1
        inside = os.path.relpath(top, self._root)
        ignored = None if whole or not self._ignored.may_match(inside) else self._ignored
        stack = [top]
        while stack:
            with os.scandir(stack.pop()) as found:
                for item in found:
                    relative = item.path[start:]
                    if ignored is not None and ignored(f"{inside}/{relative}"):
                        continue
                    try:
                        if item.is_dir(follow_symlinks=False):
                            stack.append(item.path)
                            continue
                        status = item.stat()
                        if not stat.S_ISREG(status.st_mode):
                            continue
                        yield _Entry(relative, item.path, status.st_size, status.st_mtime_ns, status.st_ino)
                    except OSError:  # a broken link: the step that reads it says so
                        yield _Entry(relative, item.path, -1, 0, 0)

    def _hash(self, entries: list[_Entry], known: Mapping[str, tuple[str, str]], prefix: str = "") -> dict[str, str]:
        result: dict[str, str] = {}
        learned: list[tuple[str | int, ...]] = []
        for entry in entries:
            row = known.get(entry.relative)
            signature = entry.signature
            if row is not None and row[0] == signature:
                result[entry.relative] = row[1]
                continue
            result[entry.relative] = md5 = _md5(entry)
            if _settled(entry):
                check = _checksum(entry.relative, signature, md5)
                learned.append((prefix, entry.relative, signature, md5, check))
        if learned:
            self._learn("REPLACE INTO file VALUES (?, ?, ?, ?, ?)", learned)
        return result

    def _learn(self, statement: str, rows: Sequence[tuple[str | int, ...]]) -> None:
        try:
            self._db().executemany(statement, rows)
            self._db().commit()
        except sqlite3.OperationalError:  # another process writes and learns the same; or the disk takes nothing
            with contextlib.suppress(sqlite3.Error):
                self._db().rollback()
        except (sqlite3.DatabaseError, UnicodeError):
            self._forget()

    def _recall_file(self, path: str) -> dict[str, tuple[str, str]]:
        return self._known("SELECT path, signature, md5, sum FROM file WHERE folder = '' AND path = ?", path)

    def _recall_folder(self, path: str) -> dict[str, tuple[str, str]]:
        return self._known("SELECT path, signature, md5, sum FROM file WHERE folder = ?", path)

    def _known(self, query: str, path: str) -> dict[str, tuple[str, str]]:
        return {
            name: (signature, md5)
            for name, signature, md5, check in self._ask(query, (path,))
            if check == _checksum(name, signature, md5)
        }

    def _ask(self, query: str, values: tuple[str, ...]) -> list[tuple[Any, ...]]:
        try:
            return self._db().execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            if "malformed" in str(error) or "decode" in str(error).lower():
                self._forget()
            return []
        except (sqlite3.DatabaseError, UnicodeError):
            self._forget()
            return []

    def _forget(self) -> None:
        """Begin anew: the file is damaged, and holds nothing that cannot be found out again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        with contextlib.suppress(OSError):
            remove(self._database)

    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._open()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        for place in (self._database, self._database, None):
            try:
                if place is not None:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    if place.exists() and not place.is_file():  # a pipe would be waited for
                        remove(place)
                return _tables(":memory:" if place is None else str(place))
            except sqlite3.OperationalError:  # read-only, full, or somebody else's: what is learned lasts for this run
                continue
            except (sqlite3.DatabaseError, OSError):
                with contextlib.suppress(OSError):
                    remove(self._database)
        raise AssertionError("memory can be written to")


def _tables(place: str) -> sqlite3.Connection:
    connection = sqlite3.connect(place, timeout=30, check_same_thread=False)
    try:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS file (folder TEXT, path TEXT, signature TEXT, md5 TEXT, sum INTEGER,"
            " PRIMARY KEY (folder, path)) WITHOUT ROWID"
        )
        connection.execute(
            "CREATE TABLE IF NOT EXISTS folder (path TEXT PRIMARY KEY, signature TEXT, md5 TEXT, sum INTEGER)"
            " WITHOUT ROWID"
        )
    except BaseException:
        connection.close()
        raise
    return connection


def _checksum(*values: object) -> int:
    return zlib.crc32("\0".join(map(str, values)).encode("utf-8", "surrogatepass"))


def folder_md5(listing: Mapping[str, str]) -> str:
    """DVC's digest of a folder from the MD5 of each file by relative posix path."""
    rows = [{"md5": md5, "relpath": path} for path, md5 in sorted(listing.items())]
    return hashlib.md5(json.dumps(rows, sort_keys=True).encode()).hexdigest() + ".dir"


def _settled(entry: _Entry) -> bool:
    return time.time_ns() - entry.mtime > _SETTLED


def _md5(entry: _Entry) -> str:
    try:
        with open(entry.path, "rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    except OSError as error:  # unreadable or a broken link: a digest of its own, the step that reads it says so
        return hashlib.md5(f"unreadable: {type(error).__name__}".encode()).hexdigest()
