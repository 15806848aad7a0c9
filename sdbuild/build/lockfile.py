"""Reading and writing `dvc.lock` without importing DVC.

DVC writes YAML 1.2 scalars (``1e-05`` is a float), PyYAML reads YAML 1.1 (there it is a string): hence a loader and a
dumper with the newer rules. Parsed content is kept as JSON beside the other caches, because parsing a thousand stages
takes longer than everything else in a build that has nothing to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import yaml

from sdbuild.build.project import Project, write_atomic
from sdbuild.errors import InputError, Problem

Entry = dict[str, Any]
"""One stage of `dvc.lock`: cmd, deps, params, outs."""

_TAG = "tag:yaml.org,2002:"
_RULES = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _RULES:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _tag, re.compile(f"^(?:{_pattern})$"), _first)
# DVC reads what looks like a date as one; a string that does is therefore quoted.
_Dumper.add_implicit_resolver(_TAG + "timestamp", re.compile(r"^\d{4}-\d\d?-\d\d?.*$"), list("0123456789"))


def _represent_float(dumper: Any, value: float) -> Any:
    return dumper.represent_scalar(_TAG + "float", repr(value))


_Dumper.add_representer(float, _represent_float)


def load_yaml(text: str) -> Any:
    """Parse YAML with YAML 1.2 scalars."""
    return yaml.load(text, Loader=_Loader)


def dump_yaml(content: Any) -> str:
    """YAML in the form that DVC writes: block style, given order."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=10**9, allow_unicode=True))


class LockFile:
    """`dvc.lock` of a project: the only build record."""

    def __init__(self, project: Project) -> None:
        self._path = project.root / "dvc.lock"
        self._parsed = project.private / "cache" / "dvc-lock.json"
        self._signature: list[int] | None = None
        self._stages: dict[str, Entry] = {}

    def stages(self) -> Mapping[str, Entry]:
        """All entries by stage name; read again when the file has changed."""
        signature = self._stat()
        if signature != self._signature:
            self._stages = self._read(signature)
            self._signature = signature
        return self._stages

    def write(self, entries: Mapping[str, Entry], order: Sequence[str]) -> None:
        """Merge entries into the file, atomically, with stages in plan order; stages outside `order` are dropped."""
        stages = {**self.stages(), **entries}
        kept = {name: stages[name] for name in order if name in stages}
        write_atomic(self._path, dump_yaml({"schema": "2.0", "stages": kept}))
        self._stages, self._signature = kept, self._stat()
        self._remember()

    def _stat(self) -> list[int]:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return []
        return [status.st_mtime_ns, status.st_size, status.st_ino]

    def _read(self, signature: list[int]) -> dict[str, Entry]:
        if not signature:
            return {}
        try:
            remembered = json.loads(self._parsed.read_bytes())
            if remembered["signature"] == signature:
                return dict(remembered["stages"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        text = self._path.read_text(encoding="utf-8")
        try:
            content = load_yaml(text) or {}
            stages = dict(content.get("stages") or {})
        except (yaml.YAMLError, AttributeError, TypeError) as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line + 1 if mark is not None else None
            remedy = "a merge left conflict marks" if "<<<<<<<" in text else "it cannot be read as YAML"
            raise InputError([Problem(file="dvc.lock", line=line, message=f"{remedy}; restore it with git")]) from None
        self._stages, self._signature = stages, signature
        self._remember()
        return stages

    def _remember(self) -> None:
        write_atomic(self._parsed, json.dumps({"signature": self._signature, "stages": self._stages}))
