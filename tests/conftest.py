"""A temporary project under git and DVC, and the command line on it."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import warm
from tests.tiny import make_pictures, make_pipeline

BIN = Path(sys.executable).parent
DODO = (Path(__file__).parent.parent / "dodo.py").read_text()
RECIPE: dict[str, Any] = {
    "base": {"model": "base"},
    "datasets": [{"path": "datasets/cats", "trigger": "sks", "holdout": 1}],
    "images": {"resolution": 32, "buckets": {"step": 8, "max_aspect": 2}},
    "method": {"kind": "lora", "rank": 2, "alpha": 2},
    "train": {"steps": 4, "batch": 2, "learning_rate": 1e-3, "checkpoint_every": 2, "seed": 0, "validate": 1},
    "sample": {"prompts": ["a cat"], "seeds": [0], "strengths": [0, 1], "steps": 2, "guidance": 2},
}

_DONE = re.compile(r"^(\S+:\S+)  done: (\d+) of (\d+) computed", re.MULTILINE)


@dataclass(frozen=True)
class Result:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def ran(self) -> dict[str, int]:
        """Items computed by each step that ran."""
        return {name: int(computed) for name, computed, _ in _DONE.findall(self.out)}

    @property
    def text(self) -> str:
        return self.out + self.err


class Work:
    """A project folder and the commands that a user types in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command: str, code: int | None = 0, env: Mapping[str, str] | None = None) -> Result:
        done = warm.run(command, cwd=self.root, env=environment(env), timeout=300)
        result = Result(done.returncode, done.stdout, done.stderr)
        if code is not None:
            assert result.code == code, f"{command} ended with {result.code}:\n{result.text}"
        assert "Traceback" not in result.text, result.text
        return result

    def doit(self, *arguments: str, code: int | None = 0, env: Mapping[str, str] | None = None) -> Result:
        return self.run(str(BIN / "doit"), *arguments, code=code, env=env)

    def sdbuild(self, *arguments: str, code: int | None = 0) -> Result:
        return self.run(str(BIN / "sdbuild"), *arguments, code=code)

    def dvc(self, *arguments: str, code: int | None = 0) -> Result:
        return self.run(str(BIN / "dvc"), *arguments, code=code)

    def git(self, *arguments: str) -> Result:
        return self.run("git", *arguments)

    def plan(self) -> dict[str, dict[str, Any]]:
        """`sdbuild plan --json` by step name."""
        steps = json.loads(self.sdbuild("plan", "--json").out)["steps"]
        return {step["name"]: step for step in steps}

    def recipe(self, name: str = "cat", **changes: Any) -> None:
        """Write a recipe: the standard one with sections merged or, where None, left out."""
        content = json.loads(json.dumps(RECIPE))
        for section, change in changes.items():
            if change is None:
                content.pop(section, None)
            elif isinstance(change, dict):
                content.setdefault(section, {}).update(change)
            else:
                content[section] = change
        self.write(f"recipes/{name}.yaml", yaml.safe_dump(content, sort_keys=False))

    def write(self, path: str, content: str | bytes) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        return target

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def adapter(self, name: str = "cat") -> bytes:
        return self.read(f"build/{name}/adapter/{name}.safetensors")

    def copy(self, root: Path) -> Work:
        """The project as it is, elsewhere."""
        shutil.copytree(self.root, root, symlinks=True)
        return Work(root)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of the commands: the tools of this Python, one thread, nobody's git settings."""
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "A",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "A",
        "GIT_COMMITTER_EMAIL": "a@example.org",
        "DVC_NO_ANALYTICS": "1",
        **(extra or {}),
    }


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty project: git, DVC, dodo.py, a tiny base."""
    root = tmp_path_factory.mktemp("template") / "project"
    root.mkdir()
    work = Work(root)
    work.git("init", "--quiet", "--initial-branch=main")
    work.dvc("init", "--quiet")
    work.write("dodo.py", DODO)
    work.write(".gitignore", "/.sdbuild/\n/build/*/*\n!/build/*/recipe.json\n/base/\n__pycache__/\n")
    make_pipeline(root / "base")
    (root / "recipes").mkdir()
    return root


@pytest.fixture
def empty(template: Path, tmp_path: Path) -> Work:
    """A project without recipes and data."""
    return Work(template).copy(tmp_path / "project")


@pytest.fixture
def work(empty: Work) -> Work:
    """A project with one recipe `cat` on four pictures; nothing is built."""
    make_pictures(empty.root / "datasets" / "cats", 4, size=32)
    empty.recipe()
    return empty


@pytest.fixture(scope="session")
def built_template(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project of `work`, built once."""
    work = Work(template).copy(tmp_path_factory.mktemp("built") / "project")
    make_pictures(work.root / "datasets" / "cats", 4, size=32)
    work.recipe()
    work.doit()
    work.git("add", ".")
    work.git("commit", "--quiet", "-m", "Build")
    return work.root


@pytest.fixture
def built(built_template: Path, tmp_path: Path) -> Work:
    """A copy of a project that is up to date."""
    return Work(built_template).copy(tmp_path / "project")


@dataclass(frozen=True)
class Swept:
    """A built project with a matrix, and what its first build said."""

    root: Path
    first: Result


@pytest.fixture(scope="session")
def swept_template(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """A project whose recipe `cat` has two variants, built once, two steps at a time."""
    work = Work(template).copy(tmp_path_factory.mktemp("swept") / "project")
    make_pictures(work.root / "datasets" / "cats", 4, size=32)
    work.recipe(matrix={"method.rank": [1, 2]})
    first = work.doit("-n", "2")
    work.git("add", ".")
    work.git("commit", "--quiet", "-m", "Build")
    return Swept(work.root, first)


@pytest.fixture
def swept(swept_template: Swept, tmp_path: Path) -> Work:
    """A copy of it."""
    return Work(swept_template.root).copy(tmp_path / "project")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests of each folder passed: a folder that is missing was not collected."""
    passed = terminalreporter.stats.get("passed", [])
    parts = (report.nodeid.partition("::")[0].split("/") for report in passed)
    folders = Counter("/".join(part[:2]) if len(part) > 2 else part[0] for part in parts)
    if len(folders) > 1:
        counts = ", ".join(f"{folder} {count:,}" for folder, count in sorted(folders.items()))
        terminalreporter.write_line(f"passed by folder: {counts}")
