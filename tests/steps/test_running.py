"""What a training does on the way: adapters kept, validation, early stop; and that none of it changes the result."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sdbuild.errors import StepError
from sdbuild.steps.contract import Inputs, Items
from sdbuild.training.along import kept_steps
from sdbuild.training.examples import Batch
from sdbuild.training.validation import Validation
from tests.steps.test_train import build, digests
from tests.tiny import make_pipeline
from tests.training.material import Listener, make_inputs, make_spec

DIFFUSERS = "pytorch_lora_weights.safetensors"
LOOKING: dict[str, Any] = {"validate_every": 2, "save_every": 2}
STOPPING: dict[str, Any] = {
    "steps": 9,
    "learning_rate": 0.5,
    "validate_every": 1,
    "early_stop": {"patience": 2},
    "save_every": 1,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"), base, holdout=2)


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is told and a checkpoint written after every step."""
    monkeypatch.setattr("sdbuild.training.loop.REPORT_SECONDS", 0)
    monkeypatch.setattr("sdbuild.training.checkpoint.SHARE", 1e9)


def rows(folder: Path) -> list[tuple[int, float, float]]:
    head, *lines = (folder / "validation.csv").read_text().splitlines()
    assert head == "step,adapter,base"
    cells = [line.split(",") for line in lines]
    return [(int(step), float(adapter), float(base)) for step, adapter, base in cells]


def metrics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


@pytest.mark.parametrize(
    "settings",
    [{}, {"ema": {"decay": 0.5}}, {"optimizer": "adamw-schedule-free"}],
    ids=["plain", "ema", "schedule-free"],
)
def test_looking_on_changes_nothing_and_shows_what_shorter_trainings_give(
    tmp_path: Path, inputs: Inputs, settings: dict[str, Any]
) -> None:
    settings = {**settings, "method": {"dropout": 0.2}, "caption_dropout": 0.3}
    build(make_spec(**settings), inputs, Listener(tmp_path / "plain"))
    build(make_spec(**settings, **LOOKING), inputs, Listener(tmp_path / "looking"))
    build(make_spec(**settings, steps=4), inputs, Listener(tmp_path / "short"))
    plain, looking, short = (tmp_path / name / "out" for name in ("plain", "looking", "short"))
    one, other = digests(plain), digests(looking)
    assert one.keys() < other.keys()
    assert {name: digest for name, digest in other.items() if name in one} == one
    for step, name in ((2, "step-000002"), (4, "step-000004")):
        assert {path.name for path in (looking / "adapters" / name).iterdir()} == {
            DIFFUSERS,
            f"tiny-{step:06d}.safetensors",
        }
    for own, early in (("tiny", "tiny-000004"), (DIFFUSERS[:-12], DIFFUSERS[:-12])):
        expected = load_file(short / f"adapter/{own}.safetensors")
        found = load_file(looking / f"adapters/step-000004/{early}.safetensors")
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert json.loads((looking / "adapters/index.json").read_text()) == {
        "version": 1,
        "steps": 6,
        "result": 6,
        "adapters": [{"step": step, "folder": f"step-{step:06d}"} for step in (2, 4)],
    }
    with safe_open(looking / "adapters/step-000002/tiny-000002.safetensors", framework="pt") as file:
        said = file.metadata()
    assert (said["sdbuild.step"], said["ss_steps"], said["modelspec.title"]) == ("2", "2", "tiny-000002")
    losses = [metrics(folder)["validation_loss"] for folder in (short, plain)]
    found_rows = rows(looking)
    assert [step for step, _, _ in found_rows] == [2, 4, 6]
    assert [adapter for _, adapter, _ in found_rows[1:]] == pytest.approx([loss["adapter"] for loss in losses])
    assert [base for _, _, base in found_rows] == pytest.approx([losses[0]["base"]] * 3)


