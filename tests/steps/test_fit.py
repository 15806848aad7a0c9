"""Trainings that cannot fit are refused with what helps, and those that may not are warned of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdbuild.errors import StepError
from sdbuild.steps import fit
from sdbuild.steps.prediction import Forecaster
from sdbuild.training.machine import Machine, machine
from tests.steps.test_probe import recipe_of
from tests.tiny import make_pipeline

CPU = torch.device("cpu")
SIDE = 512


def fitted(monkeypatch: pytest.MonkeyPatch, base: Path, there: Machine | None, **train: Any) -> list[str]:
    """Check a recipe on some machine; its warnings."""
    monkeypatch.setattr(fit, "machine", lambda device: there)
    recipe = recipe_of(base, SIDE, train=train)
    told: list[str] = []
    fit.check(recipe.train, base, recipe.largest, CPU, told.append)
    return told


def test_what_cannot_fit_is_refused_with_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "base"
    make_pipeline(base)
    recipe = recipe_of(base, SIDE)
    own = Forecaster(base, recipe.largest, CPU).memory(recipe.train).total
    room = Machine(kind="cpu", has=own, free=own)
    assert fitted(monkeypatch, base, room) == []
    busy = replace(room, free=own // 2)
    (warning,) = fitted(monkeypatch, base, busy)
    assert "it may run out (`sdbuild probe cat` says what takes how much)" in warning
    assert fitted(monkeypatch, base, replace(room, has=int(0.86 * own), free=int(0.86 * own))), "not refused"
    small = replace(room, has=int(0.8 * own), free=int(0.8 * own))
    with pytest.raises(StepError) as refused:
        fitted(monkeypatch, base, small)
    said = str(refused.value)
    assert said.startswith("training cannot fit: it takes about ")
    assert "each of these makes it fit, from the cheapest on:\n  train.gradient_checkpointing: true" in said
    assert "train.optimizer" not in said, "it would not help"
    assert said.endswith("SDBUILD_MEMORY_CHECK=off trains all the same")
    tiny = replace(room, has=1 << 20, free=1 << 20)
    monkeypatch.setenv("SDBUILD_MEMORY_CHECK", "off")
    assert fitted(monkeypatch, base, tiny) == []


def test_the_guess_is_never_below_the_prediction(tmp_path: Path) -> None:
    base = tmp_path / "base"
    make_pipeline(base)
    recipe = recipe_of(base, SIDE)
    forecaster = Forecaster(base, recipe.largest, CPU)
    assert fit._guess(recipe.train, base, recipe.largest) > forecaster.memory(recipe.train).total


def test_this_machine_tells_its_memory() -> None:
    there = machine(CPU)
    assert there is not None
    assert 0 < there.free <= there.has == there.bound
