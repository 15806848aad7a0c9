"""Stable Diffusion 1.5's table on the processor, at its real size with random weights: `python -m benchmarks.sd15`."""

from __future__ import annotations

import sys

from benchmarks import sd15_latents, sd15_memory, sd15_start, sd15_step
from benchmarks.harness import main

if __name__ == "__main__":
    sys.exit(main(sd15_step.measure, sd15_latents.measure, sd15_memory.measure, sd15_start.measure))
