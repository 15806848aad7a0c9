"""DVC as a citizen: its own commands agree with doit."""

from __future__ import annotations

import shutil

from sdbuild.build.cache import LocalCache
from sdbuild.build.engine import Engine
from sdbuild.build.project import Project
from sdbuild.console import Console
from sdbuild.recipe.load import load_project
from tests.conftest import Work


def test_status_is_clean_and_repro_does_nothing(built: Work) -> None:
    assert "up to date" in built.dvc("status").out
    assert "Data and pipelines are up to date" in built.dvc("repro").out
    assert built.git("status", "--porcelain").out == ""


def test_repro_builds_what_doit_would(built: Work) -> None:
    """The command of a stage is the worker that doit uses: the result is the same, and doit accepts it."""
    adapter = built.adapter()
    (built.root / "dvc.lock").unlink()
    shutil.rmtree(built.root / ".dvc/cache")
    built.dvc("repro", "--no-run-cache")
    assert built.adapter() == adapter
    assert built.doit().ran == {}


def test_lost_lock_is_rebuilt_from_the_run_cache(built: Work) -> None:
    lock = built.read("dvc.lock")
    (built.root / "dvc.lock").unlink()
    assert built.doit().ran == {}
    assert built.read("dvc.lock") == lock


def test_our_key_of_a_run_is_dvcs(built: Work) -> None:
    project = Project(built.root)
    engine = Engine(project, load_project(built.root), Console())
    cache = LocalCache(project)
    for name, step in engine.steps.items():
        verdict = engine.oracle.judge(name)
        parameters = {**step.spec, "reads": dict(verdict.reads)}
        entry = cache.find_run(step, verdict.deps, parameters)
        assert entry is not None, name
        assert entry == engine.oracle.entry(step)
    engine.close()


def test_a_stranger_s_dvc_yaml_is_kept(work: Work) -> None:
    work.write("dvc.yaml", "stages:\n  mine:\n    cmd: echo\n")
    result = work.doit()
    assert "dvc.yaml.before-sdbuild" in result.text
    assert b"mine" in work.read("dvc.yaml.before-sdbuild")
