"""`sdbuild init`: an empty folder becomes a project that builds at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.conftest import Work


@pytest.fixture
def folder(tmp_path: Path) -> Work:
    return Work(tmp_path)


def test_a_new_project_builds(folder: Work) -> None:
    out = folder.sdbuild("init", "cats").out
    assert "cd cats" in out
    work = Work(folder.root / "cats")
    assert "emoji-3d.yaml is right" in work.sdbuild("check").out
    path = work.root / "recipes/emoji-3d.yaml"
    recipe = yaml.safe_load(path.read_text())
    recipe["train"] |= {"steps": 2, "warmup": 0}
    recipe["sample"] |= {"prompts": ["cat face"], "seeds": [0], "steps": 2}
    path.write_text(yaml.safe_dump(recipe))
    assert len(work.doit().ran) == 6
    assert "up to date" in work.dvc("status").out
    work.git("add", ".")
    work.git("commit", "--quiet", "-m", "Start")
    tracked = work.git("ls-files").out.splitlines()
    assert "datasets/emoji-3d.dvc" in tracked
    assert "build/emoji-3d/recipe.json" in tracked
    assert not [name for name in tracked if name.startswith((".sdbuild", "datasets/emoji-3d/"))]
    assert work.git("status", "--porcelain").out == ""
    assert work.doit().ran == {}


def test_what_is_there_is_kept(folder: Work) -> None:
    folder.write("notes.txt", "mine")
    folder.write(".gitignore", "secret\n")
    folder.sdbuild("init")
    assert folder.read("notes.txt") == b"mine"
    assert folder.read(".gitignore").startswith(b"secret\n")
    assert "nothing is missing" in folder.sdbuild("init").out
    other = Work(folder.root / "other")
    other.write("dodo.py", "def task_mine(): ...\n")
    assert "not sdbuild's" in other.sdbuild("init", code=3).err
    assert [path.name for path in other.root.iterdir()] == ["dodo.py"]


def test_a_clone_gets_what_it_lacks(folder: Work) -> None:
    folder.sdbuild("init", "cats")
    work = Work(folder.root / "cats")
    attributes = work.read(".gitattributes")
    work.git("add", ".")
    work.git("rm", "--quiet", "--cached", ".gitattributes", "datasets/emoji-3d.dvc")
    work.git("commit", "--quiet", "-m", "Start")
    folder.git("clone", "--quiet", "cats", "clone")
    clone = Work(folder.root / "clone")
    told = clone.sdbuild("init").out
    assert "set up: .gitattributes, git's merge driver" in told
    assert clone.read(".gitattributes") == attributes
    assert clone.git("config", "merge.sdbuild.driver").out == work.git("config", "merge.sdbuild.driver").out
    assert not (clone.root / "datasets/emoji-3d").exists(), "an example is for new projects"
    assert "nothing is missing" in clone.sdbuild("init").out


def test_inside_a_larger_repository(folder: Work) -> None:
    folder.git("init", "--quiet")
    folder.sdbuild("init", "sub")
    assert not (folder.root / "sub/.git").exists()
    assert (folder.root / "sub/.dvc/config").exists()
    assert "up to date" in Work(folder.root / "sub").dvc("status").out
