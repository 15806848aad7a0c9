"""`extends`: a recipe and what it inherits, and the place in the files where each field stands."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdbuild.errors import Problem
from sdbuild.recipe.document import Node, plain, read

FieldPath = tuple[str | int, ...]
"""Keys and list indices from a recipe's top to a field."""
EXTENDS = "extends"


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One file, read."""

    file: str
    """Relative to the project."""
    root: Node | None
    """Its mapping; None when it could not be read."""
    problems: tuple[Problem, ...] = ()


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

    def chain(self, file: str) -> tuple[list[Document], list[Problem]]:
        """A file and those it extends, nearest first, with all that is wrong in reading them."""
        documents: list[Document] = []
        problems: list[Problem] = []
        seen: list[str] = []
        next_file: str | None = file
        while next_file is not None:
            seen.append(next_file)
            document = self.get(next_file)
            documents.append(document)
            problems += document.problems
            next_file, problem = self._parent(document, seen)
            problems += [problem] if problem else []
        return documents, problems

    def _open(self, file: str) -> Document:
        try:
            content = (self._project / file).read_bytes()
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
        if not (self._project / parent).is_file():
            return problem(f"file {parent!r} does not exist; it is looked for beside {document.file}")
        return parent, None


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
        old = result.get(key)
        both = isinstance(value, dict) and isinstance(old, dict)
        result[key] = _merge(old, value) if both and _same_kind(old, value) else value  # type: ignore[arg-type]
    return result


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
