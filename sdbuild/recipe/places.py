"""Where bases and datasets lie: checks of names and, when a project is given, of the disk.

The validators run with the project's folder as pydantic's context; without one they judge the name only. The disk is
asked through `os.path`, to which a path that is too long or may not be looked at is one that is not there.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path, PurePosixPath

from pydantic import ValidationInfo

from sdbuild.recipe.path import names_in
from sdbuild.recipe.spec import refuse

EMBEDDED: dict[str, str] = {"emoji-64": "emoji-64"}
"""Bases that ship with sdbuild: name → folder under `sdbuild/bases/`."""
OWN_FOLDERS = ("build", "recipes", ".sdbuild", ".dvc", ".git")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def embedded_folder(name: str) -> Path:
    """Folder of an embedded base."""
    return Path(__file__).parent.parent / "bases" / EMBEDDED[name]


def is_path(model: str) -> bool:
    """Whether a base's name can only be a path: it starts like one, or has more than one slash."""
    return model.startswith(("/", ".", "~")) or model.count("/") > 1 or model.endswith("/") or "\\" in model


def is_hub_id(model: str) -> bool:
    """Whether a base's name has the shape `org/name`; a folder of that name in the project comes first."""
    return not is_path(model) and _HUB_ID.fullmatch(model) is not None


def base_folder(model: str, project: Path) -> Path | None:
    """Folder of a base on this disk; None for a hub id, which has to be fetched."""
    if model in EMBEDDED:
        return embedded_folder(model)
    folder = project / model
    return folder if is_path(model) or os.path.isdir(folder) else None


def base_model(model: str, info: ValidationInfo) -> str:
    """Validate `base.model`."""
    if model in EMBEDDED:
        return model
    if model.endswith(".safetensors"):
        raise refuse("single files are not supported yet; convert it to a folder in diffusers' layout")
    if model.endswith(_PICKLES):
        raise refuse("pickled weights can run code and are never loaded; convert them to safetensors")
    if "/" in model and not is_path(model) and not is_hub_id(model):
        raise refuse(f"{model!r} is neither an embedded base nor a hub id (org/name) nor a folder")
    if info.context is not None:
        _check_base(model, info.context["project"])
    return model


def _check_base(model: str, project: Path) -> None:
    if model.startswith("~"):
        raise refuse("~ is not expanded; write the whole path")
    folder = project / model
    if os.path.isdir(folder):
        if not os.path.isfile(folder / "model_index.json"):
            raise refuse(f"{model!r} has no model_index.json; name a folder in diffusers' layout")
    elif os.path.exists(folder):
        raise refuse(f"{model!r} is a file; name a folder in diffusers' layout")
    elif is_tracked(model, project):
        return
    elif is_path(model) or (is_hub_id(model) and os.path.isdir(project / model.split("/")[0])):
        raise refuse(f"folder {model!r} does not exist{_near(folder, project)}")
    elif not is_hub_id(model):
        near = difflib.get_close_matches(model, EMBEDDED, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(EMBEDDED)}"
        raise refuse(f"no folder and no embedded base is called {model!r} ({hint}); a hub id is org/name")


def dataset_folder(path: str, info: ValidationInfo) -> str:
    """Validate `datasets[].path`; its result has no `.` and no slash at the end."""
    if "\\" in path:
        raise refuse(f"{path!r} has a backslash; separate folders by /")
    if path.startswith(("/", "~")) or re.match(r"[A-Za-z]:", path):
        raise refuse(f"{path!r} is absolute; name a folder inside the project, relative to it")
    if any(ord(letter) < 32 for letter in path):
        raise refuse(f"{path!r} has a control character; rename the folder")
    folder = PurePosixPath(os.path.normpath(path))
    if folder.parts[:1] == ("..",):
        raise refuse(f"{path!r} is outside the project; move the pictures inside it")
    if not folder.parts:
        raise refuse("is the project itself; name a folder inside it, such as datasets/cat")
    if folder.parts[0] in OWN_FOLDERS:
        raise refuse(f"{path!r} is in {folder.parts[0]}/, which is not for pictures; use datasets/")
    if info.context is not None:
        _check_dataset(str(folder), info.context["project"])
    return str(folder)


def _check_dataset(path: str, project: Path) -> None:
    folder = project / path
    if os.path.isdir(folder):
        if not os.path.realpath(folder).startswith(os.path.realpath(project) + os.sep):
            raise refuse(f"{path!r} leads out of the project by a link; move the pictures inside it")
    elif os.path.exists(folder):
        raise refuse(f"{path!r} is a file; name the folder of the pictures")
    elif not is_tracked(path, project):
        hint = _near(folder, project) or "; put pictures there, or run dvc pull if a teammate tracks it"
        raise refuse(f"folder {path!r} does not exist{hint}")


def _near(folder: Path, project: Path) -> str:
    """The folder that was meant, if one beside it has nearly the same name."""
    beside = [name for name in names_in(folder.parent) if os.path.isdir(folder.parent / name)]
    near = difflib.get_close_matches(folder.name, beside, n=1)
    return f" (did you mean {os.path.relpath(folder.parent / near[0], project)}?)" if near else ""


def is_tracked(path: str, project: Path) -> bool:
    """Whether DVC tracks a folder or one that it lies in, so that it may be absent."""
    tracked = PurePosixPath(path)
    return any(os.path.isfile(project / f"{folder}.dvc") for folder in (tracked, *tracked.parents) if folder.name)


def overlaps(one: str, other: str) -> bool:
    """Whether one of two folders is or lies in the other."""
    first, second = PurePosixPath(one), PurePosixPath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)
