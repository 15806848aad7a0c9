"""Memory that `sdbuild probe` predicts beside what real steps take, for recipes of different settings.

The bases are random networks, large enough for their activations to matter; each recipe has a process of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import Options, Row, cost, folder, main
from benchmarks.memory import REPOSITORY
from benchmarks.project import PYTHON
from tests.tiny import make_pictures, make_pipeline

MARGIN = 0.15
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "plain": {"train": {"batch": 1}},
    "batch of 2": {"train": {"batch": 2}},
    "larger pictures, sgd": {
        "images": {"resolution": 320},
        "method": {"targets": "attention"},
        "train": {"optimizer": "sgd"},
    },
    "gradient checkpointing": {"train": {"batch": 2, "gradient_checkpointing": True}},
    "accumulate": {"train": {"batch": 1, "accumulate": 2}},
    "8-bit optimizer, high rank": {"method": {"rank": 256}, "train": {"optimizer": "adamw-8bit"}},
    "adafactor, average": {"method": {"rank": 256}, "train": {"optimizer": "adafactor", "ema": {"decay": 0.99}}},
    "text encoder": {"method": {"text_encoder": True}, "train": {"batch": 1}},
    "nf4 base": {"train": {"base_precision": "nf4"}},
    "bfloat16": {"images": {"resolution": 192}, "train": {"precision": "bfloat16"}},
    "full fine-tune": {"method": {"kind": "full"}, "train": {"batch": 1}},
    "sdxl": {"base": {"model": "sdxl"}, "method": {"rank": 64}, "train": {"batch": 1}},
    **{kind: {"method": {"kind": kind}} for kind in ("loha", "lokr", "glora", "oft", "ia3", "hypernetwork")},
    "dora": {"method": {"dora": True}},
    "partial": {"method": {"kind": "partial", "layers": ["up_blocks.*"]}},
    "textual_inversion": {"method": {"kind": "textual_inversion", "tokens": [{"token": "<x>", "start": "cat"}]}},
    "pivotal": {"method": {"kind": "pivotal", "tokens": [{"token": "<x>", "start": "cat"}]}},
    "dreambooth": {"method": {"kind": "dreambooth", "prior": {"from": "prediction", "prompt": "cat"}}},
    "dreambooth_lora": {"method": {"kind": "dreambooth_lora", "prior": {"from": "prediction", "prompt": "cat"}}},
}
QUICK = ("plain", "gradient checkpointing")
"""Those that a test looks at."""


def measure(options: Options) -> list[Row]:
    """Predict and measure each recipe."""
    with folder() as root:
        write_project(root)
        names = QUICK if options.small else tuple(RECIPES)
        return [compare(root, name) for name in names]


def compare(root: Path, name: str) -> Row:
    """Predict and measure one recipe."""
    done = cost([PYTHON, "-m", "benchmarks.probe", "--child", str(root), name], REPOSITORY)
    found = json.loads(done.out.splitlines()[-1])
    ratio = found["predicted"] / found["measured"]
    parts = ", ".join(f"{part} {size / 1e6:.0f}" for part, size in found["parts"].items() if size)
    return Row(
        what=f"probe, {name}: predicted over measured",
        measured=f"{ratio:.2f}x",
        bar=f"{1 - MARGIN:g} to {1 + MARGIN:g}x",
        ok=abs(ratio - 1) <= MARGIN,
        notes=(
            f"measured {found['measured'] / 1e6:.0f} MB, predicted {found['predicted'] / 1e6:.0f} MB ({parts} MB); "
            f"{found['seconds']:.3g} s a step",
        ),
    )


def write_project(root: Path) -> None:
    """Write the bases and a dataset."""
    import torch
    from diffusers import UNet2DConditionModel

    common: dict[str, Any] = {"sample_size": 32, "layers_per_block": 1, "norm_num_groups": 32}
    shapes: dict[str, dict[str, Any]] = {
        "sd1": {
            "block_out_channels": (96, 192, 384),
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "attention_head_dim": 8,
        },
        "sdxl": {
            "block_out_channels": (96, 192, 384),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (2, 4, 8),
            "transformer_layers_per_block": (0, 2, 2),
            "use_linear_projection": True,
        },
    }
    for family, settings in shapes.items():
        base = make_pipeline(root / family, family=family)
        given = json.loads((base / "unet/config.json").read_text(encoding="utf-8"))
        kept = ("cross_attention_dim", "addition_embed_type", "addition_time_embed_dim")
        same = {name: given[name] for name in (*kept, "projection_class_embeddings_input_dim") if given.get(name)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            UNet2DConditionModel(**common, **settings, **same).save_pretrained(base / "unet")
    make_pictures(root / "datasets" / "cats", 1, size=64)


def child(root: Path, name: str) -> dict[str, Any]:
    """Measure a recipe, then predict it."""
    import torch

    from sdbuild.plan.compile import plan
    from sdbuild.recipe.models import Recipe
    from sdbuild.steps.largest import Largest
    from sdbuild.steps.prediction import Forecaster
    from sdbuild.steps.trial import measure

    sections = RECIPES[name]
    content = {
        "name": "cat",
        "datasets": [{"path": "datasets/cats"}],
        "base": {"model": "sd1"},
        **sections,
        "images": {"resolution": 256, **sections.get("images", {})},
        "method": {"kind": "lora", **sections.get("method", {})},
        "train": {"batch": 1, **sections.get("train", {})},
    }
    spec = next(step.spec for step in plan(Recipe.model_validate(content)) if step.kind == "train")
    base, side = root / content["base"]["model"], content["images"]["resolution"] // 8
    largest = Largest(shape=(4, side, side), records=spec["train"]["batch"])
    real = measure(spec, base, largest)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    memory = Forecaster(base, largest, torch.device(kind)).memory(spec)
    return {
        "predicted": memory.total,
        "parts": memory.parts(),
        "measured": real.memory,
        "seconds": real.seconds,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(Path(sys.argv[2]), sys.argv[3])))
    else:
        sys.exit(main(measure))
