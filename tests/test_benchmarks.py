"""The benchmarks run and print their rows; at these sizes the figures mean nothing."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

from benchmarks import sd15_gpu
from benchmarks.harness import Options, show
from benchmarks.probe import RECIPES
from sdbuild.methods import METHODS

ROWS = {
    "noop_pictures": ("over a bare stat", "faster than dvc repro"),
    "noop_steps": ("no-op doit, 12 steps", "faster than dvc repro"),
    "one_picture": ("computed", "over a no-op"),
    "recording": ("recording a step, 12 steps over 6",),
    "push": ("push with nothing to push, over dvc push",),
    "latents": ("over a bare VAE loop",),
    "training": ("over a bare loop",),
    "busy": ("beside busy processes, threads asleep", "without, threads asleep"),
    "captions": ("captions: 16 requests at once, over the ideal",),
    "memory": ("latents: peak memory", "text: peak memory"),
    "probe": ("probe, plain: predicted over measured", "probe, gradient checkpointing: predicted over measured"),
    "sd15_step": ("over a bare loop, float32", "over a bare loop, bfloat16"),
    "sd15_latents": ("latents at 64 px over a bare VAE loop",),
    "sd15_memory": ("LoRA steps: peak memory over a bare loop",),
    "sd15_start": ("start to first step over loading the UNet",),
}
SLOW = {"busy", "sd15_memory", "sd15_start"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.campaign] * (name in SLOW)) for name in ROWS])
def test_a_benchmark_prints_its_rows(name: str, built_template: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = importlib.import_module(f"benchmarks.{name}").measure(Options(small=True, built=built_template))
    show(rows)
    table, _, notes = capsys.readouterr().out.partition("\n\n")
    lines = table.splitlines()
    assert lines[0].split() == ["what", "measured", "bar", "ok"]
    for line, what in zip(lines[1:], ROWS[name], strict=True):
        assert what in line
        assert line.endswith((" yes", " NO"))
    assert all(row.notes for row in rows)
    assert name != "one_picture" or rows[0].ok, "exactly one latent"
    assert name != "probe" or all(row.ok for row in rows), notes
    assert name == "busy" or notes.count(" s CPU") + notes.count(" ms CPU") + notes.count(" MB") > 1


@pytest.mark.campaign
def test_the_memory_of_every_method_is_predicted() -> None:
    rows = importlib.import_module("benchmarks.probe").measure(Options())
    kinds = {recipe.get("method", {}).get("kind", "lora") for recipe in RECIPES.values()}
    assert kinds == set(METHODS)
    assert [row.what for row in rows if not row.ok] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_made_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert sd15_gpu.measure(Options()) == []
    assert "no CUDA device" in capsys.readouterr().err


def test_the_share_of_the_matrix_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sd15_gpu, "COMPILED", (False,))
    (row,) = sd15_gpu.steps_of("cpu", small=True)
    assert row.what == "SD1.5 training step over a bare loop, bfloat16"
    figures = re.search(r"([\d.e-]+) TFLOP a step: [\d.e-]+ TFLOP/s, (\d+)% of the ([\d.e-]+) TFLOP/s", row.notes[-1])
    assert figures is not None, row.notes
    assert all(float(figure) > 0 for figure in figures.groups())
