"""A build with nothing to do, a thousand steps: beside doit on as many empty tasks, and `dvc repro`.

One recipe is built; the others are copies of it under other names, recorded in `dvc.lock` as a build would have.
"""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

from benchmarks.harness import Options, Row, at_least, cost, folder, main, median_costs, told
from benchmarks.project import DOIT, DVC, UP_TO_DATE, built_project
from sdbuild.build.engine import Engine
from sdbuild.build.oracle import recorded_parameters
from sdbuild.build.project import Project
from sdbuild.console import Console
from sdbuild.plan.model import Step
from sdbuild.recipe.load import load_project
from tests.conftest import Work

EMPTY = """
def task_empty():
    for recipe in range({recipes}):
        yield {{"basename": f"r{{recipe}}", "name": None}}
        for step in range({steps}):
            after = [f"r{{recipe}}:{{step - 1}}"] if step else []
            yield {{
                "basename": f"r{{recipe}}", "name": str(step), "actions": [], "uptodate": [True], "task_dep": after
            }}
"""


def measure(options: Options) -> list[Row]:
    """Make a built project of many recipes, then build it again with nothing to do."""
    recipes, runs = (2, 1) if options.small else (167, 5)
    with folder() as root:
        work = built_project(root / "project", options.built, 8)
        steps = multiply(work, "cat", [f"cat{number:03}" for number in range(1, recipes)])
        told(f"  copied to {steps:,} steps")
        (root / "empty").mkdir()
        (root / "empty" / "dodo.py").write_text(EMPTY.format(recipes=recipes, steps=steps // recipes))
        for command, where in ((DOIT, work.root), (DOIT, root / "empty")):
            cost([command], where)
        status = cost([DVC, "status"], work.root)
        told(f"  dvc status: {status}")
        assert "up to date" in status.out, status.out
        costs = median_costs({"doit": ([DOIT], work.root), "empty": ([DOIT], root / "empty")}, runs) | median_costs(
            {"dvc": ([DVC, "repro"], work.root)}, 1
        )
    assert UP_TO_DATE in costs["doit"].out, costs["doit"].out
    what = f"no-op doit, {steps:,} steps"
    notes = (
        f"doit: {costs['doit']}",
        f"doit on {steps:,} empty tasks: {costs['empty']}",
        f"dvc repro: {costs['dvc']}",
    )
    share = costs["doit"].cpu / (1.5 * costs["empty"].cpu + 1)
    return [
        Row(
            what=f"{what}: CPU",
            measured=f"{costs['doit'].cpu:.2f} s of {1.5 * costs['empty'].cpu + 1:.2f} s",
            bar="<= 1.5x doit on empty tasks + 1 s",
            ok=share <= 1,
            notes=notes,
        ),
        at_least(f"{what}: faster than dvc repro (CPU)", costs["dvc"].cpu / costs["doit"].cpu, 20, *notes),
    ]


def multiply(work: Work, first: str, others: list[str]) -> int:
    """Give a built recipe's outs and record to others that differ in their names only; return the number of steps."""
    for name in others:
        shutil.copy(work.root / f"recipes/{first}.yaml", work.root / f"recipes/{name}.yaml")
        shutil.copytree(work.root / f"build/{first}", work.root / f"build/{name}")
    project = Project(work.root)
    engine = Engine(project, load_project(project.root), Console())
    try:
        built = {step.kind: step for step in engine.steps.values() if step.recipe == first}
        entries = {
            step.stage: renamed(engine.lock_file.stages()[built[step.kind].stage], built[step.kind], step)
            for step in engine.steps.values()
            if step.recipe != first
        }
        engine.lock_file.write(entries, [step.stage for step in engine.steps.values()])
        engine.prepare()
        return len(engine.steps)
    finally:
        engine.close()


def renamed(entry: dict[str, Any], old: Step, new: Step) -> dict[str, Any]:
    """Return a step's record under another recipe's name."""
    reads = recorded_parameters(entry, old).get("reads", {})
    moved = json.loads(json.dumps(entry).replace(f'"{old.folder}/', f'"{new.folder}/'))
    return {**moved, "cmd": new.command, "params": new.params({**new.spec, "reads": reads})}


if __name__ == "__main__":
    sys.exit(main(measure))
