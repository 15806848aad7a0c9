"""The environment of processes that run steps: threads that wait sleep, unless the user says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sdbuild.build.processes import Layout
from sdbuild.build.worker import step_environment


def test_threads_that_wait_sleep() -> None:
    assert step_environment({"A": "1"}).items() >= {"A": "1", "OMP_WAIT_POLICY": "PASSIVE"}.items()


def test_what_the_user_says_stays() -> None:
    own = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "5"}
    assert step_environment(own).items() >= own.items()


def test_processes_of_a_step_have_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in step_environment({}).items():
        monkeypatch.setenv(name, value)
    assert Layout(count=2, settings={}).environment(1, "")["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP says what it has read")
@pytest.mark.parametrize("own", ["PASSIVE", "ACTIVE"])
def test_torch_reads_it(own: str) -> None:
    """As `sdbuild step` sets it: before torch is loaded."""
    code = "import os, sdbuild.build.worker as worker; os.environ.update(worker.step_environment()); import torch"
    said = {"OMP_WAIT_POLICY": own} if own == "ACTIVE" else {}
    others = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env = {**others, **said, "OMP_DISPLAY_ENV": "TRUE"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert f"OMP_WAIT_POLICY = '{own}'" in done.stderr
