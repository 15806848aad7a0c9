"""Checkpoints in one file, in the layout of the models' authors: their family, and where they are converted to.

A file is converted once, to a folder in diffusers' layout that is named by the file's content. Importing this is light.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdbuild import families
from sdbuild.errors import DataError, Problem, StepError
from sdbuild.families.description import Description
from sdbuild.families.digest import md5_file
from sdbuild.families.layout import INDEX, read_json, read_layout
from sdbuild.storage.headers import Header, read_header
from sdbuild.storage.json_cache import recall, remember

VERSION = 1
"""Raised by hand when a conversion gives other files."""
CONFIGS = Path(__file__).parent / "configs"
"""Configurations of the models as published, a file each."""
Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each tensor of a file, by name."""


def converted(
    file: Path, config: Path | None, prediction_type: str | None, private: Path, *, t5: bool = True
) -> Path | None:
    """Folder that a checkpoint was converted to; None if it was not yet."""
    folder = private / _name(file, private, config, prediction_type, t5)
    return folder if (folder / INDEX).is_file() else None


def convert(file: Path, config: Path | None, prediction_type: str | None, private: Path, *, t5: bool = True) -> Path:
    """Convert a checkpoint.

    Args:
        file: safetensors, or a pickle that the recipe allows.
        config: folder in diffusers' layout whose configurations are used; those that sdbuild carries by default.
        prediction_type: what the denoiser predicts, where the file does not say.
        private: where the new folder goes.
        t5: whether a third text encoder is kept.

    Raises:
        DataError: it is damaged, of no known layout, or not whole.
        StepError: there is no room for the folder.
    """

    def write(folder: Path) -> None:
        from sdbuild.families.convert import write_base

        write_base(file, folder, config, prediction_type, t5=t5)

    return _made(private / _name(file, private, config, prediction_type, t5), write, INDEX)


def converted_vae(file: Path, base: Path, private: Path) -> Path | None:
    """Folder that a VAE was converted to, for a base whose VAE's configuration it shares; None if it was not yet."""
    folder = private / _name(file, private, base / "vae", None, True)
    return folder if (folder / "config.json").is_file() else None


def convert_vae(file: Path, base: Path, private: Path) -> Path:
    """Convert a VAE in one file, for a base whose VAE's configuration it shares; as `convert`."""

    def write(folder: Path) -> None:
        from sdbuild.families.convert import write_vae

        write_vae(file, folder, base / "vae")

    return _made(private / _name(file, private, base / "vae", None, True), write, "config.json")


def look(file: Path, config: Path | None) -> Description:
    """Tell a checkpoint's family by its header, and whether there are configurations for it; as `convert`."""
    shapes = shapes_of(read_header(file))
    description = identify(shapes, file)
    if config is None:
        carried(description, shapes, file)
    return description


def shapes_of(header: Header) -> Shapes:
    """Shape of each tensor of a file, by name."""
    return {name: each.shape for name, each in header.tensors.items()}


def identify(names: Collection[str], file: Path) -> Description:
    """Tell a checkpoint's family by the names of its tensors.

    Raises:
        DataError: it is of no known layout, or not whole; says what was looked for, and the nearest family.
    """
    known = families.descriptions()
    for description in known:
        if all(mark in names for mark in description.original.marks):
            return description
    nearest = max(known, key=lambda each: sum(mark in names for mark in each.original.marks))
    absent = [mark for mark in nearest.original.marks if mark not in names]
    if not names:
        raise DataError([Problem(file=str(file), message="holds no tensors; copy or download it again")])
    if len(absent) == len(nearest.original.marks):
        begins = ", ".join(sorted({name.partition(".")[0] for name in names})[:4])
        looked_for = ", ".join(f"{each.original.marks[1]} ({each.title})" for each in known)
        message = f"has no known layout: its tensors begin with {begins}; looked for {looked_for}"
    else:
        message = (
            f"is no whole checkpoint of a known family; the nearest is {nearest.title}, "
            f"of which it lacks {', '.join(absent)}"
        )
    raise DataError([Problem(file=str(file), message=f"{message}; name one with UNet or transformer, VAE and text")])


def carried(description: Description, shapes: Shapes, file: Path) -> dict[str, Any]:
    """Configurations of a published model that a checkpoint has the shape of, by component.

    Raises:
        DataError: sdbuild carries none for it.
    """
    known = [content for path in sorted(CONFIGS.glob("*.json")) if (content := read_json(path))]
    mine = [content for content in known if content["family"] == description.name]
    for content in mine:
        if shapes.get(content["tensor"]) == tuple(content["shape"]):
            components: dict[str, Any] = content["components"]
            return components
    tensor = mine[0]["tensor"]
    message = (
        f"is a {description.title} of a size of its own ({tensor} is {list(shapes.get(tensor, ()))}); name a folder "
        "with its configurations in base.config"
    )
    raise DataError([Problem(file=str(file), message=message)])


def prediction(metadata: Mapping[str, str], names: Collection[str]) -> str | None:
    """What a checkpoint says that it predicts; None if it says nothing."""
    if "v_pred" in names:
        return "v_prediction"
    said = metadata.get("modelspec.prediction_type", "")
    return {"v": "v_prediction", "epsilon": "epsilon"}.get(said)


def _name(file: Path, private: Path, config: Path | None, prediction_type: str | None, t5: bool) -> str:
    parts = [VERSION, _remembered(file, private), _texts(config), prediction_type, t5]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return f"{file.stem}-{key}"


def _texts(folder: Path | None) -> str | None:
    """Digest of a folder's configurations and vocabularies."""
    if folder is None:
        return None
    if (folder / INDEX).is_file():
        read_layout(folder)
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".txt")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{md5_file(path)}\n".encode())
    return digest.hexdigest()


def _remembered(file: Path, private: Path) -> str:
    """MD5 of a file, read again when its size, time or inode has changed."""
    status = file.stat()
    signature = [status.st_size, status.st_mtime_ns, status.st_ino]
    memory = private / "files.json"
    known: dict[str, Any] = recall(memory) or {}
    entry = known.get(str(file))
    if entry is not None and entry[:3] == signature:
        return str(entry[3])
    digest = md5_file(file)
    known[str(file)] = [*signature, digest]
    remember(memory, known)
    return digest


def _made(target: Path, write: Callable[[Path], None], last: str) -> Path:
    """Write a folder under a temporary name, once whoever else makes folders there is done, and rename it.

    The file `last` tells that it is there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    with _alone(target.parent):
        if (target / last).is_file():
            return target
        for left in (target, temporary):  # by somebody, or by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        try:
            temporary.mkdir()
            write(temporary)
            temporary.rename(target)
        except OSError as error:
            what = f"{target.parent}: the converted base cannot be written ({error.strerror})"
            raise StepError(f"{what}; it is as large as its file: make room and build again") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder's lock among processes; it goes with the process, however that ends."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)
