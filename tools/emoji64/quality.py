"""The table of the embedded base's quality, measured from its shipped weights."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from tools.emoji64 import sampling, text, unet, vae
from tools.emoji64.loop import generator
from tools.emoji64.pictures import Pictures

CAPTIONS = 200
DRAWS = 16
TRIGGER = "3d render of "
RECIPE = "emoji-3d"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: what was measured, the least that is asked for, and what was found."""

    what: str
    wanted: str
    found: str


def spread(pool: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` of the indices, evenly spaced."""
    return pool[torch.linspace(0, len(pool) - 1, min(count, len(pool))).round().long()]


@torch.no_grad()
def losses(pipe: StableDiffusionPipeline, latents: torch.Tensor, captions: list[str]) -> torch.Tensor:
    """Mean squared error of the predicted noise for each picture, over the same draws of noise and timestep.

    ``latents`` is (pictures, 16, 8, 8) in the UNet's scale; draw ``n`` has its timestep in the n-th of 16 equal parts.
    """
    states = pipe.text_encoder(text.tokens(pipe.tokenizer, captions)).last_hidden_state
    alphas = unet.scheduler().alphas_cumprod
    total = torch.zeros(len(latents))
    for draw in range(DRAWS):
        random = generator(11, draw)
        noise = torch.randn(latents.shape, generator=random)
        timesteps = ((draw + torch.rand(len(latents), generator=random)) * (1000 / DRAWS)).long().clamp(max=999)
        alpha = alphas[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        total += (pipe.unet(noisy, timesteps, states).sample - noise).square().mean(dim=(1, 2, 3))
    return total / DRAWS


def train_adapter(folder: Path) -> Path:
    """Build the example's recipe in a new project, as a user does, and return the adapter's file."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for arguments in (["sdbuild", "init", "."], ["doit", f"{RECIPE}:train"]):
        subprocess.run([sys.executable, "-m", *arguments], cwd=folder, env=environment, check=True, stdout=sys.stderr)
    return folder / "build" / RECIPE / "adapter" / f"{RECIPE}.safetensors"


def measure_adapter(
    pipe: StableDiffusionPipeline, adapter: Path, *, noto: Pictures, fluent: Pictures, learned: Path
) -> list[Row]:
    """What the example's adapter changes: held-out Fluent pictures get likelier, Noto pictures stay as they were.

    ``learned`` is the example's folder of pictures: what stands there is no held-out Fluent picture.
    """
    seen = {path.stem.replace("-", " ") for path in learned.glob("*.webp")}
    unseen = [i for i, caption in enumerate(fluent.captions) if caption.replace("-", " ") not in seen]
    new = spread(torch.tensor(unseen), CAPTIONS)
    old = noto.indices(held_out=True)
    sets = {
        "fluent": (unet.encode_all(pipe.vae, fluent).mean[new], [TRIGGER + fluent.captions[int(i)] for i in new]),
        "noto": (unet.encode_all(pipe.vae, noto).mean[old], [noto.captions[int(i)] for i in old]),
    }
    before = {name: float(losses(pipe, *data).mean()) for name, data in sets.items()}
    pipe.load_lora_weights(adapter.parent, weight_name=adapter.name)
    after = {name: float(losses(pipe, *data).mean()) for name, data in sets.items()}
    pipe.unload_lora_weights()
    change = {name: after[name] / before[name] - 1 for name in sets}
    shown = {name: f"{change[name]:+.1%} ({before[name]:.4f} -> {after[name]:.4f})" for name in sets}
    return [
        Row(what=f"validation loss on {len(new)} Fluent pictures, adapter against base", wanted="-20 %",
            found=shown["fluent"]),
        Row(what=f"the same on {len(old)} held-out Noto pictures, no trigger", wanted="<= +5 %", found=shown["noto"]),
    ]  # fmt: skip


def measure_vae(pipe: StableDiffusionPipeline, noto: Pictures) -> Row:
    """Reconstruction of the held-out pictures."""
    pictures = noto.normalised(noto.indices(held_out=True))
    decibel = vae.psnr(vae.reconstruct(pipe.vae, pictures), pictures)
    return Row(what=f"VAE, PSNR on {len(pictures)} held-out Noto pictures", wanted=">= 28 dB",
               found=f"{float(decibel.mean()):.2f} dB (median {float(decibel.median()):.2f})")  # fmt: skip


def measure_samples(pipe: StableDiffusionPipeline, noto: Pictures, sheet: Path | None) -> Row:
    """Nearest Noto pictures of samples; ``sheet`` gets pairs of the picture asked for and the sample."""
    chosen = spread(noto.indices(held_out=False), CAPTIONS)
    samples = sampling.sample(pipe, [noto.captions[int(i)] for i in chosen])
    found = sampling.nearest(samples, unet.encode_all(pipe.vae, noto).mean)
    result = sampling.hits(noto, chosen, found)
    if sheet is not None:
        pairs = torch.stack([noto.normalised(chosen), sampling.decode(pipe, samples)], dim=1).flatten(0, 1)
        vae.sheet(pairs, 20).save(sheet)
    return Row(what=f"{len(chosen)} captions sampled, nearest is of the same subcategory", wanted=">= 40 %",
               found=f"{result.subcategory:.1%} (exact {result.exact:.1%}, chance {result.chance:.1%})")  # fmt: skip


def measure_guidance(pipe: StableDiffusionPipeline, noto: Pictures) -> list[Row]:
    """Share of pictures whose own caption gives a lower loss than another picture's caption."""
    rows = []
    for name, pool in {
        "training": spread(noto.indices(held_out=False), CAPTIONS),
        "held-out": noto.indices(held_out=True),
    }.items():
        latents = unet.encode_all(pipe.vae, noto).mean[pool]
        captions = [noto.captions[int(i)] for i in pool]
        others = captions[len(captions) // 2 :] + captions[: len(captions) // 2]
        better = losses(pipe, latents, captions) < losses(pipe, latents, others)
        rows.append(Row(what=f"own caption beats another on {len(pool)} {name} Noto pictures",
                        wanted=">= 90 %" if name == "training" else "-",
                        found=f"{float(better.float().mean()):.1%}"))  # fmt: skip
    return rows


def measure(base: Path, *, noto: Pictures, fluent: Pictures, adapter: Path | None, sheet: Path | None) -> list[Row]:
    """The whole table; without ``adapter`` one is trained first."""
    pipe = sampling.load(base)
    learned = Path(__file__).parents[2] / "datasets" / RECIPE
    rows = [measure_vae(pipe, noto), measure_samples(pipe, noto, sheet), *measure_guidance(pipe, noto)]
    with tempfile.TemporaryDirectory() as folder:
        made = adapter or train_adapter(Path(folder))
        rows += measure_adapter(pipe, made, noto=noto, fluent=fluent, learned=learned)
    return rows


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | wanted | measured |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {row.what} | {row.wanted} | {row.found} |" for row in rows)])
