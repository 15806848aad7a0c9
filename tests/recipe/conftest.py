from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one dataset's folder and no recipe."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "datasets" / "cat").mkdir(parents=True)
    return tmp_path
