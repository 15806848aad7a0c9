"""The folder of a base in diffusers layout: `model_index.json` and a folder for each component. Light."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdbuild.errors import DataError, Problem
from sdbuild.storage.headers import read_header
from sdbuild.storage.regular_files import read_regular

INDEX = "model_index.json"
WEIGHTS = ".safetensors"
SUFFIXES = (".json", ".txt", WEIGHTS)
"""Files that are read; everything else (code, pickles, pictures) is passed over."""
MOST_OF_JSON = 64 << 20
"""Bytes of a configuration, an index or a vocabulary; the largest known have a tenth of it."""
VARIANTS = (".fp16", ".non_ema", ".bf16")
"""Marks of further copies of the weights, which are neither read, digested nor downloaded."""
CONFIGS = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
"""Configuration of components that do not call it `config.json`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What `model_index.json` says."""

    file: Path
    pipeline: str
    """Class of the pipeline."""
    components: Mapping[str, str]
    """Class of each component that is there, by its name."""
    settings: Mapping[str, Any]
    """What else it says."""
    weights: bool = True
    """Whether weights have to be there."""


def read_layout(folder: Path) -> Layout:
    """Read `model_index.json`.

    Raises:
        DataError: there is none, or it is not one.
    """
    file = folder / INDEX
    if not file.is_file():
        raise DataError([Problem(file=str(folder), message=f"is no base in diffusers layout: it has no {INDEX}")])
    content = read_json(file)
    pipeline = content.get("_class_name")
    if not isinstance(pipeline, str):
        raise DataError([Problem(file=str(file), message="names no pipeline class known to diffusers")])
    components = {
        name: value[1]
        for name, value in content.items()
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)
    }
    settings = {name: value for name, value in content.items() if not isinstance(value, list) and name[0] != "_"}
    return Layout(file=file, pipeline=pipeline, components=components, settings=settings)


def read_config(folder: Path, component: str) -> dict[str, Any]:
    """Read a component's configuration."""
    return read_json(folder / component / config_name(component))


def config_name(component: str) -> str:
    """File that holds a component's configuration; `tokenizer_2` has a tokenizer's."""
    return next((name for kind, name in CONFIGS.items() if component.startswith(kind)), "config.json")


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        content = json.loads(read_regular(file, most=MOST_OF_JSON))
    except FileNotFoundError:
        raise DataError([Problem(file=str(file), message="is missing; the base is incomplete")]) from None
    except OSError as error:
        raise DataError([Problem(file=str(file), message=f"cannot be read ({error.strerror})")]) from error
    except (ValueError, RecursionError):
        raise DataError([Problem(file=str(file), message="is not JSON; copy the base again")]) from None
    if not isinstance(content, dict):
        raise DataError([Problem(file=str(file), message="is not a JSON object; copy the base again")])
    return content


@contextmanager
def understanding(folder: Path) -> Iterator[None]:
    """Take a base's configuration apart: values of other types than the format's are told as damage.

    Raises:
        DataError: there is one.
    """
    try:
        yield
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:120]
        message = f"a component's configuration has a value that is none of its kind ({reason}); copy the base again"
        raise DataError([Problem(file=str(folder), message=message)]) from error


def check(layout: Layout, expected: Mapping[str, str | None]) -> None:
    """Check that all components are there and whole, without loading them.

    Args:
        layout: of the base.
        expected: class of each component, None for any.

    Raises:
        DataError: lists all problems.
    """
    problems = list(_problems(layout, expected))
    if problems:
        raise DataError(problems)


def component_files(folder: Path, component: str) -> list[Path]:
    """Files of a component (or the one file of that name) that are read, sorted."""
    place = folder / component
    if place.is_file():
        return [place]
    found = (path for path in place.rglob("*") if path.suffix in SUFFIXES and not is_variant(path.name))
    return sorted(path for path in found if path.is_file())


def is_variant(name: str, marks: Iterable[str] = VARIANTS) -> bool:
    """Whether a file holds a further copy of the weights, e.g. ``model.fp16.safetensors``."""
    return any(f"{mark}." in name or f"{mark}-" in name for mark in marks)


def lacking(folder: Path, components: Iterable[str], *, variant: str | None = None) -> list[str]:
    """Relative paths of files that should be there and are not; "…" stands for any name.

    Weights may be copies marked with `variant` instead.
    """
    absent = []
    for component in components:
        config = f"{component}/{config_name(component)}"
        if not (folder / config).is_file():
            absent.append(config)
        elif not component.startswith(tuple(CONFIGS)):
            files = component_files(folder, component)
            if variant is not None:
                marked = [file for file in (folder / component).glob("*") if is_variant(file.name, (f".{variant}",))]
                files = marked or files
            shards = {name for file in files if ".index." in file.name for name in _shards(file)}
            absent += [f"{component}/{name}" for name in sorted(shards) if not (folder / component / name).is_file()]
            if not any(file.suffix == ".safetensors" for file in files):
                absent.append(f"{component}/….safetensors")
    return absent


def _problems(layout: Layout, expected: Mapping[str, str | None]) -> Iterator[Problem]:
    folder = layout.file.parent
    for name, cls in expected.items():
        actual = layout.components.get(name)
        if actual is None:
            yield Problem(file=str(layout.file), message=f"has no {name}; a text-to-image base needs one")
        elif cls is not None and actual != cls:
            yield Problem(file=str(layout.file), message=f"has a {actual} as {name}; sdbuild knows {cls} there")
        else:
            yield from part_problems(folder, name, weights=layout.weights)


def part_problems(folder: Path, component: str, *, weights: bool = True) -> Iterator[Problem]:
    """What is wrong with the files of a component; of its weights only where they have to be there."""
    absent = lacking(folder, [component])
    yield from (_absence(folder, path) for path in absent if weights or not path.endswith(WEIGHTS))
    yield from _damages(folder, component) if weights else ()


def _absence(folder: Path, path: str) -> Problem:
    if path.endswith("….safetensors"):
        place = (folder / path).parent
        copies = [mark[1:] for mark in VARIANTS if any(is_variant(file.name, [mark]) for file in place.glob("*"))]
        message = "has no weights as .safetensors; others (.bin, .ckpt) are not read, convert them"
        if copies:
            message = f"has weights as {' and '.join(copies)} alone; set base.variant: {copies[0]}"
        return Problem(file=str(place), message=message)
    return Problem(file=str(folder / path), message="is missing; the base is incomplete")


def _damages(folder: Path, component: str) -> Iterator[Problem]:
    for file in component_files(folder, component):
        if file.suffix == WEIGHTS:
            yield from damages(file)


def damages(file: Path) -> Iterator[Problem]:
    """What is wrong with a file of weights, by its header."""
    try:
        read_header(file)
    except DataError as error:
        yield from error.problems


def _shards(index: Path) -> set[str]:
    shards = read_json(index).get("weight_map", {})
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise DataError([Problem(file=str(index), message="does not name the files of weights; copy the base again")])
    return {name for name in shards.values() if name.endswith(WEIGHTS)}
