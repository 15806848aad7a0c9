"""A project under DVC whose second commit changes everything that history tells of."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Work

CATS = "datasets/cats"


@pytest.fixture(scope="session")
def told_template(built_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two committed builds: then one caption, one name, one picture's pixels, one setting, and one picture more."""
    work = Work(built_template).copy(tmp_path_factory.mktemp("told") / "project")
    work.git("rm", "-r", "--quiet", "--cached", CATS)
    work.dvc("add", CATS)
    work.git("add", ".")
    work.git("commit", "--quiet", "--amend", "-m", "Build")
    work.write(f"{CATS}/0000.txt", "a blue [bold]cat")
    with Image.open(work.root / CATS / "0001.png") as file:
        picture = file.convert("RGB")
    picture.paste((1, 2, 3), (0, 0, 16, 16))
    picture.save(work.root / CATS / "0001.png")
    for ending in ("png", "txt"):
        (work.root / CATS / f"0003.{ending}").rename(work.root / CATS / f"moved.{ending}")
    Image.new("RGB", (32, 32), (9, 100, 9)).save(work.root / CATS / "new.png")
    work.write(f"{CATS}/new.txt", "a green field")
    work.recipe(train={"learning_rate": 5e-4})
    work.doit()
    work.git("add", ".")
    work.git("commit", "--quiet", "-m", "Slower\x1b[31m")
    return work.root


@pytest.fixture
def told(told_template: Path, tmp_path: Path) -> Work:
    """A copy of it."""
    return Work(told_template).copy(tmp_path / "project")
