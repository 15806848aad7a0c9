"""`extends`: a recipe and what it inherits, and the place in the files where each field stands."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdbuild.errors import Problem
from sdbuild.recipe.document import MAX_BYTES, Node, plain, read
from sdbuild.recipe.path import FieldPath, names_in

EXTENDS = "extends"


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One file, read."""

    file: str
    """Relative to the project."""
    root: Node | None
    """Its mapping; None when it could not be read."""
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """A file and those it extends, nearest first."""

    documents: tuple[Document, ...]
    problems: tuple[Problem, ...]
    """What is wrong in reading them."""
    complete: bool
    """Whether all could be found and read."""


class Documents:
    """Files of a project, each read once."""

    def __init__(self, project: Path) -> None:
        self._project = project
        self._read: dict[str, Document] = {}

    def get(self, file: str) -> Document:
        """Read a file, given relative to the project."""
        if file not in self._read:
            self._read[file] = self._open(file)
        return self._read[file]

    def chain(self, file: str) -> Chain:
        """Read a file and those it extends."""
        documents: list[Document] = []
        problems: list[Problem] = []
        next_file: str | None = file
        complete = True
        while next_file is not None:
            document = self.get(next_file)
            documents.append(document)
            problems += document.problems
            next_file, problem = self._parent(document, [each.file for each in documents])
            problems += [problem] if problem else []
            complete = complete and problem is None and document.root is not None
        return Chain(documents=tuple(documents), problems=tuple(problems), complete=complete)

    def _open(self, file: str) -> Document:
        try:
            content = _read_file(self._project / file)
        except OSError as error:
            message = f"cannot be read: {(error.strerror or 'unknown error').lower()}"
            return Document(file=file, root=None, problems=(Problem(file=file, message=message),))
        root, problems = read(content, file)
        return Document(file=file, root=root, problems=tuple(problems))

    def _parent(self, document: Document, seen: Sequence[str]) -> tuple[str | None, Problem | None]:
        node = entry(document.root, EXTENDS)
        if node is None:
            return None, None

        def problem(message: str) -> tuple[None, Problem]:
            return None, Problem(file=document.file, line=node.line, field=EXTENDS, message=message)

        if not isinstance(node.value, str) or not node.value:
            return problem("must be the name of one file, such as _common.yaml")
        parent = os.path.normpath(os.path.join(os.path.dirname(document.file), node.value))
        if os.path.isabs(parent) or parent.split(os.sep)[0] == "..":
            return problem(f"{node.value!r} is outside the project; copy it inside")
        parent = parent.replace(os.sep, "/")
        if parent in seen:
            return problem(f"goes in a circle: {' -> '.join([*seen[seen.index(parent) :], parent])}; remove one")
        path = self._project / parent
        if not os.path.isfile(path):
            near = difflib.get_close_matches(path.name, names_in(path.parent), n=1)
            hint = f"did you mean {near[0]}?" if near else f"it is looked for beside {document.file}"
            return problem(f"file {parent!r} does not exist ({hint})")
        if not path.resolve().is_relative_to(self._project.resolve()):
            return problem(f"{parent!r} leads out of the project by a link; copy it inside")
        return parent, None


def _read_file(path: Path) -> bytes:
    """Bytes of a file, one more than a recipe may have at most."""
    if not os.path.exists(path):
        raise OSError(errno.ENOENT, "the link leads nowhere" if path.is_symlink() else "there is no such file")
    if not os.path.isfile(path):
        raise OSError(errno.EINVAL, "it is no regular file")
    with path.open("rb") as stream:
        return stream.read(MAX_BYTES + 1)


def entry(node: Node | None, key: str) -> Node | None:
    """Value of a key, if the node is a mapping that has it."""
    return node.value.get(key) if node is not None and isinstance(node.value, dict) else None


def merged(documents: Sequence[Document]) -> dict[str, Any]:
    """Data of a chain, nearest first: mappings merge key by key, everything else replaces."""
    data: dict[str, Any] = {}
    for document in reversed(documents):
        if document.root is not None:
            data = _merge(data, plain(document.root))
    data.pop(EXTENDS, None)
    return data


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        result[key] = merge_value(result.get(key), value)
    return result


def merge_value(below: Any, above: Any) -> Any:
    """One value over another: mappings of the same kind merge key by key, everything else replaces."""
    both = isinstance(below, dict) and isinstance(above, dict)
    return _merge(below, above) if both and _same_kind(below, above) else above


def _same_kind(old: Any, new: Any) -> bool:
    """Whether two mappings describe the same kind of thing; settings of another method are not inherited."""
    return "kind" not in new or "kind" not in old or bool(new["kind"] == old["kind"])


def place(documents: Sequence[Document], path: FieldPath) -> tuple[str, int | None]:
    """File and line where a field stands, or where the nearest thing around it does."""
    best: tuple[int, str, int | None] = (0, documents[0].file, None)
    for document in documents:
        depth, node = _descend(document.root, path)
        if node is not None and depth > best[0]:
            best = (depth, document.file, node.line)
        if depth == len(path) or (node is not None and not isinstance(node.value, dict)):
            break
    return best[1], best[2]


def _descend(node: Node | None, path: FieldPath) -> tuple[int, Node | None]:
    """Follow a path as far as it goes: number of parts found, and the last node."""
    for depth, part in enumerate(path):
        child: Node | None = None
        if node is not None and isinstance(node.value, dict) and isinstance(part, str):
            child = node.value.get(part)
        elif node is not None and isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
            child = node.value[part]
        if child is None:
            return depth, node
        node = child
    return len(path), node
