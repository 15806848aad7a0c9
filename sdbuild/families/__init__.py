"""Model families: one module each, loaded when first used. Importing this package is light."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from sdbuild.errors import DataError, Problem
from sdbuild.families.layout import Layout, read_layout

if TYPE_CHECKING:
    from sdbuild.families.contract import Family

FAMILIES = {"sd1": "sdbuild.families.sd1"}
"""Each module has a function `family(folder, layout)`."""

PIPELINES = {"StableDiffusionPipeline": "sd1"}
"""Family by the pipeline class that `model_index.json` names."""


def detect(folder: Path) -> str:
    """Name the family of a base from its `model_index.json`.

    Raises:
        DataError: it is no text-to-image model of a known family.
    """
    return _family_of(read_layout(folder))


def load(folder: Path) -> Family:
    """Bind a base's family to its folder; weights are loaded when they are asked for.

    Raises:
        DataError: it is of no known family, or damaged; lists all problems.
    """
    layout = read_layout(folder)
    module = importlib.import_module(FAMILIES[_family_of(layout)])
    family: Family = module.family(folder, layout)
    return family


def _family_of(layout: Layout) -> str:
    name = PIPELINES.get(layout.pipeline)
    if name is None:
        known = ", ".join(sorted(PIPELINES))
        message = f"is a {layout.pipeline}, which sdbuild cannot adapt; choose a base that is a {known}"
        raise DataError([Problem(file=str(layout.file), message=message)])
    return name
