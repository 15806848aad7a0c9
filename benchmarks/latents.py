"""The latents step beside a bare loop that decodes each picture and encodes it with the same VAE."""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
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
        make_pictures(work.root / "datasets" / "cats", count, size=side + side // 4)
        work.recipe(images={"resolution": side})
        found = take_turns(Steps(work), side, rounds)
    return [
        at_least(
            "latents: pictures/s, over a bare VAE loop",
            found.ratio(0),
            0.9,
            *found.notes,
            f"by CPU time: {found.ratio(1):.3f}x",
        )
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Turns:
    """Wall and processor seconds of a picture in each round."""

    bare: list[tuple[float, float]]
    step: list[tuple[float, float]]
    notes: tuple[str, ...]

    def ratio(self, clock: int) -> float:
        """Return the median of bare over step, by `clock` 0 the wall's or 1 the processor's."""
        return statistics.median([b[clock] / s[clock] for b, s in zip(self.bare, self.step, strict=True)])


def take_turns(steps: Steps, side: int, rounds: int) -> Turns:
    """Encode a project's pictures with the bare loop and with the step, in turns."""
    paths = sorted((steps.root / "datasets" / "cats").glob("*.png"))
    steps.run("images", "latents")
    bare_loop(steps.root / "base", paths[:2], side)
    times: dict[str, list[tuple[float, float]]] = {"bare": [], "step": []}
    watch = Watch()
    for _ in range(rounds):
        watch.look()
        bare_loop(steps.root / "base", paths, side)
        times["bare"].append(watch.look())
        done = steps.run("latents")
        times["step"].append(watch.look())
        assert done.computed == len(paths)
    found = {name: [(wall / len(paths), cpu / len(paths)) for wall, cpu in each] for name, each in times.items()}
    notes = [
        f"{what}: {1 / statistics.median(wall for wall, _ in found[name]):.3g} pictures/s, "
        f"{1000 * statistics.median(cpu for _, cpu in found[name]):.3g} ms CPU a picture"
        for name, what in (("step", "step"), ("bare", "bare loop"))
    ]
    size = f"{len(paths)} pictures of {side + side // 4} px into {side} px, loading the VAE included in both"
    return Turns(**found, notes=(*notes, size))


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
    from accelerate import PartialState
    from PIL import Image

    encoder = families.load(base).load_vae(torch.float32, str(PartialState().device))
    found = []
    for path in paths:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS))
        found.append(encoder.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1))
    return found


if __name__ == "__main__":
    sys.exit(main(measure))
