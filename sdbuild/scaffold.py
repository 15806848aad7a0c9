"""`sdbuild init`: a new project with git and DVC, a recipe and data on the embedded base."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from sdbuild.build.project import write_atomic
from sdbuild.console import Console
from sdbuild.errors import UsageError

_DODO = '''"""sdbuild's tasks for doit: `doit` builds every recipe, `doit list` shows them."""

from pathlib import Path

from sdbuild.build.tasks import doit_config, load_tasks

PROJECT = Path(__file__).parent
DOIT_CONFIG = doit_config(PROJECT)


def task_sdbuild():
    """Every step of every recipe."""
    yield from load_tasks(PROJECT)
'''

_GITIGNORE = """\
# local state of sdbuild: caches, logs, checkpoints
/.sdbuild/
# outs are kept by DVC; the resolved recipes beside them are kept by git
/build/*/*
!/build/*/recipe.json
__pycache__/
# what `dvc plots` draws
/dvc_plots/
"""

_RECIPE, _DATASET = "recipes/emoji-3d.yaml", "datasets/emoji-3d"


def example_root() -> Path:
    """Folder that holds the example: in the installed package, or the checkout that it is developed in."""
    package = Path(__file__).parent
    installed = package / "example"
    return installed if installed.is_dir() else package.parent


def create(folder: Path, console: Console) -> None:
    """Make a project of a folder; files that are there already are kept.

    Raises:
        UsageError: the folder is a project, or git is missing.
    """
    root = folder.resolve()
    if (root / "recipes").is_dir() or (root / "dodo.py").exists():
        raise UsageError(f"{folder} already has recipes; `sdbuild check` looks at them")
    root.mkdir(parents=True, exist_ok=True)
    inside = _git_top(root)
    if inside is None:
        _git(root, "init", "--quiet")
    if not (root / ".dvc").is_dir():
        from sdbuild.build.history import create_repository

        create_repository(root, subfolder=inside is not None and inside != root)
    write_atomic(root / "dodo.py", _DODO)
    _ignore(root / ".gitignore")
    example = example_root()
    (root / "recipes").mkdir()
    shutil.copyfile(example / _RECIPE, root / _RECIPE)
    if not (root / _DATASET).exists():
        shutil.copytree(example / _DATASET, root / _DATASET)
    _track(root, console)
    console.say(f"{root} is an sdbuild project. Next:")
    for command in ([f"cd {folder}"] if folder != Path(".") else []) + [
        "sdbuild plan          # what will be done",
        "doit                  # does it",
        "git add . && git commit -m 'Start'",
    ]:
        console.say(f"  {command}")


def _track(root: Path, console: Console) -> None:
    """Put the example's pictures under DVC, as `dvc add` would."""
    from sdbuild.build.history import History
    from sdbuild.build.lockfile import LockFile
    from sdbuild.build.project import Project

    project = Project(root)
    history = History(project, LockFile(project), ())
    history.save_data(_DATASET)
    history.close()


def _ignore(path: Path) -> None:
    present = path.read_text(encoding="utf-8") if path.exists() else ""
    missing = [line for line in _GITIGNORE.splitlines() if line not in present.splitlines()]
    if missing:
        write_atomic(path, "".join(f"{line}\n" for line in (*present.splitlines(), *missing)))


def _git_top(root: Path) -> Path | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--show-toplevel"], cwd=root, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise UsageError("git is not installed; sdbuild keeps recipes and records in it") from None
    return Path(found.stdout.strip()) if found.returncode == 0 else None


def _git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)
