"""The train step beside a bare loop: the same UNet, LoRA and optimizer, data in memory."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import Options, Row, Watch, at_least, folder, main
from benchmarks.project import Steps, bare_project
from sdbuild import families, methods
from sdbuild.data.items import ShardReader
from sdbuild.families.contract import NoiseSchedule
from sdbuild.methods.contract import Networks
from sdbuild.recipe.methods import method_of
from sdbuild.training.optimizers import OPTIMIZERS
from tests.tiny import make_pictures

BATCH = 2
WARM = 2
"""Steps that are not counted: first uses of everything."""


def measure(options: Options) -> list[Row]:
    """Train with the step and with a bare loop, in turns."""
    count, rounds, width = (6, 1, 8) if options.small else (25, 7, 64)
    with folder() as root:
        work = bare_project(root / "project")
        write_unet(work.root / "base" / "unet", width)
        make_pictures(work.root / "datasets" / "cats", 9, size=128)
        work.recipe(
            images={"resolution": 128},
            method={"kind": "lora", "rank": 8, "alpha": 8},
            train={"steps": count, "batch": BATCH, "checkpoint_every": 10, "validate": 1, "optimizer": "adamw"},
        )
        steps = Steps(work)
        steps.run("images", "captions", "latents", "text")
        found: dict[str, list[tuple[float, float]]] = {"bare": [], "step": []}
        for _ in range(rounds):
            found["bare"].append(bare_loop(steps, count))
            found["step"].append(train_step(steps, count))
    wall, cpu = (statistics.median(b[at] / s[at] for b, s in zip(*found.values(), strict=True)) for at in (0, 1))
    rates = {name: 1 / statistics.median(wall for wall, _ in each) for name, each in found.items()}
    used = {name: 1000 * statistics.median(cpu for _, cpu in each) for name, each in found.items()}
    return [
        at_least(
            "training: steps/s, over a bare loop",
            wall,
            0.95,
            f"step: {rates['step']:.3g} steps/s, {used['step']:.3g} ms CPU a step",
            f"bare loop: {rates['bare']:.3g} steps/s, {used['bare']:.3g} ms CPU a step",
            f"by CPU time: {cpu:.3f}x",
        )
    ]


def write_unet(folder: Path, width: int) -> None:
    """Write a random UNet for the tiny base, with `width` channels in its first block."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(width, 2 * width, 4 * width),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
        ).save_pretrained(folder)


def train_step(steps: Steps, count: int) -> tuple[float, float]:
    """Run the train step; return wall and processor seconds of one training step, checkpoints included."""
    seen: list[tuple[int, float, float]] = []
    watch = Watch()

    def note(done: int, total: int, unit: str, **figures: float) -> None:
        wall, cpu = watch.look()
        wall, cpu = (seen[-1][1] + wall, seen[-1][2] + cpu) if seen else (0.0, 0.0)
        seen.append((done, wall, cpu))

    steps.run("train", on_progress=note)
    start = next((each for each in seen if each[0] >= WARM), seen[0])
    end = seen[-1]
    assert end[0] == count, seen
    if start[0] == end[0]:  # so small that progress was told once
        start = seen[0]
    return (end[1] - start[1]) / (end[0] - start[0]), (end[2] - start[2]) / (end[0] - start[0])


def bare_loop(steps: Steps, count: int) -> tuple[float, float]:
    """Train as one would write it by hand; return wall and processor seconds of one step."""
    import torch

    spec = steps.spec("train")
    settings = spec["train"]
    family = families.load(steps.root / "base")
    denoiser = family.load_denoiser()
    adapter = methods.load("lora").inject(
        Networks(modules={"unet": denoiser.module}), method_of(spec["method"]), seed=0
    )
    parameters = [parameter for _, parameter in adapter.parameters()]
    optimizer = OPTIMIZERS["adamw"](parameters, settings["learning_rate"], settings["weight_decay"])
    schedule = family.noise_schedule()
    assert isinstance(schedule, NoiseSchedule)
    alphas = schedule.alphas_cumprod.float()
    latents, hidden = in_memory(steps.out)
    adapter.train(True)
    watch = Watch()
    for step in range(count):
        if step == WARM:
            watch.look()
        chosen = torch.randint(len(latents), (BATCH,))
        x = family.scale(latents[chosen])
        noise = torch.randn_like(x)
        timesteps = torch.randint(len(alphas), (BATCH,))
        share = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = share.sqrt() * x + (1 - share).sqrt() * noise
        prediction = denoiser.predict(noisy, timesteps, {"hidden": hidden[chosen % len(hidden)]})
        loss = torch.nn.functional.mse_loss(prediction, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    wall, cpu = watch.look()
    return wall / (count - WARM), cpu / (count - WARM)


def in_memory(out: Path) -> tuple[Any, Any]:
    """Return all latents [N, C, h, w] and all text conditions [N, L, D]."""
    import torch

    latents, texts = (ShardReader(out / kind / kind) for kind in ("latents", "text"))
    return (
        torch.stack([latents.read(key)["mean"] for key in latents.keys()]),  # noqa: SIM118
        torch.stack([texts.read(key)["hidden"] for key in texts.keys()]),  # noqa: SIM118
    )


if __name__ == "__main__":
    sys.exit(main(measure))
