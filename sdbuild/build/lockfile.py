"""Reading and writing `dvc.lock` without importing DVC.

DVC writes YAML 1.2 scalars (``1e-05`` is a float), PyYAML reads YAML 1.1 (there it is a string): hence a loader and a
dumper with the newer rules. Parsed content is kept as JSON beside the other caches, and only entries whose text has
changed are parsed again, because parsing a thousand takes longer than everything else in a build with nothing to do.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from hashlib import md5
from pathlib import Path
from typing import Any, ClassVar

import yaml

from sdbuild.build.blocks import join, recipe_of, split
from sdbuild.build.project import Project
from sdbuild.errors import InputError, Problem
from sdbuild.recipe.names import group_of
from sdbuild.storage.atomic import write_atomic
from sdbuild.storage.backups import free_name
from sdbuild.storage.json_cache import recall, remember
from sdbuild.storage.safe_paths import is_md5, names_problem, path_problem

Entry = dict[str, Any]
"""One stage of `dvc.lock`: cmd, deps, params, outs."""

COMMAND = "sdbuild step "
"""How the commands of sdbuild's own stages begin."""

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


DEEPEST = 100
"""Levels of lists and mappings in each other that are read."""
_DEEP = re.compile(rf"^[ \t?:-]{{{DEEPEST // 2}}}", re.MULTILINE)
"""What a line begins with that may be so many levels deep without brackets."""


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
    """Parse YAML with YAML 1.2 scalars.

    Raises:
        yaml.YAMLError: it is none, or nested as deeply as no file of DVC's is.
    """
    if (_DEEP.search(text) or text.count("[") + text.count("{") > DEEPEST) and _depth(text) > DEEPEST:
        raise yaml.YAMLError(f"it is nested more than {DEEPEST} levels deep")
    return yaml.load(text, Loader=_Loader)


def _depth(text: str) -> int:
    """Levels of lists and mappings, by the parser's events: libyaml's loader would crash of too many."""
    depth = deepest = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            deepest = max(deepest, depth)
            if deepest > DEEPEST:
                break
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return deepest


def dump_yaml(content: Any) -> str:
    """YAML in the form that DVC writes: block style, given order."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=10**9, allow_unicode=True))


def has_aliases(text: str) -> bool:
    """Whether YAML names parts of itself again, which neither DVC nor sdbuild writes."""
    try:
        return any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_Loader))
    except (yaml.YAMLError, RecursionError):
        return True


def _check(stages: Mapping[str, Entry]) -> None:
    own = {name: entry for name, entry in stages.items() if str(entry.get("cmd")).startswith(COMMAND)}
    wrong = {name: problem for name, entry in own.items() if (problem := entry_problem(entry)) is not None}
    if wrong:
        raise InputError(
            Problem(file="dvc.lock", message=f"the entry of {name[:80]}: {problem}; restore it with git")
            for name, problem in wrong.items()
        )


def entry_problem(entry: object) -> str | None:
    """What is wrong with an entry of `dvc.lock` or of the run-cache, as one of a step of sdbuild's."""
    if not isinstance(entry, dict) or not isinstance(entry.get("cmd"), str) or not _is_whole(entry):
        return "not as builds write it"
    for part in ("deps", "outs"):
        paths = [row["path"] for row in entry.get(part, [])]
        problem = next(filter(None, map(path_problem, paths)), None) or names_problem(paths, folds=False)
        if problem is not None:
            return f"{part}: {problem}"
    return None


