"""Regular files: pipes, sockets and devices are reported by their kind and never opened, since that may block.

Links to files are files, everywhere; links to folders are not followed (`is_folder`), as DVC does not follow them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class SpecialFileError(OSError):
    """A path names something that holds no content to read."""


class TooLargeError(OSError):
    """A file is larger than any of its kind."""


def special(mode: int) -> str | None:
    """The kind of a special file by its mode, e.g. `a socket`; None for files and folders."""
    return next((word for is_kind, word in _KINDS if is_kind(mode)), None)


def special_at(path: str | Path) -> str | None:
    """The same for a path, after following links; None where nothing is there."""
    try:
        return special(os.stat(path).st_mode)
    except (OSError, ValueError):
        return None


def read_regular(path: Path, limit: int = -1, *, most: int | None = None) -> bytes:
    """A file's bytes, at most `limit` of them.

    Raises:
        TooLargeError: it has more than `most` bytes.
        SpecialFileError: it is a pipe, a socket or a device; nothing was opened.
        OSError: it cannot be read.
    """
    status = os.stat(path)
    kind = special(status.st_mode)
    if kind is not None:
        raise SpecialFileError(errno.EINVAL, f"{kind}, not a file", str(path))
    if most is not None and status.st_size > most:
        size, largest = (f"{number / (1 << 20):,.0f} MiB" for number in (status.st_size, most))
        raise TooLargeError(errno.EFBIG, f"has {size}; files of up to {largest} are read", str(path))
    # Not blocking, in case a pipe has taken the file's place meanwhile.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        return file.read(limit)


def find_special(top: Path, skipped: Collection[Path] = ()) -> Iterator[tuple[Path, str]]:
    """Pipes, sockets and devices below a folder, and links to them, with their kinds; links to folders are passed over.

    Folders that cannot be listed are passed over: whoever needs them says so.
    """
    folders = [str(top)]
    left_out = {str(path) for path in skipped}
    while folders:
        try:
            with os.scandir(folders.pop()) as found:
                for entry in found:
                    if entry.is_dir(follow_symlinks=False):
                        if entry.path not in left_out:
                            folders.append(entry.path)
                    elif not entry.is_file(follow_symlinks=False):
                        kind = special_at(entry.path)
                        if kind is not None:
                            yield Path(entry.path), kind
        except OSError:
            continue
