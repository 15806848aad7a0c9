"""A fresh clone builds the same bytes again, with nothing to take them from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.conftest import Work
from tests.tiny import make_pictures

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "text-side": {
        "method": {"text_encoder": True, "dropout": 0.1},
        "train": {"accumulate": 2, "ema": {"decay": 0.9}, "schedule": "cosine", "warmup": 1},
    },
    "many-views": {
        "datasets": [
            {"path": "datasets/cats", "trigger": "sks", "holdout": 1, "weight": 2},
            {"path": "datasets/dogs", "tags": {"dropout": 0.3, "variants": 2}, "weight": 1},
        ],
        "images": {"flip": True, "crop": "random", "crops": 2},
        "train": {"optimizer": "prodigy", "learning_rate": 1, "caption_dropout": 0.3},
    },
    "half": {
        "train": {"precision": "bfloat16", "gradient_checkpointing": True, "optimizer": "adafactor"},
        "method": {"targets": "attention"},
    },
    "velocity": {
        "train": {
            "prediction": "v",
            "weighting": {"kind": "min-snr"},
            "noise": {"pyramid": 0.3, "perturbation": 0.1, "zero_terminal_snr": True},
            "loss": {"kind": "huber"},
            "optimizer": "adamw-8bit",
        },
    },
    "shapes": {
        "datasets": [{"path": "datasets/dogs", "resolutions": [32, 48], "lines": True, "repeats": 2}],
        "train": {
            "timesteps": {"kind": "logit-normal", "shift": 2},
            "noise": {"offset": 0.05},
            "optimizer": "adamw-schedule-free",
            "lora_plus_ratio": 4,
        },
        "sample": {"scheduler": "euler", "seeds": [1, 2]},
    },
}


def test_six_recipes_are_rebuilt_in_a_clone(empty: Work, tmp_path: Path) -> None:
    store = tmp_path / "store"
    make_pictures(empty.root / "datasets" / "cats", 4, size=32)
    for path in make_pictures(empty.root / "datasets" / "dogs", 5, size=(48, 40), seed=1):
        path.with_suffix(".txt").write_text(f"a dog, brown, wet, {path.stem}\nanother dog\n", encoding="utf-8")
    for name, changes in RECIPES.items():
        empty.recipe(name, **changes)
    empty.dvc("remote", "add", "--quiet", "--default", "store", str(store))
    data = ["datasets/cats", "datasets/dogs"]
    empty.dvc("add", "--quiet", *data)
    empty.dvc("push", "--quiet", *data)
    first = empty.doit()
    empty.git("add", ".")
    empty.git("commit", "--quiet", "-m", "Build")

    clone = Work(tmp_path / "clone")
    empty.git("clone", "--quiet", str(empty.root), str(clone.root))
    shutil.copytree(empty.root / "base", clone.root / "base")
    clone.dvc("pull", "--quiet", *data)
    again = clone.doit(env={"PYTHONHASHSEED": "1"})

    # What another recipe has built alike in the meantime is taken from there; every item was computed.
    for kind in ("latents", "text"):
        computed = [sum(count for step, count in each.ran.items() if step.endswith(kind)) for each in (first, again)]
        assert computed[0] == computed[1] > 0, kind
    for name in RECIPES:
        assert {f"{name}:train", f"{name}:samples"} <= again.ran.keys()
        assert clone.adapter(name) == empty.adapter(name), name
        for out in ("loss.csv", "samples/grid.png", "adapter/pytorch_lora_weights.safetensors"):
            assert clone.read(f"build/{name}/{out}") == empty.read(f"build/{name}/{out}"), f"{name}: {out}"
        metrics = [json.loads(work.read(f"build/{name}/metrics.json")) for work in (empty, clone)]
        assert [each.pop("seconds") > 0 for each in metrics] == [True, True]
        assert [each.pop("memory") > 0 for each in metrics] == [True, True]
        assert metrics[0] == metrics[1], name
