"""A push with nothing to push, beside `dvc push`, which looks at the present state only, not at all runs.

The remote is a folder, so that what is measured is neither network nor server.
"""

from __future__ import annotations

import json
import sys

from benchmarks.harness import Options, Row, at_most, cost, folder, main, median_costs, told
from benchmarks.project import DVC, SDBUILD, built_project
from sdbuild.build.cache import LocalCache
from sdbuild.build.lockfile import LockFile
from sdbuild.build.project import Project
from tests.conftest import Work

STAGE = "cat-train"


def measure(options: Options) -> list[Row]:
    """Push a built project with many runs in its past once, then again with nothing to push."""
    count, runs, times = (20, 10, 1) if options.small else (2_000, 500, 7)
    with folder() as root:
        work = built_project(root / "project", options.built, count)
        work.git("rm", "-r", "--quiet", "--cached", "--ignore-unmatch", "datasets/cats")
        work.dvc("add", "--quiet", "datasets/cats")
        work.dvc("remote", "add", "--quiet", "--default", "store", str(root / "store"))
        remember(work, runs)
        for command in ([SDBUILD, "push"], [DVC, "push"]):
            told(f"  {' '.join(command[-1:])}: {cost(command, work.root)}")
        costs = median_costs({"sdbuild": ([SDBUILD, "push"], work.root), "dvc": ([DVC, "push"], work.root)}, times)
    assert "has everything" in costs["sdbuild"].out, costs["sdbuild"].out
    assert "up to date" in costs["dvc"].out, costs["dvc"].out
    notes = (f"sdbuild push, with {runs:,} runs: {costs['sdbuild']}", f"dvc push: {costs['dvc']}")
    return [
        at_most("push with nothing to push, over dvc push (CPU)", costs["sdbuild"].cpu / costs["dvc"].cpu, 1, *notes)
    ]


def remember(work: Work, runs: int) -> None:
    """Give a project's run-cache trainings of the past, as with many seeds."""
    project = Project(work.root)
    cache, entry = LocalCache(project), LockFile(project).stages()[STAGE]
    text = json.dumps(entry)
    assert '"seed": 0' in text
    for seed in range(1, runs + 1):
        cache.remember_run(json.loads(text.replace('"seed": 0', f'"seed": {seed}')))


if __name__ == "__main__":
    sys.exit(main(measure))
