"""From `doit` to the first training step on a 2 GB base with cached items, beside loading the UNet alone."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import Options, Row, at_most, cost, folder, main, told
from benchmarks.project import DOIT, PYTHON, new_project
from benchmarks.sd15_base import project
from tests.build.killing import TELLING, Build
from tests.build.test_kill import workers
from tests.conftest import Work, environment

LOAD = """
import sys
import torch
from diffusers import UNet2DConditionModel
unet = UNet2DConditionModel.from_pretrained(sys.argv[1], local_files_only=True)
unet.to("cuda" if torch.cuda.is_available() else "cpu")
print("loaded", flush=True)
sys.stdin.read()
"""
FIRST = "train under way"


def measure(options: Options) -> list[Row]:
    """Start both in turns; what is timed begins with the process."""
    rounds = 1 if options.small else 3
    with folder() as root:
        work = project(root / "project", small=options.small, make=new_project, steps=2)
        work.write("dodo.py", TELLING)
        told(f"  items cached: {cost([DOIT, 'cat:text', 'cat:latents'], work.root)}")
        seconds: dict[str, list[tuple[float, float]]] = {"doit": [], "load": []}
        for number in range(rounds + 1):
            taken = {"load": load(work), "doit": start(work)}
            for name in taken if number else ():  # the first round brings files into memory
                seconds[name].append(taken[name])
    (wall, cpu), (wall_load, cpu_load) = (
        tuple(statistics.median(each[at] for each in found) for at in (0, 1)) for found in seconds.values()
    )
    return [
        at_most(
            "SD1.5: start to first step over loading the UNet",
            statistics.median([d[0] / b[0] for d, b in zip(*seconds.values(), strict=True)]),
            1.3,
            f"doit, until the first step begins: {wall:.3g} s, {cpu:.3g} s CPU",
            f"python, until the UNet is loaded in float32: {wall_load:.3g} s, {cpu_load:.3g} s CPU",
            f"by CPU time: {cpu / cpu_load:.3f}x",
        )
    ]


def start(work: Work) -> tuple[float, float]:
    """Build until the first step begins; return wall and processor seconds, and forget the training."""
    build = Build.start(work)
    while build.phases[-1][0] != FIRST:
        assert build.process.poll() is None, build.output.read_text()
        build.look(0.05)
    used = sum(processor_seconds(pid) for pid in {build.process.pid, *workers(work)})
    build.kill("all")
    build.end()
    shutil.rmtree(work.root / ".sdbuild" / "runs", ignore_errors=True)
    return build.phases[-1][1] - build.phases[0][1], used


def load(work: Work) -> tuple[float, float]:
    """Load the UNet in a process of its own; return wall and processor seconds."""
    began = time.monotonic()
    process = subprocess.Popen(
        [PYTHON, "-c", LOAD, str(work.root / "base" / "unet")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"loaded\n"
        return time.monotonic() - began, processor_seconds(process.pid)


def processor_seconds(pid: int) -> float:
    """Return what a running process has used so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main(measure))
