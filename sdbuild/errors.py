"""Everything that sdbuild raises on purpose.

::

    SdbuildError            1
    ├── InputError          2  what the user wrote or supplied is wrong; lists every problem at once
    │   ├── RecipeError        in a recipe
    │   └── DataError          in pictures, captions or the base
    ├── StepError           1  a step failed while it ran
    ├── LockedError         1  another build holds the project
    ├── RemoteError         1  the remote is gone, slow, or refuses
    └── UsageError          3  a command was called wrongly

The number is the exit code. The command line catches `SdbuildError` in one place and prints its message;
anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One mistake: where it is and what to do about it."""

    message: str
    """What is wrong and how to mend it, lower case, without a full stop."""
    file: str | None = None
    """Path relative to the project."""
    line: int | None = None
    """1-based."""
    field: str | None = None
    """Dotted path in the recipe, e.g. ``train.steps``."""

    def __str__(self) -> str:
        place = self.file or ""
        if place and self.line is not None:
            place += f":{self.line}"
        return _one_line(": ".join(part for part in (place, self.field, self.message) if part))


class SdbuildError(Exception):
    """Base of the tree; its message is one or a few lines for people."""

    exit_code = 1

    def __init__(self, *lines: str) -> None:
        """Take each line by itself: a break inside one is part of a name or a value, and is spelled out."""
        super().__init__("\n".join(map(_one_line, lines)))


class InputError(SdbuildError):
    """What the user supplied is wrong; carries all problems found."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem] | str) -> None:
        if isinstance(problems, str):
            problems = [Problem(message=problems)]
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__(*map(str, self.problems))


class RecipeError(InputError):
    """One or more recipes are wrong."""


class DataError(InputError):
    """Pictures, captions or the base are wrong."""


class StepError(SdbuildError):
    """A step failed while it ran; the last good outs are still in place."""


class LockedError(SdbuildError):
    """Another build holds the project's lock."""


class RemoteError(SdbuildError):
    """The remote cannot be reached or refuses; a build goes on without it, pushing and pulling end."""


class UsageError(SdbuildError):
    """A command was called wrongly."""

    exit_code = 3


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n").replace("\r", "\\r")


def disk_full(error: OSError) -> bool:
    """Whether there was no room for what was written, on the disk or in the user's share of it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def of_system(error: OSError) -> StepError:
    """What the system refused, for people: the file, why, and what to do about it."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    if name.startswith(os.getcwd() + os.sep):
        name = os.path.relpath(name)
    what = f"{name}: " if name else ""
    reason = error.strerror or str(error) or type(error).__name__
    if disk_full(error):
        return StepError(f"{what}{reason}; free some space (`sdbuild gc` lists what can go) and try again")
    remedies = {
        errno.EROFS: "; nothing can be written there: make it writable, or work in a copy",
        errno.EACCES: "; mend its owner or its permissions (`ls -ld` shows them)",
        errno.EPERM: "; mend its owner or its permissions (`ls -ld` shows them)",
        errno.EISDIR: "; a file is needed there: move the folder away",
        errno.EEXIST: "; a folder is needed there: move the file away",
        errno.ENOTDIR: "; a folder is needed there: move the file away",
        errno.ELOOP: "; mend or delete the link",
        errno.EMFILE: "; too many files are open: raise the limit (`ulimit -n`)",
    }
    return StepError(f"{what}{reason}{remedies.get(error.errno or 0, '')}")


def reason(error: Exception) -> str:
    """Why a library failed, on one line; what the system refused with what to do about it."""
    return str(of_system(error)) if isinstance(error, OSError) else " ".join(str(error).split())


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; those of torch's, cuBLAS' and bitsandbytes' have no common class."""
    said = str(error).lower()
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in said for word in words)
