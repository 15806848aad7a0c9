"""Faults of a running build, as a user meets them: one clear word, and the last good things are kept."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sdbuild.build.interrupts import Interrupted, interrupt_message
from sdbuild.plan.compile import plan
from sdbuild.plan.model import StepKind
from sdbuild.recipe.load import load_recipe
from tests.build.test_kill import start
from tests.conftest import BIN, Work

LONG = {"steps": 60, "checkpoint_every": 1}
CHECKPOINTS = ".sdbuild/runs/cat/train"


def checkpoints(work: Work) -> set[str]:
    return {path.name for path in (work.root / CHECKPOINTS).glob("step-*")}


def when_training(work: Work, change: Callable[[subprocess.Popen[str]], object]) -> tuple[int, str]:
    """Build, do something once there is a new checkpoint, and return how the build ended and what it said."""
    before = checkpoints(work)
    process = start(work)
    while process.poll() is None and not checkpoints(work) - before:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[0]
    change(process)
    said, _ = process.communicate(timeout=120)
    assert "Traceback" not in said
    return process.returncode, said


def test_a_training_that_breaks_down(built: Work) -> None:
    before = built.adapter()
    diverging = {"steps": 60, "learning_rate": 10, "optimizer": "sgd", "clip": None}
    built.recipe(method={"alpha": 16_384}, train=diverging)
    result = built.doit(code=1)
    what, remedy, kept = [line for line in result.err.splitlines() if line][:3]
    assert "training broke down at step " in what
    assert "of 60: " in what
    assert re.search(r"'sks [^']*' \(datasets/cats/\d+\.png\)", what), "which picture, and where it lies"
    assert "lower train.learning_rate (" in remedy
    assert kept.startswith(("the state after step ", "no state was saved yet"))
    assert built.adapter() == before


def test_stopped_then_its_checkpoint_is_damaged(built: Work, tmp_path: Path) -> None:
    built.recipe(train=LONG)
    whole = built.copy(tmp_path / "whole")
    whole.doit("cat:train")
    code, said = when_training(built, lambda process: process.send_signal(signal.SIGINT))
    assert code == 130, said
    assert re.search(r"stopped in cat:train after step \d+ of 60, which is saved; doit resumes there", said)
    newest = sorted((built.root / CHECKPOINTS).glob("step-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    result = built.doit("cat:train")
    assert f"cat:train: {newest.name} is damaged and is not used; going on from the " in result.text
    assert built.adapter() == whole.adapter()
    assert not (built.root / CHECKPOINTS).exists()


def test_stopped_without_patience(built: Work) -> None:
    """A second Ctrl-C waits no longer, and what is said then is true."""
    built.recipe(train=LONG)

    def twice(process: subprocess.Popen[str]) -> None:
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)

    code, said = when_training(built, twice)
    assert code == 130, said
    [line] = [line for line in said.splitlines() if line.startswith("stopped")]
    found = re.search(r"after step (\d+) of 60, (which is saved|the last checkpoint)", line)
    assert found, line
    assert built.doit("cat:train").ran == {"cat:train": 60 - int(found[1])}


def test_what_an_interrupt_leaves_in_words(built: Work, tmp_path: Path) -> None:
    recipe = load_recipe(built.root / "recipes/cat.yaml", built.root)
    steps = {step.kind: step for step in plan(recipe)}
    cut, waited = Interrupted(cut=True), Interrupted()
    (tmp_path / "step-000000040.safetensors").touch()
    nothing = tmp_path / "nothing"
    rows: list[tuple[StepKind, KeyboardInterrupt, Path, tuple[int, int] | None, str]] = [
        ("train", Interrupted("after step 4 of 9, which is saved"), nothing, (4, 9), "saved; doit resumes there"),
        ("train", cut, nothing, (37, 80), "; nothing was saved (37 of 80 are lost), so doit starts it again"),
        ("train", cut, tmp_path, (57, 80), "resumes after step 40 of 80, the last checkpoint, and the steps after it"),
        ("train", cut, tmp_path, (40, 80), "resumes after step 40 of 80, the last checkpoint, and nothing after it"),
        ("train", cut, tmp_path, (0, 0), "; nothing was saved, so doit starts it again"),
        ("latents", waited, nothing, (3, 9), "stopped in cat:latents; doit resumes there"),
        (
            "latents",
            cut,
            nothing,
            (3, 9),
            "without saving; doit computes the last items again, earlier ones are",
        ),
        ("samples", waited, nothing, (3, 8), "; nothing was saved (3 of 8 are lost), so doit starts it again"),
        ("train", KeyboardInterrupt(), nothing, None, "stopped in cat:train; doit resumes there"),
    ]
    for kind, error, folder, done, words in rows:
        assert words in interrupt_message(steps[kind], folder, error, done), (kind, done)


def test_a_picture_that_changes_under_a_training(built: Work) -> None:
    before, lock = built.adapter(), built.read("dvc.lock")
    built.recipe(train=LONG)
    picture = built.read("datasets/cats/0001.png")
    code, said = when_training(built, lambda process: built.write("datasets/cats/0001.png", b"no picture"))
    assert code == 1, said
    assert "cat:train: its inputs changed while it ran, so its result was not kept; run doit again" in said
    assert built.adapter() == before
    assert built.read("dvc.lock") == lock
    built.write("datasets/cats/0001.png", picture)
    assert built.doit("cat:train").ran == {"cat:train": 0}, "the training was lost"
    assert built.adapter() != before


def test_an_edited_out_is_no_input(built: Work) -> None:
    """Captions that somebody edits under a training: the oracle knows what they should be, the disk what they are."""
    before, lock = built.adapter(), built.read("dvc.lock")
    built.recipe(train=LONG)
    captions = built.read("build/cat/captions.jsonl")
    edited = captions.replace(b"sks", b"skz")
    code, said = when_training(built, lambda process: built.write("build/cat/captions.jsonl", edited))
    assert code == 1, said
    assert "cat:train: its inputs changed while it ran" in said
    assert "(build/cat/captions.jsonl)" in said
    assert built.adapter() == before
    assert built.read("dvc.lock") == lock
    assert built.doit("cat:train").ran == {"cat:train": 0}, "the training was lost"
    assert built.read("build/cat/captions.jsonl") == captions
    assert b"skz" not in built.adapter()
    assert built.doit("cat:train").ran == {}


def small_disk(work: Work, folder: str, kilobytes: int) -> list[str] | None:
    """Command that builds with a real, small disk at a folder; None where the system does not let us have one."""
    (work.root / folder).mkdir(parents=True, exist_ok=True)
    mount = f"mount -t tmpfs -o size={kilobytes}k tmpfs {folder}"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None:
        return None
    if subprocess.run([*command, mount], cwd=work.root, check=False, capture_output=True).returncode:
        return None
    return [*command, f"{mount} && exec {BIN / 'doit'} cat:train"]


@pytest.mark.parametrize(
    ("folder", "word", "left"),
    [
        (CHECKPOINTS, "no room for a checkpoint of 1 MiB after step ", 5),
        (".sdbuild/tmp", "No space left on device (", 0),
    ],
    ids=["checkpoint", "out"],
)
def test_a_full_disk(built: Work, folder: str, word: str, left: int) -> None:
    before, lock = built.adapter(), built.read("dvc.lock")
    built.recipe(train={"steps": 5, "checkpoint_every": 1})
    command = small_disk(built, folder, 16)
    if command is None:
        pytest.skip("no user namespaces here to mount a small disk in")
    result = built.run(*command, code=1)
    assert word in result.err
    assert "free some space (`sdbuild gc` lists what can go)" in result.err
    assert built.adapter() == before
    assert built.read("dvc.lock") == lock
    assert built.doit("cat:train").ran == {"cat:train": left}


def test_memory_that_runs_out(built: Work) -> None:
    before = built.adapter()
    many = [{"path": "datasets/cats", "trigger": "sks", "holdout": 1, "repeats": 9000}]
    built.recipe(datasets=many, train={"steps": 1, "batch": 16384})
    result = built.run("sh", "-c", f"ulimit -v 3500000 && exec {BIN / 'doit'} cat:train", code=1)
    assert "training ran out of memory: " in result.err
    assert "train.batch: 8192 with train.accumulate: 2" in result.err
    assert result.err.index("train.batch") < result.err.index("train.precision") < result.err.index("images.resolution")
    assert built.adapter() == before
