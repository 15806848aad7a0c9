"""Whole trainings with each setting, on a toy: resumed is not told from undisturbed, and losses stay what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sdbuild.training.loop import Progress
from sdbuild.training.optimizers import OPTIMIZERS
from sdbuild.training.state import TrainingState
from tests.training import toy

GOLDEN = Path(__file__).with_name("golden.json")
"""Losses of ten steps; written anew by `python -m tests.training.test_settings` when results are meant to change."""

OBJECTIVES: dict[str, dict[str, Any]] = {
    "plain": {},
    "epsilon": {"prediction": "epsilon"},
    "x0": {"prediction": "x0"},
    "flow": {"prediction": "flow", "timesteps": {"kind": "logit-normal", "shift": 3.0}},
    "min-snr": {"weighting": {"kind": "min-snr"}},
    "min-snr epsilon": {"weighting": {"kind": "min-snr"}, "prediction": "epsilon"},
    "min-snr x0": {"weighting": {"kind": "min-snr"}, "prediction": "x0"},
    "debiased": {"weighting": {"kind": "debiased"}},
    "huber": {"loss": {"kind": "huber"}},
    "huber exponential": {"loss": {"kind": "huber", "schedule": "exponential"}},
    "huber constant": {"loss": {"kind": "huber", "schedule": "constant", "delta": 0.5}},
    "smooth-l1": {"loss": {"kind": "smooth-l1"}},
    "offset": {"noise": {"offset": 0.1}},
    "pyramid": {"noise": {"pyramid": 0.3}},
    "perturbation": {"noise": {"perturbation": 0.1}},
    "zero terminal SNR": {"noise": {"zero_terminal_snr": True}},
    "uniform": {"timesteps": {"kind": "uniform"}},
    "range": {"timesteps": {"kind": "uniform", "low": 0.2, "high": 0.5}},
    "mode": {"timesteps": {"kind": "mode"}},
    "cosmap": {"timesteps": {"kind": "cosmap"}},
    "ema": {"ema": {"decay": 0.9}},
    "rates": {"learning_rates": {"denoiser": 0.002}, "lora_plus_ratio": 4.0},
    "accumulate": {"accumulate": 2},
    "polynomial": {"schedule": "polynomial", "warmup": 2},
    "restarts": {"schedule": "restarts", "cycles": 2},
}
RATES = {"prodigy": 1.0, "came": 2e-4}
ROWS = OBJECTIVES | {name: {"optimizer": name, "learning_rate": RATES.get(name, 0.01)} for name in OPTIMIZERS}


class StoppedError(Exception):
    """A training that was killed."""


def losses(folder: Path, row: str) -> list[float]:
    return toy.run(folder, toy.settings_of(**ROWS[row])).losses


@pytest.mark.parametrize("row", ROWS)
def test_golden_losses(row: str, tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text())[row]
    assert losses(tmp_path, row) == pytest.approx(expected, rel=1e-3)


def test_settings_differ() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden.keys() == ROWS.keys()
    # What is in 32 bits or averaged behind the scenes has the losses of what it is made of.
    alike = {"ema", "adamw", "adamw-paged", "adamw-8bit-paged", "lion-8bit-paged"}
    told = [tuple(round(loss, 5) for loss in golden[row]) for row in ROWS if row not in alike]
    assert len(set(told)) == len(told)


def stopping(at: int) -> Progress:
    """A listener that stops the training before a step."""

    def progress(done: int, total: int, unit: str, **figures: float) -> None:
        if done == at:
            raise StoppedError

    return progress


def everything(state: TrainingState) -> dict[str, bytes]:
    """All that a checkpoint would hold, to the bit, but for the time."""
    snapshot = state.snapshot()
    held = {name: tensor.contiguous().view(-1).numpy().tobytes() for name, tensor in snapshot.tensors.items()}
    return {**held, "values": json.dumps(snapshot.values["optimizer"], sort_keys=True).encode()}


@pytest.mark.parametrize(
    "row", [*OPTIMIZERS, "ema", "accumulate", "rates", "restarts", "flow", "pyramid", "perturbation"]
)
def test_resumed_is_undisturbed(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdbuild.training.loop.REPORT_SECONDS", 0)
    monkeypatch.setattr("sdbuild.training.checkpoint.SHARE", 1e9)
    settings = toy.settings_of(**ROWS[row])
    whole = everything(toy.run(tmp_path / "whole", settings))
    for stop in (3, 7):
        with pytest.raises(StoppedError):
            toy.run(tmp_path / "stopped", settings, stopping(stop))
    resumed = toy.run(tmp_path / "stopped", settings)
    assert resumed.computed == 4
    assert everything(resumed) == whole


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    for optimizer in ("sgd", "adamw"):
        large = toy.run(tmp_path / f"{optimizer} large", toy.settings_of(optimizer=optimizer, batch=6))
        for batch, accumulate in ((3, 2), (2, 3), (1, 6)):
            settings = toy.settings_of(optimizer=optimizer, batch=batch, accumulate=accumulate)
            parts = toy.run(tmp_path / f"{optimizer} {batch}", settings)
            assert parts.losses == pytest.approx(large.losses, rel=1e-5)
            for name, tensor in parts.adapter.state().items():
                assert torch.allclose(tensor, large.adapter.state()[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("row", ["ema", "adamw-schedule-free"])
def test_what_is_kept_is_the_average_and_training_goes_on_from_the_weights(row: str, tmp_path: Path) -> None:
    state = toy.run(tmp_path, toy.settings_of(**ROWS[row]))
    before = everything(state)
    with state.kept():
        inside = {name: tensor.clone() for name, tensor in state.adapter.state().items()}
    assert everything(state) == before
    for name, tensor in state.adapter.state().items():
        assert not torch.equal(inside[name], tensor)
        if state.average is not None:
            assert torch.equal(inside[name], state.average.weights[name])
        else:
            (parameter,) = (each for own, each in state.adapter.parameters() if own == name)
            z = state.optimizer.state[parameter]["z"]
            # y = 0.1 z + 0.9 x
            assert torch.allclose(0.1 * z + 0.9 * inside[name], tensor, atol=1e-6)


def test_without_an_average_the_weights_are_kept(tmp_path: Path) -> None:
    state = toy.run(tmp_path, toy.settings_of())
    before = everything(state)
    with state.kept():
        assert everything(state) == before


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = {row: [round(loss, 7) for loss in losses(Path(folder) / row, row)] for row in ROWS}
    GOLDEN.write_text("{\n" + ",\n".join(f"  {json.dumps(row)}: {found[row]}" for row in found) + "\n}\n")
