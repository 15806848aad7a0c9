"""Paths and digests that files name: which are refused, and in which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdbuild.storage import safe_paths
from sdbuild.storage.safe_paths import is_md5, link_problem, links_below, names_problem, path_problem


def test_digests() -> None:
    assert is_md5("0" * 32)
    assert is_md5("0" * 32 + ".dir")
    for name in ("", "0" * 31, "A" * 32, "0" * 32 + ".dirt", "../" + "0" * 29, "0" * 32 + "\n", None, 3):
        assert not is_md5(name), name


def test_paths_that_leave_their_folder() -> None:
    for path, why in (
        (None, "is not a path"),
        ("", "is not a path"),
        ("a\0b", "is not a path"),
        ("/etc/passwd", "is absolute"),
        ("C:\\a", "is absolute"),
        ("a/../../b", "leads out of its folder"),
        ("a\\..\\b", "leads out of its folder"),
        ("a//b", "is not written in its shortest form"),
        ("./a", "is not written in its shortest form"),
        ("é" * 200, "is too long"),
        ("a/.GIT/config", "is where git, DVC or sdbuild keep their own files"),
        (".dvc/config", "is where git, DVC or sdbuild keep their own files"),
        (".s\u200bdbuild", "is where git, DVC or sdbuild keep their own files"),
    ):
        assert why in str(path_problem(path)), path


def test_names_that_only_look_strange_are_good() -> None:
    for name in (
        "a\\b.png",
        "a: b.png",
        "..a",
        "a..",
        "é/日本.png",
        " a ",
        "~",
        "-",
        "a\nb",
        "C:",
        "gitignore",
        ".gitkeep",
    ):
        assert path_problem(name) is None, name
    assert names_problem(["a", "A", "b/c", "b/d"], folds=False) is None
    assert names_problem(["a", "A"], folds=True) == "'A' stands there twice"
    assert names_problem(["é", "e\u0301"], folds=True) is not None
    assert names_problem(["a/b", "A"], folds=True) == "'A' is a file and the folder of 'a/b'"


def test_lists_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "list"
    path.write_text(json.dumps([{"md5": "0" * 32, "relpath": str(number)} for number in range(20)]))
    assert len(safe_paths.read_list(path)) == 20
    monkeypatch.setattr(safe_paths, "MOST_FILES", 19)
    with pytest.raises(ValueError, match="it names 20 files; lists of up to 19 are read"):
        safe_paths.read_list(path)
    monkeypatch.setattr(safe_paths, "MOST_BYTES", 99)
    with pytest.raises(ValueError, match=r"it has [\d,]+ bytes; lists of up to 99 are read"):
        safe_paths.read_list(path)


def test_links_on_the_way_and_below(tmp_path: Path) -> None:
    root, other = tmp_path / "project", tmp_path / "other"
    (root / "build/cat").mkdir(parents=True)
    (other / "cache").mkdir(parents=True)
    (other / "cache/object").touch()
    assert link_problem(root, "build/cat/adapter") is None
    (root / "build/cat/adapter").symlink_to(other)
    assert "build/cat/adapter is a link" in str(link_problem(root, "build/cat/adapter/file"))
    assert "build/cat/adapter is a link" in str(links_below(root, "build"))
    (root / "build/cat/adapter").unlink()
    (root / "build/cat/file").symlink_to(other / "cache/object")
    assert link_problem(root, "build/cat/file", [other / "cache"]) is None
    assert links_below(root, "build", [other / "cache"]) is None
    assert "build/cat/file is a link" in str(links_below(root, "build", [root]))
