"""YAML with places: one file to a tree of nodes that know their lines.

Built from the parser's events rather than by PyYAML's constructors, for four reasons: every value keeps its line;
scalars follow YAML 1.2 (`1e-3` is a number; `on` and `yes` are words), as DVC's do; no tag can construct anything;
and the size of what aliases stand for is known before anything is expanded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

from sdbuild.errors import Problem
from sdbuild.recipe.path import FieldPath, dotted

MAX_BYTES = 1 << 20
MAX_NODES = 20_000
MAX_DEPTH = 20
MAX_DIGITS = 100
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Only its parser is used; libyaml's where PyYAML was built with it, else the one in Python."""

Scalar: TypeAlias = str | int | float | bool | None
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_SPECIAL: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", "+.inf", ".Inf", "+.Inf", ".INF", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass(slots=True)
class Node:
    """A value and where it stands; of a mapping's value, the line of its key."""

    value: Scalar | list[Node] | dict[str, Node]
    line: int
    size: int = 1
    """Number of nodes in it, aliases counted with all that they stand for."""


class MalformedError(Exception):
    """The text is no YAML that we read; carries one problem."""

    def __init__(self, line: int | None, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


def read(content: bytes, file: str) -> tuple[Node | None, list[Problem]]:
    """Parse a file's bytes; the node is a mapping, or None with the problems that explain why."""
    composer = _Composer()
    try:
        node = composer.compose(_decode(content))
    except MalformedError as error:
        return None, [Problem(file=file, line=error.line, message=error.message)]
    problems = [Problem(file=file, line=line, field=key, message=text) for line, key, text in composer.duplicates]
    return node, problems


def plain(node: Node) -> Any:
    """Value of a node without its lines."""
    value = node.value
    if isinstance(value, dict):
        return {key: plain(child) for key, child in value.items()}
    if isinstance(value, list):
        return [plain(child) for child in value]
    return value


def _decode(content: bytes) -> str:
    if len(content) > MAX_BYTES:
        raise MalformedError(None, f"is larger than {MAX_BYTES >> 20} MiB; a recipe is a short text")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise MalformedError(line, "is not UTF-8; save it in that encoding") from None


def scalar(text: str) -> Scalar:
    """Value of an unquoted scalar by YAML 1.2's core schema (decimal numbers only)."""
    if text in _SPECIAL:
        return _SPECIAL[text]
    if text[0] in "+-.0123456789" and len(text) <= MAX_DIGITS:
        if _INT.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
    return text


class _Composer:
    """Events of one text to nodes."""

    def __init__(self) -> None:
        self.duplicates: list[tuple[int, str, str]] = []
        self._anchors: dict[str, Node] = {}
        self._size = 0

    def compose(self, text: str) -> Node:
        events = _events(text)
        next(events)  # the stream's start
        if isinstance(next(events), yaml.StreamEndEvent):
            raise MalformedError(None, "is empty; a recipe has at least base and datasets")
        node = self._node(next(events), events, ())
        next(events)  # the document's end
        after = next(events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise MalformedError(_line(after), "a second document starts here; write one recipe a file")
        if node.value is None:
            raise MalformedError(None, "is empty; a recipe has at least base and datasets")
        if not isinstance(node.value, dict):
            raise MalformedError(node.line, "is not a mapping; a recipe has keys such as base: and datasets:")
        return node

    def _node(self, event: Any, events: Iterator[Any], path: FieldPath) -> Node:
        line = _line(event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(str(event.anchor), line)
        if event.tag is not None:
            raise MalformedError(line, f"tag {event.tag!r} is not allowed; remove it")
        if len(path) > MAX_DEPTH:
            raise MalformedError(line, f"is nested more than {MAX_DEPTH} levels deep")
        self._count(1, line)
        if isinstance(event, yaml.ScalarEvent):
            node = Node(scalar(event.value) if event.implicit[0] else event.value, line)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(events, line, path)
        else:
            node = self._mapping(events, line, path)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _sequence(self, events: Iterator[Any], line: int, path: FieldPath) -> Node:
        items: list[Node] = []
        size = 1
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(self._node(event, events, (*path, len(items))))
            size += items[-1].size
        return Node(items, line, size)

    def _mapping(self, events: Iterator[Any], line: int, path: FieldPath) -> Node:
        entries: dict[str, Node] = {}
        size = 1
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key_line = _line(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise MalformedError(key_line, "a key must be a plain word")
            key = event.value
            if event.anchor is not None:
                self._anchors[event.anchor] = Node(key, key_line)
            where = (*path, key)
            node = self._node(next(events), events, where)
            size += node.size
            if key in entries:
                message = f"is there twice, first in line {entries[key].line}; remove one"
                self.duplicates.append((key_line, dotted(where), message))
            else:
                entries[key] = Node(node.value, key_line, node.size)
        return Node(entries, line, size)

    def _alias(self, name: str, line: int) -> Node:
        target = self._anchors.get(name)
        if target is None:
            raise MalformedError(line, f"alias *{name} has no anchor before it")
        self._count(target.size, line)
        return Node(target.value, line, target.size)

    def _count(self, nodes: int, line: int) -> None:
        self._size += nodes
        if self._size > MAX_NODES:
            raise MalformedError(line, f"stands for more than {MAX_NODES:,} values; write fewer, or fewer aliases")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _events(text: str) -> Iterator[Any]:
    try:
        yield from yaml.parse(text, Loader=LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        raise MalformedError(line, _explain(error, text)) from None
    except yaml.reader.ReaderError:
        found = yaml.reader.Reader.NON_PRINTABLE.search(text)
        line = None if found is None else text[: found.start()].count("\n") + 1
        raise MalformedError(line, "holds a control character; remove it") from None


def _explain(error: yaml.MarkedYAMLError, text: str) -> str:
    mark, problem = error.problem_mark, error.problem or "unreadable"
    lines = text.splitlines()
    if mark is not None and mark.line < len(lines) and "\t" in lines[mark.line][: mark.column + 1]:
        return "a tab stands here; indent with spaces"
    if "mapping values are not allowed" in problem:
        return "a second `: ` in one line; put text that contains it in quotes"
    if "cannot start any token" in problem:
        return "text cannot start like this; put it in quotes"
    where = f" {error.context}" if error.context else ""
    return f"is not valid YAML{where}: {problem}"
