"""Stable Diffusion 1.5's table on a GPU: bfloat16, 512 px, batch 4, with and without torch.compile.

Beside a bare loop, and as a share of the rate at which the same card multiplies large matrices in the same run.
"""

from __future__ import annotations

import sys
import time

from benchmarks import sd15_start
from benchmarks.harness import Options, Row, folder, main, told
from benchmarks.sd15_base import cached_project
from benchmarks.sd15_latents import compare as compare_latents
from benchmarks.sd15_memory import COUNT
from benchmarks.sd15_memory import compare as compare_memory
from benchmarks.sd15_step import take_turns

SIDE, BATCH, STEPS = 512, 4, 80
COMPILED = (False, True)


def measure(options: Options) -> list[Row]:
    """Measure everything on the GPU; without one there is nothing to measure."""
    import torch

    if not torch.cuda.is_available():
        told("  there is no CUDA device on this machine: nothing was measured")
        return []
    return [*steps_of("cuda", small=options.small), *others(options)]


def steps_of(device: str, *, small: bool) -> list[Row]:
    """Take steps in turns with a bare loop, plain and compiled."""
    rate = matrix_rate(device, 256 if small else 8192)
    rows = []
    for compiled in COMPILED:
        with folder() as root:
            settings = {"precision": "bfloat16", "compile": compiled, "steps": 3 if small else STEPS}
            steps = cached_project(root, small=small, side=SIDE, batch=BATCH, **settings)
            turns = take_turns(steps, compiled=compiled, counted=True)
        reached = turns.operations / turns.median("ours")
        rows.append(
            turns.row(
                f"SD1.5 training step over a bare loop, bfloat16{', compiled' if compiled else ''}",
                f"{turns.operations / 1e12:.3g} TFLOP a step: {reached / 1e12:.3g} TFLOP/s, {reached / rate:.0%} of "
                f"the {rate / 1e12:.3g} TFLOP/s of large matrix products",
            )
        )
    return rows


def others(options: Options) -> list[Row]:
    """Memory, latents and the start."""
    with folder() as root:
        cached_project(root, small=options.small, side=SIDE, batch=BATCH, steps=COUNT, precision="bfloat16")
        memory = compare_memory(root)
    return [memory, compare_latents(SIDE, small=options.small), *sd15_start.measure(options)]


def matrix_rate(device: str, size: int) -> float:
    """Return the floating-point operations a second of products of square bfloat16 matrices; the best of some."""
    import torch

    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(5):
        began = time.monotonic()
        for _ in range(10):
            left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 10 * 2 * size**3 / (time.monotonic() - began))
    return best


if __name__ == "__main__":
    sys.exit(main(measure))
