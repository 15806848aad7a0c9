"""Adapters for tests, from the section `method` of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from sdbuild import methods
from sdbuild.families.contract import TextEncoder
from sdbuild.methods.contract import Adapter, Networks
from sdbuild.recipe.methods import method_of


def inject(
    modules: Mapping[Any, nn.Module], section: Mapping[str, Any], *, text: TextEncoder | None = None, seed: int = 0
) -> Adapter:
    """Add a fresh adapter to networks."""
    method = method_of(section)
    base = Networks(modules=modules, text=text if "text" in method.sides else None)
    return methods.load(method.kind).inject(base, method, seed=seed)
