"""Where a base comes from: folders and the hub's cache; only its content counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.conftest import Work
from tests.tiny import make_pipeline

FIRST, SECOND = "1" * 40, "2" * 40


def hub(work: Work, folder: Path) -> dict[str, str]:
    """A hub cache that holds the project's base as ``org/tiny``, and the environment to find it."""
    cache = folder / "hub"
    root = cache / "models--org--tiny"
    shutil.copytree(work.root / "base", root / "snapshots" / FIRST)
    (root / "refs").mkdir()
    (root / "refs/main").write_text(FIRST)
    return {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}


def test_the_same_base_from_a_folder_and_from_the_hub(built: Work, tmp_path: Path) -> None:
    environment = hub(built, tmp_path)
    built.recipe(base={"model": "org/tiny"})
    assert built.doit(env=environment).ran == {}
    pinned = json.loads(built.read("build/cat/recipe.json"))["base"]
    assert pinned == {"model": "org/tiny", "revision": None, "commit": FIRST}


def test_a_build_stays_at_the_commit_that_was_resolved_first(built: Work, tmp_path: Path) -> None:
    environment = hub(built, tmp_path)
    built.recipe(base={"model": "org/tiny"})
    built.doit(env=environment)
    root = tmp_path / "hub/models--org--tiny"
    make_pipeline(root / "snapshots" / SECOND, seed=5)
    (root / "refs/main").write_text(SECOND)
    assert built.doit(env=environment).ran == {}
    built.recipe(base={"model": "org/tiny", "revision": SECOND})
    assert set(built.doit(env=environment).ran) == {"cat:latents", "cat:text", "cat:train", "cat:samples"}


def test_a_base_that_cannot_be_had(work: Work, tmp_path: Path) -> None:
    work.recipe(base={"model": "org/absent"})
    result = work.doit(code=2, env={"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"})
    assert "org/absent" in result.err
    assert len(result.err.strip().splitlines()) <= 2


def test_a_base_that_cannot_be_had_stops_no_other_recipe(built: Work, tmp_path: Path) -> None:
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    built.recipe("other", base={"model": "org/absent"})
    built.recipe("third", base={"model": "base", "variant": "fp16"})
    assert built.doit("cat", env=environment).ran == {}
    assert built.doit("cat:train", env=environment).ran == {}
    result = built.doit(code=2, env=environment)
    assert result.out.count("downloading the base") == 1
    absent, variant = result.err.splitlines()
    assert absent.startswith("base org/absent: is not on this machine and the hub cannot be reached")
    assert variant == ("recipes/third.yaml:3: base.variant: base has no copies of its weights called fp16; remove it")


def test_a_moved_base_builds_nothing(built: Work) -> None:
    (built.root / "base").rename(built.root / "model")
    built.recipe(base={"model": "model"})
    assert built.doit().ran == {}
