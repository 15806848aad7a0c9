"""The benchmarks run and print their rows; at these sizes the figures mean nothing."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks.harness import Options, show

ROWS = {
    "noop_pictures": ("over a bare stat", "faster than dvc repro"),
    "noop_steps": ("no-op doit, 12 steps", "faster than dvc repro"),
    "one_picture": ("computed", "over a no-op"),
    "recording": ("recording a step, 12 steps over 6",),
    "push": ("push with nothing to push, over dvc push",),
    "latents": ("over a bare VAE loop",),
    "training": ("over a bare loop",),
    "memory": ("latents: peak memory", "text: peak memory"),
}


@pytest.mark.parametrize("name", ROWS)
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
    assert notes.count(" s CPU") + notes.count(" ms CPU") + notes.count(" MB") > 1
