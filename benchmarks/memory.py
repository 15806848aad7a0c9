"""Peak memory of the latents and text steps on n and on 8n pictures; the index of the shards may grow."""

from __future__ import annotations

import json
import resource
import sys
import tracemalloc
from pathlib import Path

from benchmarks.harness import Options, Row, at_most, cost, folder, main
from benchmarks.project import PYTHON, Steps, bare_project
from sdbuild.data.items import ShardReader
from tests.conftest import Work
from tests.tiny import make_pictures

REPOSITORY = Path(__file__).parent.parent
TIMES = 8
KINDS = ("latents", "text")
SIZES = ("few", "many")


def measure(options: Options) -> list[Row]:
    """Run each step on few and on many pictures, a process for each step."""
    side, few = (16, 4) if options.small else (64, 300)
    with folder() as root:
        work = bare_project(root / "project")
        for recipe, count in zip(SIZES, (few, TIMES * few), strict=True):
            make_pictures(work.root / "datasets" / recipe, count, size=side)
            for number, path in enumerate(sorted((work.root / "datasets" / recipe).glob("*.txt"))):
                path.write_text(f"picture {number}\n", encoding="utf-8")
            datasets = [{"path": f"datasets/{recipe}"}]
            work.recipe(recipe, datasets=datasets, images={"resolution": side})
        for recipe in SIZES:  # here, because these steps need memory of their own
            Steps(work, recipe).run("images", "captions")
        return [row(kind, work.root, few, here=options.small) for kind in KINDS]


def row(kind: str, root: Path, few: int, *, here: bool) -> Row:
    """Measure one step; what its shards' index takes is measured apart and not counted."""
    if here:
        found = figures_of(root, kind)
    else:
        done = cost([PYTHON, "-m", "benchmarks.memory", "--child", str(root), kind], REPOSITORY)
        found = json.loads(done.out.splitlines()[-1])
    few_rest, many_rest = (each["peak"] - each["index"] for each in found)
    return at_most(
        f"{kind}: peak memory without the index, {TIMES} times the pictures",
        many_rest / few_rest,
        1.05,
        *(
            f"{count:,} pictures: peak {each['peak']:.1f} MB, of which index {each['index']:.2f} MB; "
            f"before the step {each['before']:.1f} MB; items {each['items']:.1f} MB"
            for count, each in zip((few, TIMES * few), found, strict=True)
        ),
    )


def figures_of(root: Path, kind: str) -> list[dict[str, float]]:
    """Run a step on few pictures, then on many; a process's peak never falls, so what the second adds is seen."""
    return [figures(Steps(Work(root), recipe), kind) for recipe in SIZES]


def figures(steps: Steps, kind: str) -> dict[str, float]:
    """Run a step and return megabytes: peak of this process, before the step, the index, the items."""
    before = peak()
    steps.run(kind)
    found = {"before": before, "peak": peak()}
    shards = steps.out / kind / kind
    tracemalloc.start()
    reader = ShardReader(shards)
    held = len(reader)
    found["index"] = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    assert held > 0
    found["items"] = sum(path.stat().st_size for path in shards.glob("*.safetensors")) / 1e6
    return found


def peak() -> float:
    """Return the largest resident size of this process so far, in megabytes."""
    status = Path("/proc/self/status")
    if status.exists():  # there getrusage counts the process that started this one, too
        found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(found.split()[1]) * 1024 / 1e6
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 1e6 if sys.platform == "darwin" else size * 1024 / 1e6


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(figures_of(Path(sys.argv[2]), sys.argv[3])))
    else:
        sys.exit(main(measure))
