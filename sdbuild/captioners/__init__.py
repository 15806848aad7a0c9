"""Captions by vision models: what is asked, by whom, and how answers are kept. Light; models come when asked."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdbuild.captioners.contract import Captioner

CAPTIONERS: dict[str, str] = {
    "anthropic": "sdbuild.captioners.anthropic",
    "openai": "sdbuild.captioners.openai",
    "transformers": "sdbuild.captioners.transformers",
}
"""Modules by the recipe's `caption: {from: …}`; each has `captioner(settings, project, store)`."""


def load(settings: Mapping[str, Any], project: Path, store: Path) -> Captioner:
    """Make the captioner of some settings.

    Raises:
        StepError: its client or its key is missing.
        DataError: its model is.
    """
    captioner: Captioner = importlib.import_module(CAPTIONERS[settings["from"]]).captioner(settings, project, store)
    return captioner
