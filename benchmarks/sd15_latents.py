"""The latents step with Stable Diffusion 1.5's VAE at 256 px, beside a bare loop that decodes and encodes."""

from __future__ import annotations

import sys

from benchmarks.harness import Options, Row, at_most, folder, main
from benchmarks.latents import take_turns
from benchmarks.project import Steps
from benchmarks.sd15_base import SIDE, project
from tests.tiny import make_pictures


def measure(options: Options) -> list[Row]:
    """Encode pictures of 256 px."""
    return [compare(SIDE, small=options.small)]


def compare(side: int, *, small: bool) -> Row:
    """Encode the same pictures with the step and with a bare loop, in turns; decoding, hashing, storing included."""
    side, count, rounds = (64, 4, 1) if small else (side, 8, 3)
    with folder() as root:
        work = project(root, small=small, side=side)
        make_pictures(work.root / "datasets" / "cats", count, size=side + side // 4)
        found = take_turns(Steps(work), side, rounds)
    return at_most(
        f"SD1.5 latents at {side} px over a bare VAE loop",
        1 / found.ratio(0),
        1.1,
        *found.notes,
        f"by CPU time: {1 / found.ratio(1):.3f}x",
    )


if __name__ == "__main__":
    sys.exit(main(measure))
