"""Where models of this machine are: a folder of the project, or the hub's local cache. Light."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdbuild.families import hub


def place(caption: Mapping[str, Any], project: Path) -> Path | None:
    """Folder of a captioner's model; None if it is not on this machine."""
    if caption["model"].startswith("./"):
        folder = project / caption["model"]
        return folder if folder.is_dir() else None
    return hub.part_folder(caption["model"], caption["revision"], ["."])


def bring(spec: Mapping[str, Any], project: Path) -> None:
    """Download the models that a captions step lacks.

    Raises:
        DataError: one cannot be downloaded; one line with the remedy.
    """
    for dataset in spec["datasets"]:
        caption = dataset["caption"]
        if caption["from"] == "transformers" and place(caption, project) is None:
            hub.download_captioner(caption["model"], caption["revision"])
