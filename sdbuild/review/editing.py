"""Captions in the user's editor: one text file of all of them, and back."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from sdbuild.build.project import Project
from sdbuild.data import textfiles
from sdbuild.data.listing import shown
from sdbuild.errors import DataError, Problem, SdbuildError, UsageError
from sdbuild.review.findings import Row
from sdbuild.review.gather import Entry, Material, stamp_of
from sdbuild.review.sidecars import Change, texts_of
from sdbuild.storage.atomic import write_atomic

EDITORS = ("sensible-editor", "nano", "vi")
"""Tried where neither VISUAL nor EDITOR says which."""

_MARK = "==="
_HEADING = re.compile(rf"{_MARK} ([0-9a-f]+) (.+)")
_HELP = """\
# Captions of {name}. Change the text below a line that starts with {mark}; that line stays as it is.
# What you change is written beside its picture, nothing else. Delete what you do not want to look at.
# A line of a caption that starts with {mark} or \\ has a \\ before it.
"""


def as_text(material: Material, rows: Iterable[Row]) -> str:
    """Captions as a file for an editor, with what was found in its head."""
    listed = list(rows)
    head = [_HELP.format(name=material.recipe.name, mark=_MARK)]
    head += [
        f"# {_shown(row.entry)}: {finding.words}\n" for row in listed for finding in row.findings if finding.is_problem
    ]
    return "".join([*head, *(_section(row.entry) for row in listed)])


def changes_of(material: Material, path: Path) -> list[Change]:
    """What a person changed in such a file; sections that were deleted change nothing.

    Args:
        material: of the recipe that it was made of.
        path: of the file.

    Raises:
        DataError: it cannot be understood; with all problems.
    """
    entries = {_shown(entry): entry for entry in material.entries}
    name, text = shown(path), read_text(path)
    problems: list[Problem] = []
    changes: dict[str, Change] = {}
    for number, heading, body in _sections(text):
        match = _HEADING.fullmatch(heading)
        entry = entries.get(match[2]) if match else None
        message = ""
        if match is None:
            message = f"a line that starts with {_MARK} is no heading as it was; put it back, or write \\{_MARK}"
        elif entry is None:
            message = f"there is no picture {match[2]}; put its heading back as it was"
        elif entry.key in changes:
            message = f"{match[2]} is here a second time; keep one"
        else:
            texts = texts_of(body, entry)
            if stamp_of(texts) != match[1] and not texts:
                message = f"the caption of {match[2]} is empty; write one, or delete its heading to leave it as it was"
            changes[entry.key] = Change(entry=entry, texts=texts, stamp=match[1])
        if message:
            problems.append(Problem(file=name, line=number, message=message))
    if problems:
        raise DataError(problems)
    return [change for change in changes.values() if stamp_of(change.texts) != change.stamp]


def edit(project: Project, name: str, text: str) -> Path:
    """Let the user edit a text; the file that it is in afterwards.

    Raises:
        UsageError: there is no editor.
        SdbuildError: the editor failed; the file is kept.
    """
    command = _editor()
    path = project.private / "captions" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    write_atomic(path, text)
    try:
        code = subprocess.run([*command, str(path)], check=False).returncode
    except OSError as error:
        path.unlink()
        message = f"the editor {command[0]} cannot be started ({error.strerror})"
        raise UsageError(f"{message}; set EDITOR, e.g. EDITOR=nano") from None
    if code != 0:
        raise SdbuildError(
            f"{command[0]} ended with {code}; nothing was written. Your text is kept: {again(name, path)}"
        )
    return path


def again(name: str, path: Path) -> str:
    """How to go on with a text that was kept."""
    return f"`sdbuild captions edit {name} --from {shown(path)}` takes it"


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    text = textfiles.read_text(path, shown(path))
    if isinstance(text, Problem):
        raise DataError([text])
    return text


def _editor(environment: Mapping[str, str] = os.environ) -> Sequence[str]:
    for variable in ("VISUAL", "EDITOR"):
        if command := environment.get(variable, "").strip():
            try:
                return shlex.split(command)
            except ValueError as error:
                raise UsageError(f"{variable}={command}: {error}") from None
    found = next(filter(shutil.which, EDITORS), None)
    if found is None:
        raise UsageError("there is no editor; set EDITOR, e.g. EDITOR=nano")
    return [found]


def _section(entry: Entry) -> str:
    lines = (f"\\{line}" if line.startswith((_MARK, "\\")) else line for line in entry.bare)
    return "\n".join(["", f"{_MARK} {entry.stamp} {_shown(entry)}", *lines, ""])


def _sections(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, heading and text below of each section; what is above the first heading is nobody's."""
    number, heading = 0, ""
    body: list[str] = []
    for at, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if line.startswith(_MARK):
            if heading:
                yield number, heading, "\n".join(body)
            number, heading, body = at, line.rstrip(), []
        else:
            body.append(line.removeprefix("\\"))
    if heading:
        yield number, heading, "\n".join(body)


def _shown(entry: Entry) -> str:
    """A picture's path in one line, whatever is in it."""
    return json.dumps(entry.path, ensure_ascii=False)[1:-1]
