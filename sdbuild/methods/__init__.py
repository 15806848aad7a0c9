"""Ways to adapt a model. To add one: its package, and a line in `METHODS`. Importing it is light."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdbuild.methods.contract import Method

METHODS: Mapping[str, str] = {
    "lora": "sdbuild.methods.lora",
    "loha": "sdbuild.methods.loha",
    "lokr": "sdbuild.methods.lokr",
    "glora": "sdbuild.methods.glora",
    "oft": "sdbuild.methods.oft",
    "ia3": "sdbuild.methods.ia3",
    "full": "sdbuild.methods.full",
    "partial": "sdbuild.methods.partial",
    "dreambooth": "sdbuild.methods.dreambooth",
    "dreambooth_lora": "sdbuild.methods.dreambooth_lora",
    "textual_inversion": "sdbuild.methods.textual_inversion",
    "pivotal": "sdbuild.methods.pivotal",
    "hypernetwork": "sdbuild.methods.hypernetwork",
}
"""By the recipe's `method.kind`: a package with `spec`, whose `SPEC` is read from recipes without torch, and with
`adapter`, whose `METHOD` adapts models."""


def load(kind: str) -> Method:
    """Import a method."""
    method: Method = importlib.import_module(f"{METHODS[kind]}.adapter").METHOD
    return method
