"""Builds that are killed, run twice at once, or whose steps fail."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import BIN, Work, environment
from tests.tiny import make_pictures


def start(work: Work, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(BIN / "doit"), *arguments],
        cwd=work.root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def workers(work: Work) -> list[int]:
    """Processes that work in a project."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if Path(os.readlink(entry / "cwd")) == work.root and b"sdbuild" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def half_files(work: Work) -> list[Path]:
    return [path for path in (work.root / "build").rglob("*") if path.name.endswith(".tmp")]


def checksums(work: Work) -> dict[str, str]:
    """Content of everything that is wanted, but for the seconds that a training took."""
    return {
        str(path.relative_to(work.root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((work.root / "build").rglob("*"))
        if path.is_file() and path.name not in ("metrics.json", "recipe.json")
    }


@pytest.fixture(scope="module")
def undisturbed(built_template: Path) -> dict[str, str]:
    return checksums(Work(built_template))


@pytest.mark.row("kill the build at any moment, then `doit`")
@pytest.mark.row("kill the build at any moment")
@pytest.mark.parametrize("moment", range(10))
def test_killed_at_a_random_moment(work: Work, undisturbed: dict[str, str], moment: int) -> None:
    process = start(work)
    time.sleep(random.Random(moment).uniform(0.3, 9.0))
    process.kill()
    process.communicate()
    for _ in range(50):
        if not workers(work):
            break
        time.sleep(0.1)
    assert workers(work) == [], "a worker outlived its build"
    work.doit()
    assert checksums(work) == undisturbed
    assert half_files(work) == []
    assert "up to date" in work.dvc("status").out


@pytest.mark.parametrize("left", [b"", b'{"read": {"/data": [{"pi'])
def test_killed_while_dvc_wrote_its_list_of_locks(built: Work, left: bytes) -> None:
    shutil.rmtree(built.root / "build/cat/samples")
    built.write(".dvc/tmp/rwlock", left)
    assert "restored without running: cat:samples" in built.doit().out
    assert "up to date" in built.dvc("status").out


def test_killed_while_dvc_brought_something_back(built: Work) -> None:
    shutil.rmtree(built.root / "build/cat/samples")
    left = built.write("build/cat/.fo5ED8NDnwPBJXZPuP4Rtg.tmp", b"half")
    own = built.write("build/cat/.notes.tmp", b"of the user")
    assert "restored without running: cat:samples" in built.doit().out
    assert not left.exists()
    assert own.exists()


def test_interrupted_build_says_so_and_goes_on(work: Work, undisturbed: dict[str, str]) -> None:
    work.recipe(train={"steps": 4, "batch": 2})
    process = start(work)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("cat:train"):
            break
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in out
    work.doit()
    assert checksums(work) == undisturbed


@pytest.mark.row("start two builds at once")
def test_two_builds_at_once(work: Work, undisturbed: dict[str, str]) -> None:
    first, second = start(work), start(work)
    outs = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outs
    assert sum("cat:train  done" in out for out in outs) == 1
    assert any("waiting for another build" in out for out in outs)
    assert checksums(work) == undisturbed


def test_steps_of_two_recipes_in_parallel(work: Work) -> None:
    work.recipe("dog", train={"steps": 3})
    result = work.doit("-n", "2")
    assert {"cat:train", "dog:train"} < set(result.ran)
    assert "up to date" in work.dvc("status").out
    assert work.doit().ran == {}


def test_a_failed_step_leaves_the_last_good_outs(built: Work) -> None:
    before = checksums(built)
    (built.root / "datasets/cats/0003.png").write_bytes(b"no picture")
    result = built.doit(code=2)
    assert "datasets/cats/0003.png" in result.err
    assert checksums(built) == before
    make_pictures(built.root / "datasets/cats", 4, size=32)
    assert built.doit().ran == {}


def test_input_that_changes_under_a_step_is_not_recorded(work: Work) -> None:
    make_pictures(work.root / "datasets/cats", 200, size=32)
    process = start(work, "cat:latents")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("cat:latents"):
            break
    path = work.root / "datasets/cats/0150.png"
    path.write_bytes((work.root / "datasets/cats/0151.png").read_bytes())
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 2, out
    assert "datasets/cats/0150.png: changed while it was being built" in out
    assert set(work.doit("cat:latents").ran) == {"cat:images", "cat:latents"}
