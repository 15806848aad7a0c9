"""sdbuild's tasks for doit: `doit` builds every recipe, `doit list` shows them."""

from pathlib import Path

from sdbuild.build.tasks import doit_config, load_tasks

PROJECT = Path(__file__).parent
DOIT_CONFIG = doit_config(PROJECT)


def task_sdbuild():  # type: ignore[no-untyped-def]
    """Every step of every recipe."""
    yield from load_tasks(PROJECT)
