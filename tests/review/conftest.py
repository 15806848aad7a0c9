"""A project with a few pictures on the embedded base, and the command line in it; nothing is built."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdbuild.cli import main
from tests.tiny import make_pictures

FOLDER = "datasets/cats"


class Cats:
    """A project whose recipe `cat` has pictures 0000.png to 0003.png with sidecars."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._patch = monkeypatch
        self._capsys = capsys

    def captions(self, *arguments: str, code: int = 0) -> str:
        """Run `sdbuild captions …`; all that it printed."""
        self._capsys.readouterr()
        ended = main(["captions", *arguments])
        found = self._capsys.readouterr()
        assert ended == code, found.out + found.err
        return found.out + found.err

    def rows(self) -> dict[str, dict[str, Any]]:
        """Pictures by bare name."""
        found = json.loads(self.captions("cat", "--json"))
        return {Path(row["path"]).name: row for row in found["pictures"]}

    def kinds(self) -> dict[str, list[str]]:
        """Kinds of findings by bare name, without notes."""
        rows = self.rows().items()
        return {name: [each["kind"] for each in row["findings"] if each["kind"] != "trigger"] for name, row in rows}

    def recipe(self, name: str = "cat", **dataset: Any) -> None:
        content = {
            "base": {"model": "emoji-64"},
            "datasets": [{"path": FOLDER, "trigger": "sks", **dataset}],
            "images": {"resolution": 64, "buckets": {"step": 8}},
        }
        self.write(f"recipes/{name}.yaml", yaml.safe_dump(content))

    def write(self, path: str, text: str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        return target

    def caption(self, name: str, text: str) -> Path:
        return self.write(f"{FOLDER}/{name}.txt", text)

    def repaint(self, name: str) -> None:
        from PIL import Image

        Image.new("RGB", (64, 64), (10, 200, 30)).save(self.root / FOLDER / name)

    def editor(self, program: str) -> None:
        """Make an editor of a Python program that sees `path` and `text`."""
        head = "import sys, pathlib; path = pathlib.Path(sys.argv[1]); text = path.read_text(encoding='utf-8')\n"
        script = self.write("editor.py", head + program)
        self._patch.setenv("VISUAL", f"{sys.executable} '{script}'")

    def state(self) -> Mapping[str, tuple[bytes, int]]:
        """Every file of the dataset, with its time."""
        files = sorted(path for path in (self.root / FOLDER).rglob("*") if path.is_file())
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def cats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cats:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDITOR", "false")
    monkeypatch.delenv("VISUAL", raising=False)
    project = Cats(tmp_path, monkeypatch, capsys)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    project.write(".dvc/config", "")
    project.write("dodo.py", "")
    make_pictures(tmp_path / FOLDER, 4, size=64)
    for index, text in enumerate(("a red cat", "a rocket on a pad", "an apple", "a house")):
        project.caption(f"{index:04d}", text + "\n")
    project.recipe()
    return project
