"""The wheel: what it weighs, and that it is enough."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.conftest import environment

SOURCE = Path(__file__).parent.parent
LARGEST = 28_000_000
CODE = """
from pathlib import Path
import sdbuild
from sdbuild import families
from sdbuild.recipe.places import BASES
print(Path(sdbuild.__file__).parents[1], families.load(BASES / "emoji-64").name)
"""


def test_the_wheel_holds_base_and_example(tmp_path: Path) -> None:
    def run(*arguments: str, at: Path) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=at,
            env=environment({"PYTHONPATH": str(tmp_path / "installed")}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path), at=SOURCE)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size <= LARGEST
    with zipfile.ZipFile(wheel) as opened:
        assert {name.partition("/")[0].partition("-")[0] for name in opened.namelist()} == {"sdbuild"}
        opened.extractall(tmp_path / "installed")
    assert run("-c", CODE, at=tmp_path) == f"{tmp_path / 'installed'} sd1\n"
    run("-m", "sdbuild", "init", "cats", at=tmp_path)
    assert "recipes/emoji-3d.yaml is right: 36 pictures" in run("-m", "sdbuild", "check", at=tmp_path / "cats")
