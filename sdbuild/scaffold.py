"""`sdbuild init`: a new project with git and DVC, a recipe and data on the embedded base; or what a clone lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from sdbuild.build.checkout_checks import check_folders
from sdbuild.build.merge import ATTRIBUTES, ensure_merge_driver
from sdbuild.build.project import Project, check_links
from sdbuild.console import Console
from sdbuild.errors import UsageError
from sdbuild.storage.atomic import write_atomic

_DODO = '''"""sdbuild's tasks for doit: `doit` builds every recipe, `doit list` shows them."""

from pathlib import Path, PurePosixPath

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
    """Make a project of a folder, or set up in a project what a clone of it lacks; files that are there are kept.

    Raises:
        UsageError: the folder has doit tasks of its own, or git is missing.
    """
    root = folder.resolve()
    is_project = (root / "recipes").is_dir()
    dodo = root / "dodo.py"
    if dodo.exists() and "sdbuild" not in dodo.read_text(encoding="utf-8", errors="replace"):
        raise UsageError(f"{folder} has a dodo.py that is not sdbuild's; take another folder, or move it away")
    for name in (".", "recipes", *PurePosixPath(_DATASET).parts[:1], ".dvc"):
        if (root / name).exists() and not (root / name).is_dir():
            raise UsageError(f"{root / name} is in the way: a project needs a folder there; move it away")
    root.mkdir(parents=True, exist_ok=True)
    check_links(Project(root))
    check_folders(Project(root), ["recipes", "datasets"])
    done = list(_set_up(root))
    if is_project:
        told = f"set up: {', '.join(done)}" if done else "nothing is missing"
        console.say(f"{root} is an sdbuild project; {told}")
        return
    example = example_root()
    (root / "recipes").mkdir()
    shutil.copyfile(example / _RECIPE, root / _RECIPE)
    if os.path.lexists(root / _DATASET) or os.path.lexists(root / f"{_DATASET}.dvc"):
        console.say(f"{_DATASET} is yours and left as it is; the example's pictures are not added")
    else:
        shutil.copytree(example / _DATASET, root / _DATASET)
        _track(root, console)
    console.say(f"{root} is an sdbuild project. Next:")
    for command in ([f"cd {folder}"] if folder != Path(".") else []) + [
        "sdbuild plan          # what will be done",
        "doit                  # does it",
        "git add . && git commit -m 'Start'",
    ]:
        console.say(f"  {command}")


def _set_up(root: Path) -> Iterator[str]:
    """Set up what is not there; each thing that was missing."""
    inside = _git_top(root)
    if inside is None:
        _git(root, "init", "--quiet")
        yield "git"
    if not (root / ".dvc").is_dir():
        from sdbuild.build.history import create_repository

        create_repository(root, subfolder=inside is not None and inside != root)
        yield "DVC"
    if not (root / "dodo.py").exists():
        write_atomic(root / "dodo.py", _DODO)
        yield "dodo.py"
    for name, lines in ((".gitignore", _GITIGNORE.splitlines()), (".gitattributes", ATTRIBUTES)):
        if _add_lines(root / name, lines):
            yield name
    if ensure_merge_driver(Project(root)):
        yield "git's merge driver for what builds write"


def _track(root: Path, console: Console) -> None:
    """Put the example's pictures under DVC, as `dvc add` would."""
    from sdbuild.build.history import History
    from sdbuild.build.lockfile import LockFile

    project = Project(root)
    history = History(project, LockFile(project), ())
    history.save_data(_DATASET)
    history.close()


def _add_lines(path: Path, lines: Sequence[str]) -> bool:
    """Add the lines that a file lacks, and leave those that it has byte for byte; whether there were any."""
    before = path.read_bytes() if path.exists() else b""
    present = {line.rstrip(b"\r") for line in before.split(b"\n")}
    missing = [line.encode() for line in lines if line.encode() not in present]
    if missing:
        end = b"\r\n" if b"\r\n" in before else b"\n"
        whole = before if not before or before.endswith(b"\n") else before + end
        write_atomic(path.resolve(), whole + b"".join(line + end for line in missing))
    return bool(missing)


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
