"""sdbuild's tasks for doit: `doit` builds every recipe, `doit list` shows them."""

from pathlib import Path

from sdbuild.build.tasks import DOIT_CONFIG, load_tasks

__all__ = ["DOIT_CONFIG", "task_sdbuild"]


def task_sdbuild():  # type: ignore[no-untyped-def]
    """Every step of every recipe."""
    yield from load_tasks(Path(__file__).parent)
