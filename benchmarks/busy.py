"""A default `doit` training on a machine that does something else, beside one whose threads spin while they wait."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness import Options, Row, at_least, folder, main, told
from benchmarks.project import DOIT, new_project
from benchmarks.training import write_unet
from tests.conftest import Work, environment
from tests.tiny import make_pictures

SPINNING = {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"}
"""What GNU's and LLVM's OpenMP do where nothing is said; steps leave the user's own settings alone."""
NAMES = ("asleep", "spinning")
LOOP = "while True: pass"


def measure(options: Options) -> list[Row]:
    """Train in both ways in turns, with a busy process for each core and without."""
    steps, rounds, width = (2, 1, 8) if options.small else (12, 3, 64)
    with folder() as root:
        work = new_project(root / "project")
        write_unet(work.root / "base" / "unet", width)
        make_pictures(work.root / "datasets" / "cats", 8, size=64)
        write(work, steps, 0)
        run(work, {})
        found: dict[tuple[str, bool], list[float]] = {}
        seeds = itertools.count(1)
        for _, load, name in itertools.product(range(rounds), (True, False), NAMES):
            write(work, steps, next(seeds))
            with busy(load):
                found.setdefault((name, load), []).append(run(work, SPINNING if name == "spinning" else {}))
            told(f"  {name}{', busy' if load else ''}: {found[name, load][-1]:.3g} s a step")
    medians = {key: statistics.median(times) for key, times in found.items()}
    return [
        at_least(
            f"training, steps/s {where}, threads asleep over threads that spin",
            medians["spinning", load] / medians["asleep", load],
            bar,
            *(f"{name}: {1 / medians[name, load]:.3g} steps/s" for name in ("asleep", "spinning")),
            f"turns: {', '.join(f'{s / a:.2f}x' for a, s in zip(*(found[n, load] for n in NAMES), strict=True))}",
        )
        for load, where, bar in ((True, "beside busy processes", 5.0), (False, "without", 0.9))
    ]


def write(work: Work, steps: int, seed: int) -> None:
    """Write the recipe; another seed is another training."""
    work.recipe(
        images={"resolution": 64},
        method={"kind": "lora", "rank": 8, "alpha": 8},
        train={"steps": steps, "batch": 2, "checkpoint_every": 1000, "validate": 1, "seed": seed},
        sample=None,
    )


def run(work: Work, own: Mapping[str, str]) -> float:
    """Build with the machine's own number of threads; return the seconds of a training step."""
    known = {name: value for name, value in environment().items() if name not in ("OMP_NUM_THREADS", *SPINNING)}
    subprocess.run([DOIT, "cat"], cwd=work.root, env={**known, **own}, check=True, stdout=subprocess.DEVNULL)
    metrics = json.loads((Path(work.root) / "build/cat/metrics.json").read_text())
    return float(metrics["seconds"]) / int(metrics["steps"])


@contextmanager
def busy(load: bool) -> Iterator[None]:
    """Keep every core busy with something else meanwhile."""
    others = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range((os.cpu_count() or 1) if load else 0)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


if __name__ == "__main__":
    sys.exit(main(measure))
