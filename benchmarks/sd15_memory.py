"""Peak memory of LoRA steps at Stable Diffusion 1.5's size, beside a bare loop; each in a process of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.harness import Options, Row, at_most, cost, folder, main
from benchmarks.memory import REPOSITORY, peak
from benchmarks.project import PYTHON, Steps
from benchmarks.sd15_base import cached_project
from benchmarks.sd15_step import bare_loop, bare_network
from tests.conftest import Work

COUNT = 3
"""Steps; the second has all that later ones have."""


def measure(options: Options) -> list[Row]:
    """Train in float32, 256 px, batch 1."""
    with folder() as root:
        cached_project(root, small=options.small, steps=COUNT)
        return [compare(root)]


def compare(root: Path) -> Row:
    """Train with the train step and with a bare loop, in the GPU's memory if there is one."""
    found = {}
    for name in ("ours", "bare"):
        done = cost([PYTHON, "-m", "benchmarks.sd15_memory", "--child", str(root), name], REPOSITORY)
        found[name] = json.loads(done.out.splitlines()[-1])
    return at_most(
        "SD1.5 LoRA steps: peak memory over a bare loop",
        found["ours"]["steps"] / found["bare"]["steps"],
        1.05,
        *(
            f"{what}: {found[name]['steps']:,.0f} MB in steps; {found[name]['whole']:,.0f} MB with loading, "
            "the base's file included as far as it is mapped"
            for name, what in (("ours", "train step"), ("bare", "bare loop"))
        ),
    )


def figures(steps: Steps, name: str) -> dict[str, float]:
    """Run some steps and return megabytes: the peak in steps, and with loading."""
    import torch

    cuda = torch.cuda.is_available()
    loading: list[float] = []

    def highest() -> float:
        return torch.cuda.max_memory_allocated() / 1e6 if cuda else peak()

    def loaded(*_: object, **__: object) -> None:
        if not loading:
            loading.append(highest())
            torch.cuda.reset_peak_memory_stats() if cuda else forget_peak()

    if name == "ours":
        steps.run("train", on_progress=loaded)
    else:
        from diffusers import UNet2DConditionModel

        dtype = getattr(torch, steps.spec("train")["train"]["precision"])
        folder = steps.root / "base" / "unet"
        network = UNet2DConditionModel.from_pretrained(folder, local_files_only=True, torch_dtype=dtype)
        network = network.to("cuda" if cuda else "cpu")
        take = bare_loop(steps, *bare_network(network.config, network.state_dict()))
        del network
        loaded()
        take(COUNT)
    return {"steps": highest(), "whole": max(highest(), *loading)}


def forget_peak() -> None:
    """Have Linux count the peak from now on; elsewhere it stays that of the whole process."""
    refs = Path("/proc/self/clear_refs")
    if refs.exists():
        refs.write_text("5")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(figures(Steps(Work(Path(sys.argv[2]))), sys.argv[3])))
    else:
        sys.exit(main(measure))
