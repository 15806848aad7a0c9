"""Views of a step's inputs, read from disk for the oracle."""

from __future__ import annotations

from typing import Any

from sdbuild.build.oracle import Oracle
from sdbuild.data import views
from sdbuild.data.records import read_captions, read_images, read_skipped
from sdbuild.plan.model import Step, View


def read_view(view: View, step: Step, oracle: Oracle) -> Any:
    """What a step reads, as JSON-able data; its inputs are on disk.

    Raises:
        DataError: a file that an earlier step wrote is damaged.
    """
    project = oracle.project.root
    if view == "pictures":
        return {dep.path: views.pictures(oracle.stat.listing(dep.path)) for dep in step.deps}
    if view == "texts":
        return views.texts(read_captions(project / step.folder / "captions.jsonl"))
    rows = project / step.folder / "images.jsonl"
    images = read_images(rows)
    if view == "captions":
        skipped = len(read_skipped(rows))
        return {**views.texts_of(images, step.spec, project), **({"skipped": skipped} if skipped else {})}
    assert view == "pixels", view
    return views.pixels(images)