class LockFile:
    """`dvc.lock` of a project: the only build record."""

    def __init__(self, project: Project) -> None:
        self._path = project.root / "dvc.lock"
        self._parsed = project.private / "cache" / "dvc-lock.json"
        self._signature: list[int] | None = None
        self._stages: dict[str, Entry] = {}

    def stages(self) -> Mapping[str, Entry]:
        """All entries by stage name; read again when the file has changed.

        Raises:
            InputError: it cannot be read, or names what no step writes.
        """
        signature = self._stat()
        if signature != self._signature:
            stages = self._read(signature) if signature else {}
            _check(stages)
            self._stages, self._signature = stages, signature
        return self._stages

    def stages_of(self, recipes: Collection[str]) -> list[str]:
        """Names of the stages of some recipes, by the names of their files."""
        named = ((name, str(entry.get("cmd", ""))) for name, entry in self.stages().items() if recipes)
        return [name for name, command in named if group_of(command.rpartition(" ")[2].partition(":")[0]) in recipes]

    def write(self, entries: Mapping[str, Entry], order: Sequence[str]) -> None:
        """Merge entries into the file, atomically, with stages in plan order; stages outside `order` are dropped.

        The text of the other entries stays as it is: to write a thousand anew takes longer than to save an out.
        """
        stages = {**self.stages(), **entries}
        kept = {name: stages[name] for name in order if name in stages}
        texts = {name: text for name, text in self._texts().items() if name not in entries}
        texts |= split(dump_yaml({"stages": {name: kept[name] for name in kept if name not in texts}}))["stages"]
        head = split(dump_yaml({"schema": "2.0"}))
        write_atomic(self._path, join({**head, "stages": {name: texts[name] for name in kept}}))
        self._stages, self._signature = kept, self._stat()

    def foreign_stages(self) -> list[str]:
        """Stages that are not sdbuild's: of a pipeline that the user had, or added by hand."""
        try:
            texts = split(self._path.read_text(encoding="utf-8")).get("stages", {})
            return [name for name, text in texts.items() if recipe_of(text) is None]
        except FileNotFoundError:
            return []
        except (OSError, ValueError):
            return [name for name, entry in self.stages().items() if not str(entry.get("cmd")).startswith(COMMAND)]

    def drop_foreign_stages(self, order: Sequence[str]) -> Path | None:
        """Take stages that are not sdbuild's out of the file; it is kept as it was, and where is returned."""
        if not self.foreign_stages():
            return None
        kept = free_name(self._path, "before-sdbuild")
        shutil.copyfile(self._path, kept)
        self.write({}, order)
        return kept

    def _stat(self) -> list[int]:
        try:
            status = self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [status.st_mtime_ns, status.st_size, status.st_ino]

    def _texts(self) -> dict[str, str]:
        """The text of each entry in the file that was read last; none where it cannot be cut into them."""
        try:
            texts = split(self._path.read_text(encoding="utf-8")).get("stages", {})
        except (OSError, ValueError):  # of which UnicodeDecodeError is one
            return {}
        return texts if texts.keys() == self._stages.keys() else {}

    def _read(self, signature: list[int]) -> dict[str, Entry]:
        known = self._recall()
        if known["signature"] == signature:
            return dict(known["stages"])
        text = self._text()
        digests: dict[str, str] = {}
        try:
            texts = split(text).get("stages", {})
            digests = {name: md5(entry.encode(), usedforsecurity=False).hexdigest() for name, entry in texts.items()}
            kept = {name: known["stages"][name] for name in texts if digests[name] == known["digests"].get(name)}
            parsed = load_yaml("".join(texts[name] for name in texts if name not in kept)) or {}
            parsed = {name: parsed[name] for name in texts if name not in kept}
            order = list(texts)
        except (ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
            kept, parsed = {}, self._parse(text)
            order = list(parsed)
        found = {**kept, **{name: entry for name, entry in parsed.items() if _is_ours(name, entry)}}
        stages = {name: found[name] for name in order if name in found}
        remember(self._parsed, {"signature": signature, "digests": digests, "stages": stages})
        return stages

    def _text(self) -> str:
        try:
            return self._path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise _wrong("it is not UTF-8 text") from None
        except OSError as error:
            raise _wrong(f"it cannot be read ({error.strerror})") from None

    def _recall(self) -> dict[str, Any]:
        """What was parsed when the file was last read, with the signature that it had then."""
        return recall(self._parsed) or {"signature": None, "digests": {}, "stages": {}}

    def _parse(self, text: str) -> dict[str, Entry]:
        try:
            content = load_yaml(text) or {}
            return {str(name): entry for name, entry in dict(content.get("stages") or {}).items()}
        except (yaml.YAMLError, AttributeError, TypeError, ValueError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line + 1 if mark is not None else None
            marked = "<<<<<<<" in text
            raise _wrong("a merge left conflict marks" if marked else "it cannot be read as YAML", line) from None


def _wrong(what: str, line: int | None = None) -> InputError:
    remedy = "restore it with git (`git checkout HEAD -- dvc.lock`), or delete it: what the cache has is found again"
    return InputError([Problem(file="dvc.lock", line=line, message=f"{what}; {remedy}")])


def _is_ours(name: str, entry: Any) -> bool:
    """Whether an entry is one as builds write it, whatever stage it is of; others have no digests that we know.

    Raises:
        InputError: it is a step's, and damaged.
    """
    command = entry.get("cmd") if isinstance(entry, dict) else None
    if isinstance(entry, dict) and _is_whole(entry):
        return True
    if isinstance(command, str) and not command.startswith(COMMAND):
        return False
    raise _wrong(f"the entry of {name} is not as builds write it")


def _is_whole(entry: Entry) -> bool:
    params, rows = entry.get("params", {}), (entry.get("deps", []), entry.get("outs", []))
    if not isinstance(params, dict) or not all(isinstance(values, dict) for values in params.values()):
        return False
    return all(isinstance(part, list) and all(map(_is_row, part)) for part in rows)


def _is_row(row: Any) -> bool:
    """Whether a line tells an input or an out."""
    if not isinstance(row, dict) or not isinstance(row.get("path"), str):
        return False
    numbers = (row.get(key) for key in ("size", "nfiles"))
    return is_md5(row.get("md5")) and all(isinstance(n, int | None) for n in numbers)
