"""A build with nothing to do, one recipe on many pictures: beside a bare stat of the same files, and `dvc repro`."""

from __future__ import annotations

import sys

from benchmarks.harness import Options, Row, at_least, at_most, cost, folder, main, median_costs
from benchmarks.project import DOIT, DVC, PYTHON, UP_TO_DATE, built_project

STAT = """
import os
count = 0
folders = ["datasets"]
while folders:
    with os.scandir(folders.pop()) as found:
        for item in found:
            if item.is_dir():
                folders.append(item.path)
            else:
                os.stat(item.path)
                count += 1
print(count)
"""


def measure(options: Options) -> list[Row]:
    """Build a project once, then build it again with nothing to do."""
    count, runs = (20, 1) if options.small else (10_000, 7)
    with folder() as root:
        work = built_project(root / "project", options.built, count)
        for command in ([DOIT], [DVC, "repro"]):  # the first look at all files
            cost(command, work.root)
        costs = median_costs(
            {
                "doit": ([DOIT], work.root),
                "stat": ([PYTHON, "-c", STAT], work.root),
            },
            runs,
        ) | median_costs({"dvc": ([DVC, "repro"], work.root)}, min(runs, 3))
        status = cost([DVC, "status"], work.root).out
    assert UP_TO_DATE in costs["doit"].out, costs["doit"].out
    assert "up to date" in status, status
    what = f"no-op doit, {count:,} pictures"
    notes = (
        f"doit: {costs['doit']}",
        f"bare stat of the dataset's {int(costs['stat'].out):,} files: {costs['stat']}",
        f"dvc repro: {costs['dvc']}",
    )
    return [
        at_most(f"{what}: CPU, over a bare stat", costs["doit"].cpu / costs["stat"].cpu, 8, *notes),
        at_least(f"{what}: faster than dvc repro (CPU)", costs["dvc"].cpu / costs["doit"].cpu, 5, *notes),
    ]


if __name__ == "__main__":
    sys.exit(main(measure))
