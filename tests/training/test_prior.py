"""Prior preservation: which records a step sees, and what they are to predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sdbuild.training.examples import Batches, Example
from sdbuild.training.loop import accumulate
from sdbuild.training.prior import WithClassPictures, WithKeptPrediction
from tests.steps.test_train import build, digests
from tests.tiny import make_pipeline
from tests.training.material import Listener, make_inputs, make_spec

PREDICTION = {"from": "prediction", "prompt": "picture number 5", "weight": 2.0}


def example(key: str, shape: tuple[int, ...] = (4, 8, 8), **settings: Any) -> Example:
    return Example(key=key, digest=key, dataset=0, text=key, texts=(key,), latents=(key,), shape=shape, **settings)


def test_each_picture_has_one_of_its_class_and_these_come_in_turn() -> None:
    own = [example("a"), example("b")]
    drawn = [example(f"prior:{number}", weight=0.5) for number in range(3)]
    choose = WithClassPictures(choose=lambda step: own, pictures=drawn, batch=2, seed=0)
    seen = [each.key for step in range(6) for each in choose(step)[2:]]
    assert [each.key for each in choose(0)[:2]] == ["a", "b"]
    assert all(sorted(seen[start : start + 3]) == sorted(each.key for each in drawn) for start in range(0, 12, 3))
    assert len({tuple(seen[start : start + 3]) for start in range(0, 12, 3)}) > 1
    again = WithClassPictures(choose=lambda step: own, pictures=drawn, batch=2, seed=0)
    assert [each.key for step in (5, 2) for each in again(step)[2:]] == [*seen[10:], *seen[4:6]]
    other = WithClassPictures(choose=lambda step: own, pictures=drawn, batch=2, seed=1)
    assert [each.key for step in range(6) for each in other(step)[2:]] != seen


def test_records_of_two_kinds_are_batches_of_their_own() -> None:
    own = [example("a", (4, 8, 4)), example("b", (4, 8, 4)), example("c", (4, 8, 4))]
    latents = {each.key: torch.zeros(each.shape) for each in own} | {"prior": torch.zeros(4, 8, 8)}
    seen: dict[str, Any] = {
        "size": 2,
        "latent": lambda key: {"mean": latents[key], "logvar": latents[key]},
        "scale": lambda latent: latent,
        "conditions": lambda texts: {"hidden": torch.tensor([[len(text)] for text in texts])},
        "base_conditions": lambda texts: {"hidden": torch.tensor([[-len(text)] for text in texts])},
        "seed": 0,
        "timesteps": 1000,
        "caption_dropout": 0.0,
        "device": torch.device("cpu"),
    }
    drawn = [example("prior", weight=0.5)]
    pictures = WithClassPictures(choose=lambda step: own, pictures=drawn, batch=3, seed=0)
    found = list(Batches(choose=pictures, **seen)(0))
    assert [tuple(batch.x.shape) for batch in found] == [(2, 4, 8, 4), (1, 4, 8, 4), (2, 4, 8, 8), (1, 4, 8, 8)]
    assert found[0].weights is None
    assert found[2].weights is not None
    assert found[2].weights.tolist() == [0.5, 0.5]
    assert not torch.equal(found[2].noise[0], found[2].noise[1])

    kept = WithKeptPrediction(choose=lambda step: own, prompt="class", weight=3.0)
    found = list(Batches(choose=kept, **seen)(0))
    assert [len(batch.x) for batch in found] == [2, 1, 2, 1]
    assert [batch.base_condition is not None for batch in found] == [False, False, True, True]
    assert found[2].condition["hidden"].tolist() == [[5], [5]]
    assert found[2].base_condition is not None
    assert found[2].base_condition["hidden"].tolist() == [[-5], [-5]]
    assert not torch.equal(found[0].noise, found[2].noise)


@pytest.mark.parametrize(
    ("method", "precision"),
    [
        ({"kind": "dreambooth"}, "float32"),
        ({"kind": "dreambooth", "text_encoder": True}, "bfloat16"),
        ({"kind": "dreambooth_lora", "rank": 2, "text_encoder": True}, "float32"),
    ],
)
def test_a_prediction_is_kept_and_a_stopped_training_goes_on(
    method: dict[str, Any], precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_pipeline(tmp_path / "base")
    trains_text = bool(method.get("text_encoder"))
    inputs = make_inputs(tmp_path / "inputs", base, holdout=1, text=not trains_text)
    spec = make_spec(precision=precision, learning_rate=1e-3, checkpoint_every=2)
    spec["method"] = {**method, "prior": PREDICTION}
    monkeypatch.setattr("sdbuild.training.loop.REPORT_SECONDS", 0)
    seen: list[list[float]] = []

    def listened(*arguments: Any) -> Any:
        losses = accumulate(*arguments)
        seen.append(losses.tolist())
        return losses

    monkeypatch.setattr("sdbuild.training.loop.accumulate", listened)
    build(spec, inputs, Listener(tmp_path / "whole"))
    assert [len(losses) for losses in seen[:2]] == [4, 4]
    bound = 0 if precision == "float32" else 1e-6
    assert max(seen[0][2:]) <= bound < min(seen[0][:2])
    assert min(seen[-1][2:]) > 0
    monkeypatch.setattr("sdbuild.training.checkpoint.SHARE", 1e9)
    with pytest.raises(RuntimeError):
        build(spec, inputs, Listener(tmp_path / "stopped", stop_at=3), "out0")
    build(spec, inputs, Listener(tmp_path / "stopped"))
    assert digests(tmp_path / "stopped/out") == digests(tmp_path / "whole/out")

    without = {**spec, "method": method}
    build(without, inputs, Listener(tmp_path / "without"))
    adapters = (load_file(tmp_path / run / "out/adapter/tiny.safetensors") for run in ("whole", "without"))
    kept, free = adapters
    assert any(not torch.equal(kept[name], free[name]) for name in kept)
