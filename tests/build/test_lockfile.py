from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdbuild.build import lockfile
from sdbuild.build.lockfile import LockFile, dump_yaml, load_yaml
from sdbuild.build.project import Project
from sdbuild.errors import InputError

ENTRY = {
    "cmd": "sdbuild step cat:train",
    "deps": [{"path": "datasets/é x", "hash": "md5", "md5": "12345678901234567890123456789012", "size": 10}],
    "params": {
        "build/cat/recipe.json": {
            "steps.train": {
                "a": 1e-05,
                "b": 0.001,
                "c": 1e16,
                "d": None,
                "e": True,
                "f": "1e-05",
                "g": "no",
                "h": "",
                "i": "12:30",
                "j": [1, 2.5, "x: y"],
                "k": {},
                "l": "2024-01-01",
                "m": "a\nb",
                "n": "# x",
            },
        }
    },
    "outs": [{"path": "build/cat/adapter", "hash": "md5", "md5": "a" * 32 + ".dir", "size": 1, "nfiles": 2}],
}


@pytest.mark.parametrize("text", ["1e-05", "1E5", "-2.5", "12", "true", "on", "yes", "~", "null", "12:30", "1.5.0"])
def test_scalars_are_read_as_dvc_reads_them(text: str) -> None:
    from dvc.utils.serialize import parse_yaml

    assert load_yaml(f"a: {text}") == parse_yaml(f"a: {text}", "x.yaml")


def test_what_is_written_is_read_back_by_both() -> None:
    from dvc.utils.serialize import parse_yaml

    text = dump_yaml(ENTRY)
    assert load_yaml(text) == ENTRY
    assert json.loads(json.dumps(parse_yaml(text, "dvc.lock"))) == ENTRY


def test_stages_are_written_in_plan_order_and_others_dropped(tmp_path: Path) -> None:
    lock = LockFile(Project(tmp_path))
    lock.write({"b": ENTRY, "a": ENTRY, "old": ENTRY}, ["a", "b"])
    assert list(load_yaml((tmp_path / "dvc.lock").read_text())["stages"]) == ["a", "b"]
    assert list(LockFile(Project(tmp_path)).stages()) == ["a", "b"]


def test_a_file_changed_by_others_is_read_again(tmp_path: Path) -> None:
    lock = LockFile(Project(tmp_path))
    lock.write({"a": ENTRY}, ["a"])
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    assert lock.stages() == {}


def test_only_changed_entries_are_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def load(text: str) -> Any:
        parsed.append(text)
        return load_yaml(text)

    monkeypatch.setattr(lockfile, "load_yaml", load)
    LockFile(Project(tmp_path)).write({"a": ENTRY, "b": ENTRY}, ["a", "b"])
    assert LockFile(Project(tmp_path)).stages() == {"a": ENTRY, "b": ENTRY}
    parsed.clear()
    path = tmp_path / "dvc.lock"
    path.write_text(path.read_text().replace("  b:\n    cmd: sdbuild", "  b:\n    cmd: other"))
    assert LockFile(Project(tmp_path)).stages() == {"a": ENTRY, "b": {**ENTRY, "cmd": "other step cat:train"}}
    assert [list(load_yaml(text)) for text in parsed] == [["b"]]
    LockFile(Project(tmp_path)).write({"c": ENTRY}, ["c", "a", "b"])
    assert list(load_yaml(path.read_text())["stages"]) == ["c", "a", "b"]
    assert dump_yaml(load_yaml(path.read_text())) == path.read_text()


def test_a_file_in_another_layout_is_understood(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text('{"schema": "2.0", "stages": {"a": {"cmd": "x"}}}')
    lock = LockFile(Project(tmp_path))
    assert lock.stages() == {"a": {"cmd": "x"}}
    lock.write({"b": ENTRY}, ["a", "b"])
    assert load_yaml((tmp_path / "dvc.lock").read_text())["stages"] == {"a": {"cmd": "x"}, "b": ENTRY}


def test_conflict_marks_are_explained(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages:\n<<<<<<< HEAD\n  a: 1\n=======\n  b: 2\n>>>>>>> x\n")
    with pytest.raises(InputError, match=r"dvc\.lock.*conflict marks"):
        LockFile(Project(tmp_path)).stages()


def test_what_is_nested_too_deeply_is_refused() -> None:
    """libyaml would end the process of it."""
    for levels in (80, 120, 50_000):
        nested = [
            "[" * levels + "]" * levels,
            "{a: " * levels + "1" + "}" * levels,
            "- " * levels + "x",
            "".join(f"{' ' * level}a:\n" for level in range(min(levels, 1000))),
            "".join(f"{' ' * level}-\n" for level in range(min(levels, 1000))),
        ]
        for text in nested:
            if levels < lockfile.DEEPEST:
                assert load_yaml(text)
            else:
                with pytest.raises(yaml.YAMLError, match="nested more than 100 levels deep"):
                    load_yaml(text)
