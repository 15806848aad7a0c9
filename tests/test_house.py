"""The house: which room may import which, and what stays out of a build that has nothing to do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Work, environment

PACKAGE = Path(__file__).parent.parent / "sdbuild"

LIGHT = {"errors", "storage"}
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "storage": {"errors"},
    "console": LIGHT,
    "recipe": LIGHT | {"methods"},
    "plan": LIGHT | {"recipe", "methods"},
    "data": LIGHT | {"recipe"},
    "families": LIGHT | {"recipe", "data"},
    "captioners": LIGHT | {"recipe", "data", "families"},
    "methods": LIGHT | {"recipe", "data", "families"},
    "training": LIGHT | {"data", "families", "methods"},
    "sampling": LIGHT | {"data", "families"},
    "steps": LIGHT | {"recipe", "data", "families", "captioners", "methods", "training", "sampling"},
    "build": LIGHT | {"console", "recipe", "plan", "data", "families", "captioners", "steps"},
    "scaffold": LIGHT | {"console", "build"},
    "report": LIGHT | {"console", "recipe", "plan", "data", "build", "families"},
    "review": LIGHT | {"console", "recipe", "plan", "data", "build", "families", "captioners", "steps"},
    "commands": LIGHT | {"console", "recipe", "plan", "build", "report", "review", "scaffold"},
    "cli": LIGHT | {"console", "commands"},
    "__main__": {"cli"},
    "__init__": set(),
}
SPECS = {
    "sdbuild.methods.spec",
    *(f"sdbuild.methods.{path.parent.name}.spec" for path in (PACKAGE / "methods").glob("*/spec.py")),
}
NARROW = {
    "review": {
        "captioners": {f"sdbuild.captioners.{name}" for name in ("asking", "said", "texts")},
        "families": {"sdbuild.families.sources", "sdbuild.families.tokens"},
        "steps": {"sdbuild.steps.contract", "sdbuild.steps.images"},
    },
    "report": {"families": {"sdbuild.families.digest"}},
    "build": {"steps": {"sdbuild.steps.contract"}, "families": {"sdbuild.families"}},
    "training": {"families": {"sdbuild.families.contract"}, "methods": {"sdbuild.methods.contract"}},
    "methods": {"recipe": {"sdbuild.recipe.spec"}, "families": {"sdbuild.families.contract"}},
    "recipe": {"methods": SPECS},
    "plan": {"methods": SPECS},
}
"""Where a room may see only a part of another."""
ROOTS = {"recipe": {"sdbuild.methods"}}
"""Rooms whose own first module, not what is in them, is seen too."""
HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "dvc"}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Names of imported modules, and whether they are imported when the module is."""
    tree = ast.parse(path.read_text())
    later = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.If)
        for inner in ast.walk(node)
        if inner is not node
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
        else:
            continue
        yield from ((name, id(node) not in later) for name in names)


def test_rooms_import_only_what_the_design_allows() -> None:
    wrong = []
    for room, path in modules():
        for name, _ in imports(path):
            parts = name.split(".")
            if parts[0] != "sdbuild" or len(parts) == 1 or name in ROOTS.get(room, ()):
                continue
            other = parts[1]
            if other != room and other not in ARROWS[room]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
            allowed = NARROW.get(room, {}).get(other)
            if allowed is not None and not any(name == module or name.startswith(f"{module}.") for module in allowed):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}, may see {sorted(allowed)}")
    assert not wrong, "\n".join(wrong)


def test_only_history_and_remotes_import_dvc() -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for _, path in modules()
        for name, _ in imports(path)
        if name.split(".")[0] in ("dvc", "dvc_data")
    }
    assert found <= {"build/history.py", "build/remote.py"}


def test_only_the_console_prints() -> None:
    found = set()
    for _, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.add(str(path.relative_to(PACKAGE)))
    assert found == {"console.py"}


def test_an_error_takes_each_of_its_lines_by_itself() -> None:
    """A break inside one would be shown as part of a name."""
    found = set()
    for _, path in modules():
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(("Error", "Problem", ".warn", ".say")):
                texts = (node.value for node in ast.walk(call) if isinstance(node, ast.Constant))
                if any(isinstance(text, str) and "\n" in text and text != "\n" for text in texts):
                    found.add(f"{path.relative_to(PACKAGE)}:{call.lineno}")
    assert not found


@pytest.mark.parametrize(
    "program",
    [
        "from doit.doit_cmd import DoitMain; code = DoitMain().run([])",
        "from sdbuild.cli import main; code = main(['plan'])",
        "from sdbuild.cli import main; code = main(['check'])",
        "from sdbuild.cli import main; code = main(['why', 'cat:train'])",
    ],
    ids=["no-op doit", "plan", "check", "why"],
)
def test_planning_checking_and_a_no_op_build_are_light(built: Work, program: str) -> None:
    script = f"{program}\nimport sys\nprint('HEAVY', code, sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=built.root, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "HEAVY 0 []", done.stdout + done.stderr


def test_a_kept_file_is_short_enough_to_read() -> None:
    long = {str(path): count for _, path in modules() if (count := len(path.read_text().splitlines())) > 400}
    assert not long
