"""Hand edits in compiled files (`dvc.yaml`, `recipe.json`): a file that has some is kept before it is replaced."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

from sdbuild.build import blocks
from sdbuild.build.project import Project
from sdbuild.plan.files import HEADER, dump_recipe_json
from sdbuild.storage.atomic import write_atomic

_PARTS = ({"name", "recipe", "base", "steps"}, {"stages", "plots", "artifacts"})
"""What is in a `recipe.json` and in a `dvc.yaml` at most."""


def record_written(project: Project, path: str, text: str) -> None:
    """Remember the content that sdbuild wrote to a file."""
    write_atomic(_memory(project, path), _blob(text.encode()))


def may_be_replaced(project: Project, path: str) -> bool:
    """Whether nothing is lost with a file: it is as it was written, or git has it, or there is none."""
    target = project.root / path
    try:
        content = target.read_bytes()
    except FileNotFoundError:
        return not target.is_symlink()
    except OSError:
        return False
    try:
        return _memory(project, path).read_bytes() == _blob(content).encode() or _in_git(project, content)
    except OSError:  # it was written before this was remembered, or `.sdbuild` was deleted
        return _looks_compiled(target, content) or _in_git(project, content)


def _memory(project: Project, path: str) -> Path:
    return project.private / "cache" / "compiled" / path


def _blob(content: bytes) -> str:
    """The name that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _in_git(project: Project, content: bytes) -> bool:
    command = ["git", "cat-file", "-e", _blob(content)]
    try:
        return subprocess.run(command, cwd=project.root, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def _looks_compiled(path: Path, content: bytes) -> bool:
    try:
        text = content.decode()
        if path.name == "recipe.json":
            found = json.loads(text)
            return isinstance(found, dict) and found.keys() <= _PARTS[0] and dump_recipe_json(found) == text
        sections = blocks.split(text)
    except (ValueError, RecursionError):
        return False
    stages = sections.get("stages", {}).values()
    ours = sections.keys() <= _PARTS[1] and all(blocks.recipe_of(stage) for stage in stages)
    return ours and text in (HEADER + blocks.join(sections), f"{HEADER}stages: {{}}\n")
