"""JSON caches with a checksum in their first line.

A damaged or edited cache counts as missing; one that cannot be written, e.g. on a full disk, is no error.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from pathlib import Path
from typing import Any

from sdbuild.storage.atomic import write_atomic


def remember(path: Path, content: Any) -> None:
    """Keep something JSON-able; of a disk that is full or read-only nothing is said."""
    data = json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")
    with contextlib.suppress(OSError):
        write_atomic(path, _checksum(data) + b"\n" + data)


def recall(path: Path) -> Any:
    """What was kept; None if nothing was, or not all of it is there."""
    try:
        check, _, data = path.read_bytes().partition(b"\n")
        return json.loads(data.decode("utf-8", "surrogatepass")) if check == _checksum(data) else None
    except (OSError, ValueError):
        return None


def _checksum(data: bytes) -> bytes:
    return f"{zlib.crc32(data):08x}".encode()
