"""Recording a step that ran: saving its out and writing `dvc.lock`, with few and with many steps in it."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from benchmarks.harness import Options, Row, Watch, at_most, folder, main, told
from benchmarks.noop_steps import multiply
from benchmarks.project import built_project
from sdbuild.build.engine import Engine
from sdbuild.build.project import Project
from sdbuild.console import Console
from sdbuild.recipe.load import load_project

STEP = "cat:captions"


def measure(options: Options) -> list[Row]:
    """Record the same step in projects that differ in the number of their recipes."""
    sizes, runs = ((1, 2), 2) if options.small else ((2, 17, 167), 15)
    costs: dict[int, tuple[float, float]] = {}
    with folder() as root:
        first = built_project(root / "first", options.built, 8)
        for recipes in sizes:
            work = first.copy(root / f"{recipes}")
            steps = multiply(work, "cat", [f"cat{number:03}" for number in range(1, recipes)])
            costs[steps] = record(work.root, runs)
            told(f"  {steps:,} steps: {costs[steps][1]:.3g} s CPU")
    (few, (_, least)), (many, (_, most)) = min(costs.items()), max(costs.items())
    return [
        at_most(
            f"recording a step, {many:,} steps over {few:,} (CPU)",
            most / least,
            3,
            *(
                f"{steps:,} steps: {cpu * 1000:.3g} ms CPU, {wall * 1000:.3g} ms"
                for steps, (wall, cpu) in costs.items()
            ),
        )
    ]


def record(root: Path, runs: int) -> tuple[float, float]:
    """Return wall and processor seconds of recording one step whose out is new; medians."""
    engine = Engine(Project(root), load_project(root), Console())
    times: list[tuple[float, float]] = []
    try:
        step, verdict, watch = engine.steps[STEP], engine.judge(STEP), Watch()
        out = root / step.outs[0].path
        built = out.read_bytes()
        for run in range(runs + 1):
            out.unlink()
            out.write_bytes(built + b"\n" * (run + 1))
            watch.look()
            engine.history.record(step, verdict.deps, step.parameters(verdict.reads))
            times.append(watch.look())
    finally:
        engine.close()
    wall, cpu = zip(*times[1:], strict=True)  # the first imports DVC and opens its databases
    return statistics.median(wall), statistics.median(cpu)


if __name__ == "__main__":
    sys.exit(main(measure))