@pytest.mark.parametrize("settings", [LOOKING, STOPPING], ids=["looking", "stopping"])
@pytest.mark.parametrize("error", [RuntimeError("stopped"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_resumed_it_leaves_the_files_of_one_never_stopped(
    tmp_path: Path, inputs: Inputs, settings: dict[str, Any], error: BaseException, every_step: None
) -> None:
    spec = make_spec(**{**settings, "save_every": 1, "save_most": 2})
    build(spec, inputs, Listener(tmp_path / "whole"))
    for number, stop in enumerate((1, 2, 3, 3)):
        with pytest.raises(type(error)):
            build(spec, inputs, Listener(tmp_path / "stopped", stop_at=stop, error=error), f"out{number}")
    assert build(spec, inputs, Listener(tmp_path / "stopped")).computed > 0
    assert digests(tmp_path / "stopped/out") == digests(tmp_path / "whole/out")
    again = Listener(tmp_path / "stopped")
    assert build(spec, inputs, again, "again").computed == 0
    assert digests(tmp_path / "stopped/again") == digests(tmp_path / "whole/out")


def test_the_best_state_is_kept_and_said(tmp_path: Path, inputs: Inputs) -> None:
    listener = Listener(tmp_path)
    items = build(make_spec(**STOPPING), inputs, listener)
    out = tmp_path / "out"
    found = rows(out)
    best, lowest, base = min(found, key=lambda row: row[1])
    taken = best + 2
    assert taken < 9, "this training was to get worse"
    assert [step for step, _, _ in found] == list(range(1, taken + 1))
    assert items == Items(total=taken, computed=taken)
    told = metrics(out)
    assert (told["steps"], told["best_step"], told["stopped_early"]) == (taken, best, True)
    assert told["validation_loss"] == pytest.approx({"base": base, "adapter": lowest})
    kept = load_file(out / "adapter/tiny.safetensors")
    then = load_file(out / f"adapters/step-{best:06d}/tiny-{best:06d}.safetensors")
    last = load_file(out / f"adapters/step-{taken:06d}/tiny-{taken:06d}.safetensors")
    assert all(torch.equal(kept[key], tensor) for key, tensor in then.items())
    assert not all(torch.equal(kept[key], tensor) for key, tensor in last.items())
    with safe_open(out / "adapter/tiny.safetensors", framework="pt") as file:
        assert (file.metadata()["ss_steps"], file.metadata()["sdbuild.step"]) == (str(best), str(best))
    assert json.loads((out / "adapters/index.json").read_text())["result"] == best
    (word,) = listener.warnings
    assert word.startswith(f"stopped after step {taken} of 9: in 2 validations the loss did not fall below ")
    assert f"that of step {best}, whose adapter is kept" in word
    assert len((out / "loss.csv").read_text().splitlines()) == taken + 1


def test_ctrl_c_in_a_validation(
    tmp_path: Path, inputs: Inputs, every_step: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for the validation's end, and leaves nothing half done."""
    spec = make_spec(ema={"decay": 0.5}, **LOOKING)
    build(spec, inputs, Listener(tmp_path / "whole"))
    batches: Callable[[Validation], Iterator[Batch]] = Validation.batches
    looked = []

    def interrupted(self: Validation) -> Iterator[Batch]:
        for number, batch in enumerate(batches(self)):
            looked.append(number)
            if len(looked) == 6:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    monkeypatch.setattr(Validation, "batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(spec, inputs, Listener(tmp_path / "stopped"), "first")
    assert len(looked) == 6
    assert build(spec, inputs, Listener(tmp_path / "stopped")).computed in (2, 4)
    assert digests(tmp_path / "stopped/out") == digests(tmp_path / "whole/out")


def test_a_saved_adapter_that_is_lost_is_made_again(tmp_path: Path, inputs: Inputs, every_step: None) -> None:
    spec = make_spec(save_every=2)
    build(spec, inputs, Listener(tmp_path / "whole"))
    listener = Listener(tmp_path / "stopped", stop_at=5)
    with pytest.raises(RuntimeError):
        build(spec, inputs, listener, "first")
    saved = listener.scratch / "adapters/step-000004/tiny-000004.safetensors"
    saved.write_bytes(saved.read_bytes()[:-4])
    listener.stop_at = None
    assert build(spec, inputs, listener).computed == 2
    assert listener.warnings == [
        "step-000000005.safetensors lacks adapters that were saved before it and is not used; "
        "going on from the checkpoint before it"
    ]
    assert digests(tmp_path / "stopped/out") == digests(tmp_path / "whole/out")


def test_adapters_of_another_training_are_not_taken(tmp_path: Path, inputs: Inputs, every_step: None) -> None:
    listener = Listener(tmp_path / "stopped", stop_at=5)
    with pytest.raises(RuntimeError):
        build(make_spec(save_every=1, seed=1), inputs, listener, "first")
    listener.stop_at = None
    build(make_spec(save_every=2), inputs, listener)
    build(make_spec(save_every=2), inputs, Listener(tmp_path / "whole"))
    assert digests(tmp_path / "stopped/out") == digests(tmp_path / "whole/out")


def test_a_full_disk_keeps_what_was_saved_before(
    tmp_path: Path, inputs: Inputs, every_step: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(save_every=2)
    build(spec, inputs, Listener(tmp_path / "whole"))
    listener = Listener(tmp_path / "stopped")
    replace: Callable[[Path, Path], Path] = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == "step-000004":
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(StepError) as caught:
            build(spec, inputs, listener, "first")
    assert str(caught.value) == (
        "no room for the adapter after step 4: No space left on device\n"
        "free some space (`sdbuild gc` lists what can go) or set train.save_most; "
        "then doit resumes after the last checkpoint"
    )
    assert [path.name for path in (listener.scratch / "adapters").iterdir() if "step" in path.name] == ["step-000002"]
    fewer, whole = tmp_path / "stopped/fewer", load_file(tmp_path / "whole/out/adapter/tiny.safetensors")
    assert build(make_spec(save_every=4), inputs, listener, fewer.name).computed == 3
    assert [path.name for path in (fewer / "adapters").iterdir() if path.is_dir()] == ["step-000004"]
    found = load_file(fewer / "adapter/tiny.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
    assert build(spec, inputs, listener).computed == 6, "that of step 2 is gone"
    assert "lacks adapters that were saved before it" in listener.warnings[0]
    assert digests(tmp_path / "stopped/out") == digests(tmp_path / "whole/out")


@pytest.mark.parametrize(
    ("step", "most", "kept"),
    [
        (3, None, [1, 2, 3]),
        (3, 3, [1, 2, 3]),
        (4, 3, [2, 4]),
        (7, 3, [2, 4, 6]),
        (8, 3, [4, 8]),
        (100, 3, [32, 64, 96]),
        (0, 2, []),
    ],
)
def test_thinning(step: int, most: int | None, kept: list[int]) -> None:
    assert list(kept_steps(step, 1, most)) == kept


def test_what_is_dropped_is_never_wanted_again() -> None:
    for step in range(1, 300):
        assert set(kept_steps(step + 1, 1, 5)) - {step + 1} <= set(kept_steps(step, 1, 5))
