"""One tiny base for all tests of a session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tiny import make_pipeline


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base; read-only."""
    return make_pipeline(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    """A tiny base of the test's own."""
    return Path(shutil.copytree(base, tmp_path / "tiny"))
