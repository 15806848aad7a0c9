"""Trainings that go wrong: one word with step, picture and setting, and the last good state is kept."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from sdbuild.errors import StepError
from sdbuild.training.guard import WINDOW
from tests.training import toy

RISING: dict[str, Any] = {"steps": 300, "learning_rate": 0.1, "warmup": 299, "checkpoint_every": 40}
"""Well-behaved at first; then the rate becomes too much."""


@pytest.fixture(autouse=True)
def all_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of the toy are so quick that checkpoints would be put off."""
    monkeypatch.setattr("sdbuild.training.checkpoint.SHARE", 1e9)


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def test_a_rising_loss_stops_and_the_last_good_state_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "nothing_of", lambda *_: lambda step: math.inf)  # as for a base that is far better
    with pytest.raises(StepError) as caught:
        toy.run(tmp_path / "run", toy.settings_of(**RISING))
    what, remedy, kept = str(caught.value).splitlines()
    assert what.startswith("training broke down at step ")
    step = int(what.split()[5])
    assert 2 * WINDOW <= step < 300
    assert f"of 300: the mean loss of the last {WINDOW} steps is " in what
    assert any(f"highest for '' ({name})" in what for name in map(str, range(6)))
    assert remedy.startswith(f"lower train.learning_rate ({0.1 * step / 300:g} there), lengthen train.warmup")
    newest = checkpoints(tmp_path / "run")[-1]
    losses = load_file(newest)["losses"]
    assert kept == f"the state after step {len(losses)} is kept"
    assert losses[-10:].mean() <= 3 * losses[:WINDOW].mean(), "a state that had broken down took a good one's place"

    # Begun anew from that state, it stops at the same step with the same word.
    with pytest.raises(StepError) as again:
        toy.run(tmp_path / "run", toy.settings_of(**RISING))
    assert str(again.value).splitlines()[0].split(";")[0] == what.split(";")[0]

    # Without a limit it goes on from there, and it is the limit alone that stopped it.
    state = toy.run(tmp_path / "run", toy.settings_of(**RISING, rising_loss=None))
    assert state.computed == 300 - len(losses)
    whole = toy.run(tmp_path / "whole", toy.settings_of(**RISING, rising_loss=None))
    assert whole.losses == state.losses


def test_a_loss_that_is_too_high_from_the_start_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the first steps, whose mean is then no measure of anything."""
    settings = toy.settings_of(steps=300, learning_rate=1.0)
    with pytest.raises(StepError) as caught:
        toy.run(tmp_path / "run", settings)
    what, _, kept = str(caught.value).splitlines()
    assert what.startswith("training broke down at step 10 of 300: the mean loss of the last 10 steps is ")
    assert "times that of predicting nothing at all; it is highest for '' (" in what
    assert kept == "no state was saved yet", "one that had broken down was"
    assert toy.run(tmp_path / "all", toy.settings_of(steps=300, learning_rate=1.0, rising_loss=None)).step == 300

    # What predicts nothing has that loss, so a training that learns nothing goes on.
    nothing_of = toy.begin(settings)[0].nothing_of
    assert nothing_of is not None
    monkeypatch.setattr(toy.Factors, "predict", lambda self, noisy: 0 * (self.a.sum() + self.b.sum()) + 0 * noisy)
    idle = toy.run(tmp_path / "idle", toy.settings_of(steps=20, rising_loss=1.001))
    assert idle.losses == pytest.approx([nothing_of(step) for step in range(20)], rel=1e-6)


def test_a_gradient_that_is_not_finite_stops(tmp_path: Path) -> None:
    late = {"steps": 300, "warmup": 299, "rising_loss": None}
    settings = toy.settings_of(optimizer="sgd", learning_rate=10.0, clip=None, **late)
    with pytest.raises(StepError) as caught:
        toy.run(tmp_path, settings)
    what, remedy, kept = str(caught.value).splitlines()
    assert "is not finite for '' (" in what or "the loss is" in what
    assert "set train.clip" in remedy
    newest = checkpoints(tmp_path)[-1]
    assert kept == f"the state after step {int(newest.stem.split('-')[1])} is kept"
    assert all(tensor.isfinite().all() for tensor in load_file(newest).values())


def test_stopped_just_when_it_breaks_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the last step is read when Ctrl-C comes: a state that is not good is not saved."""
    monkeypatch.setattr("sdbuild.training.loop.REPORT_SECONDS", 0)
    predict = toy.Factors.predict
    steps: list[int] = []

    def predicted(self: toy.Factors, noisy: Tensor) -> Tensor:
        steps.append(len(steps))
        return predict(self, noisy) * (math.nan if steps[-1] == 2 else 1)

    def stop(done: int, total: int, unit: str, **figures: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(toy.Factors, "predict", predicted)
    with pytest.raises(StepError, match=r"^training broke down at step 3 of 10: the loss is nan") as caught:
        toy.run(tmp_path, toy.settings_of(), stop)
    assert str(caught.value).splitlines()[-1] == "the state after step 2 is kept"
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000002.safetensors"]


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flush, flushed = os.fsync, []

    def full(descriptor: int) -> None:
        flushed.append(descriptor)
        if len(flushed) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StepError) as caught:
            toy.run(tmp_path / "full", toy.settings_of())
    assert str(caught.value) == (
        "no room for a checkpoint of 1 MiB after step 6: No space left on device; the state after step 4 is kept\n"
        "free some space (`sdbuild gc` lists what can go), then doit resumes there"
    )
    assert [path.name for path in (tmp_path / "full").iterdir() if ".tmp" in path.name] == []
    state = toy.run(tmp_path / "full", toy.settings_of())
    assert state.computed == 6
    assert state.losses == toy.run(tmp_path / "whole", toy.settings_of()).losses


def test_a_damaged_checkpoint_without_a_predecessor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy.run(tmp_path, toy.settings_of(steps=2))
    (only,) = checkpoints(tmp_path)
    only.write_bytes(only.read_bytes()[:-7])
    assert toy.run(tmp_path, toy.settings_of(steps=2)).computed == 2
    assert capsys.readouterr().out == f"{only.name} is damaged and is not used; going on from the beginning\n"
