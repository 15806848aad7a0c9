"""The latents step beside a bare loop that decodes each picture and encodes it with the same VAE."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import Options, Row, Watch, at_least, folder, main
from benchmarks.project import Steps, bare_project
from sdbuild import families
from tests.tiny import make_pictures


def measure(options: Options) -> list[Row]:
    """Encode the same pictures with the step and with a bare loop, in turns."""
    count, rounds, side, width = (4, 1, 64, 8) if options.small else (24, 7, 256, 32)
    with folder() as root:
        work = bare_project(root / "project")
        write_vae(root / "project" / "base" / "vae", width)
        paths = make_pictures(work.root / "datasets" / "cats", count, size=side + side // 4)
        work.recipe(images={"resolution": side})
        steps = Steps(work)
        steps.run("images", "latents")
        bare_loop(work.root / "base", paths[:2], side)
        times: dict[str, list[tuple[float, float]]] = {"bare": [], "step": []}
        watch = Watch()
        for _ in range(rounds):
            watch.look()
            bare_loop(work.root / "base", paths, side)
            times["bare"].append(watch.look())
            done = steps.run("latents")
            times["step"].append(watch.look())
            assert done.computed == count
    wall, cpu = (statistics.median(b[at] / s[at] for b, s in zip(*times.values(), strict=True)) for at in (0, 1))
    rates = {name: count / statistics.median(wall for wall, _ in found) for name, found in times.items()}
    used = {name: statistics.median(cpu for _, cpu in found) / count for name, found in times.items()}
    return [
        at_least(
            "latents: pictures/s, over a bare VAE loop",
            wall,
            0.9,
            f"step: {rates['step']:.3g} pictures/s, {1000 * used['step']:.3g} ms CPU a picture",
            f"bare loop: {rates['bare']:.3g} pictures/s, {1000 * used['bare']:.3g} ms CPU a picture",
            f"by CPU time: {cpu:.3f}x",
            f"{count} pictures of {side + side // 4} px into {side} px, loading the VAE included in both",
        )
    ]


def write_vae(folder: Path, width: int) -> None:
    """Write a random VAE in Stable Diffusion 1's layout, with `width` channels in place of 128."""
    import torch
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoencoderKL(
            block_out_channels=(width, 2 * width, 4 * width, 4 * width),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=min(32, width),
        ).save_pretrained(folder)


def bare_loop(base: Path, paths: list[Path], side: int) -> Any:
    """Decode, scale and encode pictures one by one, and keep means and log-variances in memory."""
    import numpy as np
    import torch
    from PIL import Image

    encoder = families.load(base).load_vae()
    found = []
    for path in paths:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS))
        found.append(encoder.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1))
    return found


if __name__ == "__main__":
    sys.exit(main(measure))
