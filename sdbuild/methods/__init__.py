"""Ways to adapt a model. To add one: its module, and a line in `METHODS`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from sdbuild.methods.contract import Method

METHODS: Mapping[str, str] = {"lora": "sdbuild.methods.lora"}
"""By the recipe's `method.kind`: the module whose `METHOD` adapts models."""


def load(kind: str) -> Method:
    """Import a method."""
    method: Method = importlib.import_module(METHODS[kind]).METHOD
    return method
