"""Model families: one module each. Importing this package, and describing a base, is light."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdbuild.errors import DataError, Problem
from sdbuild.families.description import Description, Part
from sdbuild.families.layout import Layout, read_config, read_layout, understanding

if TYPE_CHECKING:
    from sdbuild.families.contract import Family

FAMILIES: Mapping[str, str] = {
    "sd1": "sdbuild.families.sd1",
    "sd2": "sdbuild.families.sd2",
    "sdxl": "sdbuild.families.sdxl",
    "sd3": "sdbuild.families.sd3",
}
"""Each module has a `DESCRIPTION` and a function `family(folder, layout, clip_skip)`."""


def descriptions() -> list[Description]:
    """All families."""
    return [importlib.import_module(module).DESCRIPTION for module in FAMILIES.values()]


def detect(folder: Path) -> str:
    """Name the family of a base from its `model_index.json` and configurations, never from its name.

    Raises:
        DataError: it is no text-to-image model of a known family.
    """
    return describe(folder).name


def describe(folder: Path) -> Description:
    """Describe the family of a base; see `detect`."""
    return _described(read_layout(folder))


def components(folder: Path, parts: Iterable[Part]) -> tuple[str, ...]:
    """Components, or files, of some parts of a base."""
    layout = read_layout(folder)
    return _described(layout).components(parts, layout.components)


def load(folder: Path, *, clip_skip: int = 1, weights: bool = True) -> Family:
    """Bind a base's family to its folder; weights are loaded when they are asked for.

    Without `weights` they may be missing, and networks are loaded on the device `meta` alone.

    Raises:
        DataError: it is of no known family, or damaged; lists all problems.
    """
    layout = replace(read_layout(folder), weights=weights)
    module = importlib.import_module(FAMILIES[_described(layout).name])
    with understanding(folder):
        family: Family = module.family(folder, layout, clip_skip=clip_skip)
    return family


def classes(layout: Layout) -> Mapping[str, str | None]:
    """Class of each component that a base has; see `describe`."""
    return _candidates(layout)[0].classes


def optional(layout: Layout) -> frozenset[str]:
    """Components that a base may do without."""
    return _candidates(layout)[0].optional


def _described(layout: Layout) -> Description:
    candidates = _candidates(layout)
    if len(candidates) == 1:
        return candidates[0]
    folder = layout.file.parent
    found = [each for each in candidates if each.recognises(lambda name: read_config(folder, name))]
    assert len(found) == 1, f"{layout.file}: {[each.name for each in found]}"
    return found[0]


def _candidates(layout: Layout) -> list[Description]:
    """Families of a pipeline class; they have the same components."""
    known = descriptions()
    candidates = [description for description in known if description.pipeline == layout.pipeline]
    if not candidates:
        pipelines = ", ".join(sorted({description.pipeline for description in known}))
        message = f"is a {layout.pipeline}, which sdbuild cannot adapt; choose a base that is a {pipelines}"
        raise DataError([Problem(file=str(layout.file), message=message)])
    return candidates
