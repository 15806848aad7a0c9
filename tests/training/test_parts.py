"""Schedules, optimizers, random draws, tensor files, caches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sdbuild.recipe.models import Train
from sdbuild.training.checkpoint import FORMAT, Checkpoints, Snapshot
from sdbuild.training.examples import Cache, distinct
from sdbuild.training.optimizers import OPTIMIZERS
from sdbuild.training.randomness import draw, fixed_draw
from sdbuild.training.schedules import SCHEDULES, rate_at
from sdbuild.training.tensorfile import content_digest, write_tensors


def test_registries_are_what_recipes_can_name() -> None:
    assert set(OPTIMIZERS) == set(get_args(Train.model_fields["optimizer"].annotation))
    assert set(SCHEDULES) == set(get_args(Train.model_fields["schedule"].annotation))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.25, 0.5, 0.75, 1, 0.8536, 0.5, 0.1464]),
    ],
)
def test_rates(schedule: str, expected: list[float]) -> None:
    rates = [rate_at(step, schedule=schedule, learning_rate=2.0, steps=7, warmup=3) for step in range(7)]
    assert rates == pytest.approx([2 * share for share in expected], abs=1e-4)


def test_sgd_decays_apart_from_the_momentum() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = OPTIMIZERS["sgd"]([parameter], 0.1, 0.5)
    parameter.grad = torch.zeros(1)
    optimizer.step()
    optimizer.step()
    assert parameter.item() == pytest.approx(0.95**2)
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_draws_depend_on_seed_step_and_record_alone() -> None:
    def numbers(seed: int, step: int, key: str) -> tuple[int, float, float, float]:
        found = draw(seed, step, key, shape=(4, 8, 8), timesteps=1000, caption_dropout=0.5)
        return found.timestep, found.variant, float(found.noise.sum()), float(found.latent.sum())

    first = numbers(0, 5, "a")
    torch.rand(3)
    assert numbers(0, 5, "a") == first
    assert all(numbers(*other) != first for other in [(1, 5, "a"), (0, 6, "a"), (0, 5, "b")])


def test_caption_dropout_has_its_share() -> None:
    drops = [draw(0, step, "a", shape=(1,), timesteps=10, caption_dropout=0.25).without_caption for step in range(2000)]
    assert 0.2 < sum(drops) / len(drops) < 0.3


def test_validation_timesteps_are_stratified() -> None:
    timesteps = [fixed_draw("a", index, shape=(1,), timesteps=1000, draws=4)[0] for index in range(4)]
    assert [timestep // 250 for timestep in timesteps] == [0, 1, 2, 3]


def test_the_same_record_twice_in_a_batch_differs() -> None:
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a#2", "a#3"]


def test_a_cache_stops_at_its_limit() -> None:
    reads: list[str] = []

    def read(key: str) -> dict[str, torch.Tensor]:
        reads.append(key)
        return {"mean": torch.zeros(25)}

    cache = Cache(read=read, limit=250)
    for key in "abcabc":
        assert cache(key)["mean"].shape == (25,)
    assert reads == ["a", "b", "c", "c"]


TENSORS = {
    "b": torch.arange(3, dtype=torch.uint8),
    "a": torch.tensor(1.5),
    "c/d": torch.ones(2, 3, dtype=torch.bfloat16),
    "empty": torch.zeros(0),
}


def test_files_are_read_by_safetensors(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", TENSORS, {"z": "1", "a": "ä"})
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in TENSORS.items())
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {"z": "1", "a": "ä"}
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_bytes_do_not_depend_on_order(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x", TENSORS, {"a": "1", "b": "2"})
    write_tensors(tmp_path / "y", dict(reversed(TENSORS.items())), {"b": "2", "a": "1"})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    assert content_digest(TENSORS) != content_digest(TENSORS | {"a": torch.tensor(2.5)})


def checkpoints(folder: Path, identity: str = "i", warnings: list[str] | None = None) -> Checkpoints:
    found = warnings if warnings is not None else []
    return Checkpoints(folder=folder, identity=identity, every=2, warn=found.append)


def test_two_checkpoints_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    written = checkpoints(tmp_path)
    for step in (2, 4, 6):
        written.save(Snapshot(step=step, tensors={"x": torch.tensor(float(step))}, values={"v": step}))
    assert len(list(tmp_path.iterdir())) == 2
    read = checkpoints(tmp_path).load()
    assert read is not None
    assert (read.step, float(read.tensors["x"]), read.values) == (6, 6.0, {"v": 6})


def test_another_version_is_refused_with_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdbuild.training.checkpoint.FORMAT", FORMAT + 1)
    checkpoints(tmp_path).save(Snapshot(step=2, tensors={}, values={}))
    monkeypatch.undo()
    warnings: list[str] = []
    assert checkpoints(tmp_path, warnings=warnings).load() is None
    assert warnings == ["step-000000002.safetensors was written by another version of sdbuild and is not used"]


def test_checkpoints_are_due_by_steps_and_put_off_when_they_are_slow(tmp_path: Path) -> None:
    written = checkpoints(tmp_path)
    assert [written.due(step) for step in (0, 1, 2)] == [False, False, True]
    written.save(Snapshot(step=2, tensors={}, values={}))
    written._cost = 1000
    assert not written.due(4)


def test_methods_do_not_import_training() -> None:
    program = "import sys, sdbuild.methods.lora; assert not any('sdbuild.training' in name for name in sys.modules)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, cwd=Path(__file__).parents[2])
