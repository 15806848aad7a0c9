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

from sdbuild.recipe.names import group_of
from sdbuild.recipe.path import names_in
from sdbuild.recipe.spec import refuse
from sdbuild.storage.phrases import did_you_mean

BASES = Path(__file__).parent.parent / "bases"
"""Folder of the bases that ship with sdbuild, each in a folder of its name."""
BUILD = "build"
"""Folder of what recipes build, each in a folder of its name."""
OWN_FOLDERS = (BUILD, "recipes", ".sdbuild", ".dvc", ".git")
INDEX = "model_index.json"
"""File that makes a folder one in diffusers' layout."""
_HUB_ID = re.compile(r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9][\w.-]{0,95}(?<=\w)/\w[\w.-]{0,95}(?<=\w)", re.ASCII)
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_SAFE = ".safetensors"


def embedded() -> list[str]:
    """Names of the bases that ship with sdbuild."""
    return [name for name in names_in(BASES) if os.path.isfile(BASES / name / INDEX)]


def is_path(model: str) -> bool:
    """Whether a base's name can only be a path: it starts like one, has more than one slash, or ends like a file."""
    return (
        model.startswith(("/", ".", "~"))
        or model.count("/") > 1
        or model.endswith("/")
        or "\\" in model
        or is_single_file(model)
    )


def is_single_file(model: str) -> bool:
    """Whether a base's name is that of a checkpoint in one file."""
    return model.endswith(_SAFE) or is_pickle(model)


def is_pickle(model: str) -> bool:
    """Whether a base's name is that of pickled weights."""
    return model.endswith(_PICKLES)


def is_hub_id(model: str) -> bool:
    """Whether a base's name has the shape `org/name`; a folder of that name in the project comes first."""
    return not is_path(model) and _HUB_ID.fullmatch(model) is not None


def place_of(model: str, project: Path) -> Path | None:
    """Folder or file of a base on this disk, which may not be there; None for a hub id, which has to be fetched."""
    if model in embedded():
        return BASES / model
    place = project / model
    return place if is_path(model) or os.path.isdir(place) else None


def config_place(path: str, project: Path) -> Path:
    """Folder of the configurations that `base.config` names."""
    return BASES / path if path in embedded() else project / path


def out_of(path: str) -> str | None:
    """The out of a step that a path is or lies in, such as ``build/cat/adapter``; None for what no step writes."""
    parts = PurePosixPath(os.path.normpath(path)).parts
    return "/".join(parts[:3]) if parts[:1] == (BUILD,) and len(parts) >= 3 else None


def maker_of(path: str) -> str | None:
    """The recipe or variant in whose folder of outs a path lies; None for other paths."""
    out = out_of(path)
    return None if out is None else PurePosixPath(out).parts[1]


def base_model(model: str, info: ValidationInfo) -> str:
    """Validate `base.model`."""
    if model in embedded():
        return model
    _check_shape(model, info)
    if info.context is not None:
        _check_place(model, info.context["project"], (INDEX,))
    return model


def vae_model(model: str, info: ValidationInfo) -> str:
    """Validate `base.vae`."""
    if is_pickle(model):
        raise refuse("a VAE is not read from pickled weights; convert it to safetensors")
    _check_shape(model, info)
    if info.context is not None:
        _check_place(model, info.context["project"], ("config.json", "vae/config.json"))
    return model


def config_folder(path: str, info: ValidationInfo) -> str:
    """Validate `base.config`."""
    if info.context is not None and not os.path.isfile(config_place(path, info.context["project"]) / INDEX):
        raise refuse(f"{path!r} has no {INDEX}; name a folder in diffusers' layout or an embedded base")
    return path


def _check_shape(model: str, info: ValidationInfo) -> None:
    if model.startswith("~"):
        raise refuse("~ is not expanded; write the whole path")
    there = info.context is not None and os.path.isdir(info.context["project"] / model)
    if "/" in model and not there and not is_path(model) and not is_hub_id(model):
        raise refuse(f"{model!r} is neither an embedded base nor a hub id (org/name) nor a folder")


def _check_place(model: str, project: Path, wanted: tuple[str, ...]) -> None:
    place = project / model
    if os.path.isdir(place):
        if not any(os.path.isfile(place / name) for name in wanted):
            raise refuse(f"{model!r} has no {' and no '.join(wanted)}; name a folder in diffusers' layout")
    elif os.path.exists(place):
        if not is_single_file(model):
            raise refuse(f"{model!r} is a file; name a folder in diffusers' layout, or a .safetensors file")
    elif is_tracked(model, project) or _is_built(model, project):
        return
    elif is_single_file(model):
        raise refuse(f"file {model!r} does not exist{_near(place, project)}")
    elif is_path(model) or (is_hub_id(model) and os.path.isdir(project / model.split("/")[0])):
        raise refuse(f"folder {model!r} does not exist{_near(place, project)}")
    elif not is_hub_id(model):
        names = embedded()
        near = difflib.get_close_matches(model, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(names)}"
        raise refuse(f"no folder and no embedded base is called {model!r} ({hint}); a hub id is org/name")


def other_recipe(name: str, info: ValidationInfo) -> str:
    """Validate the name of another recipe, or of a variant of one."""
    if info.context is not None:
        known = _recipes(info.context["project"])
        if group_of(name) not in known:
            raise refuse(f"there is no recipe {name!r}{did_you_mean(name, known)}")
    return name


def _recipes(project: Path) -> list[str]:
    return [file.removesuffix(".yaml") for file in names_in(project / "recipes") if file.endswith(".yaml")]


def _is_built(path: str, project: Path) -> bool:
    """Whether a path is below the folder of a recipe's outs; which of them there are is checked with all recipes."""
    maker = maker_of(path)
    return maker is not None and group_of(maker) in _recipes(project)


def adapter_file(path: str, info: ValidationInfo) -> str:
    """Validate the file of an adapter from elsewhere; its result has no `.`."""
    if not path.endswith(_SAFE):
        raise refuse(f"{path!r} is no .safetensors file; others are not read")
    if path.startswith(("/", "~")) or "\\" in path or os.path.normpath(path).startswith(".."):
        raise refuse(f"{path!r} is outside the project; put the file inside it, such as in adapters/")
    if maker := maker_of(path):
        raise refuse(f"{path!r} is what a recipe builds; say recipe: {maker}, or put a copy of the file in adapters/")
    if info.context is not None:
        place = info.context["project"] / path
        if not os.path.isfile(place) and not is_tracked(path, info.context["project"]):
            raise refuse(f"file {path!r} does not exist{_near(place, info.context['project'])}")
    return os.path.normpath(path)


def dataset_folder(path: str, info: ValidationInfo) -> str:
    """Validate `datasets[].path`; its result has no `.` and no slash at the end."""
    if "\\" in path:
        raise refuse(f"{path!r} has a backslash; separate folders by /")
    if path.startswith(("/", "~")) or re.match(r"[A-Za-z]:", path):
        raise refuse(f"{path!r} is absolute; name a folder inside the project, relative to it")
    if any(ord(letter) < 32 for letter in path):
        raise refuse(f"{path!r} has a control character; rename the folder")
    if "${" in path:
        raise refuse(f"{path!r} has '${{', where DVC looks for a variable; rename the folder")
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
    """The folder, or the checkpoint, that was meant, if one beside it has nearly the same name."""
    beside = [name for name in names_in(folder.parent) if is_single_file(name) or os.path.isdir(folder.parent / name)]
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
