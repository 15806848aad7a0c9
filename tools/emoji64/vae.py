"""The autoencoder: 64x64 pictures to 8x8 latents of 16 channels and back."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image

from tools.emoji64.loop import Average, Metrics, Plan, batch_indices, generator, train
from tools.emoji64.pictures import Pictures

SCALING_FACTOR = 0.18215
"""SD1's factor: latents times this have unit variance, see :func:`normalise`."""

KL_WEIGHT = 1e-4


def build() -> AutoencoderKL:
    """A new autoencoder with random weights."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=SCALING_FACTOR,
        mid_block_add_attention=False,
    )


def gradient_l1(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the horizontal and vertical differences of two batches of pictures."""
    difference = a - b
    across = (difference[..., 1:] - difference[..., :-1]).abs().mean()
    down = (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
    return across + down


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each picture, both batches in [-1, 1]."""
    error = ((a.clamp(-1, 1) - b.clamp(-1, 1)) / 2).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(error.clamp_min(1e-10))


@torch.no_grad()
def normalise(vae: AutoencoderKL, pictures: torch.Tensor) -> None:
    """Fold a shift and a scale for each latent channel into the two 1x1 convolutions around the latent.

    Afterwards latents times :data:`SCALING_FACTOR` have mean 0 and variance 1 in every channel over
    ``pictures``, and reconstructions are what they were.
    """
    means = encode(vae, pictures)
    shift = means.mean(dim=(0, 2, 3))
    scale = means.std(dim=(0, 2, 3)) * SCALING_FACTOR
    channels = len(shift)
    before, after = vae.quant_conv, vae.post_quant_conv
    assert before is not None
    assert after is not None
    before.weight[:channels] /= scale[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - shift) / scale
    before.bias[channels:] -= 2 * scale.log()
    after.bias += after.weight[:, :, 0, 0] @ shift
    after.weight *= scale[None, :, None, None]


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """The means of the latents, not yet multiplied by the scaling factor."""
    return torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(pictures, 64)])


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Pictures through the latents' means and back."""
    return torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in torch.split(pictures, 64)])


def sheet(pictures: torch.Tensor, columns: int) -> Image.Image:
    """A batch in [-1, 1] as one picture, row by row."""
    levels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    missing = -len(levels) % columns
    levels = torch.cat([levels, torch.full((missing, *levels.shape[1:]), 255, dtype=torch.uint8)])
    rows = levels.reshape(-1, columns, *levels.shape[1:]).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    return Image.fromarray(rows.numpy())


def train_vae(*, noto: Pictures, fluent: Pictures, folder: Path, plan: Plan, device: str = "cpu") -> None:
    """Train on Noto without the held-out pictures, and on all Fluent pictures, which show it more shading."""
    torch.manual_seed(plan.seed)
    vae = build().to(device, memory_format=torch.channels_last)  # a tenth faster on a CPU
    kept = noto.pixels[noto.indices(held_out=False)]
    pixels = torch.cat([kept, fluent.pixels])
    held_out = noto.normalised(noto.indices(held_out=True))
    pool = torch.arange(len(pixels))
    average = Average(vae, 0.998)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=plan.rate, betas=(0.9, 0.99), weight_decay=0.0)

    def loss_of(step: int) -> tuple[torch.Tensor, Metrics]:
        random = generator(plan.seed, step)
        batch = pixels[batch_indices(pool, plan, step)].float() / 127.5 - 1
        flips = torch.rand(len(batch), generator=random) < 0.5
        batch = torch.where(flips[:, None, None, None], batch.flip(-1), batch).to(
            device, memory_format=torch.channels_last
        )
        latent = vae.encode(batch).latent_dist
        noise = torch.randn(latent.mean.shape, generator=random).to(device)
        decoded = vae.decode(latent.mean + latent.std * noise).sample
        l1 = F.l1_loss(decoded, batch)
        mse = F.mse_loss(decoded, batch)
        kl = 0.5 * (latent.mean.square() + latent.var - 1 - latent.logvar).mean()
        loss = l1 + mse + 0.5 * gradient_l1(decoded, batch) + KL_WEIGHT * kl
        return loss, {"l1": float(l1.detach()), "mse": float(mse.detach()), "kl": float(kl.detach())}

    def evaluate(step: int) -> Metrics:
        averaged = build().eval()
        averaged.load_state_dict(average.state())
        decoded = reconstruct(averaged, held_out)
        pairs = torch.stack([held_out[:40], decoded[:40]], dim=1).flatten(0, 1)
        sheet(pairs, 16).save(folder / f"held-out-{step:06d}.png")
        latents = encode(averaged, held_out)
        return {"psnr": float(psnr(decoded, held_out).mean()), "latent_std": float(latents.std())}

    folder.mkdir(parents=True, exist_ok=True)
    train(
        plan=plan, folder=folder, module=vae, optimizer=optimizer, average=average,
        loss_of=loss_of, evaluate=evaluate, evaluate_every=500,
    )  # fmt: skip


def train_decoder(*, vae: AutoencoderKL, noto: Pictures, fluent: Pictures, folder: Path, plan: Plan) -> None:
    """Train only the decoder of a frozen, normalised autoencoder further, on latents computed once.

    The encoder stays, so a UNet can train on its latents at the same time.
    """
    torch.manual_seed(plan.seed)
    kept = noto.pixels[noto.indices(held_out=False)]
    pixels = torch.cat([kept, fluent.pixels])
    pixels = torch.cat([pixels, pixels.flip(-1)])
    held_out = noto.normalised(noto.indices(held_out=True))
    with torch.no_grad():
        parts = [vae.encode(part.float() / 127.5 - 1).latent_dist for part in torch.split(pixels, 64)]
        means, stds = torch.cat([part.mean for part in parts]), torch.cat([part.std for part in parts])
        held_out_latents = encode(vae, held_out)
    pool = torch.arange(len(pixels))
    vae.to(memory_format=torch.channels_last)
    module = torch.nn.ModuleDict({"post_quant_conv": vae.post_quant_conv, "decoder": vae.decoder})
    average = Average(module, 0.998)
    optimizer = torch.optim.AdamW(module.parameters(), lr=plan.rate, betas=(0.9, 0.99), weight_decay=0.0)

    def loss_of(step: int) -> tuple[torch.Tensor, Metrics]:
        chosen = batch_indices(pool, plan, step)
        batch = (pixels[chosen].float() / 127.5 - 1).to(memory_format=torch.channels_last)
        noise = torch.randn(means[chosen].shape, generator=generator(plan.seed, step))
        decoded = module["decoder"](module["post_quant_conv"](means[chosen] + 0.5 * stds[chosen] * noise))
        l1, mse = F.l1_loss(decoded, batch), F.mse_loss(decoded, batch)
        loss = l1 + 3 * mse + 0.25 * gradient_l1(decoded, batch)
        return loss, {"l1": float(l1.detach()), "mse": float(mse.detach())}

    @torch.no_grad()
    def evaluate(step: int) -> Metrics:
        live = {name: value.clone() for name, value in module.state_dict().items()}
        module.load_state_dict(average.state())
        decoded = torch.cat([vae.decode(part).sample for part in torch.split(held_out_latents, 64)])
        module.load_state_dict(live)
        pairs = torch.stack([held_out[:40], decoded[:40]], dim=1).flatten(0, 1)
        sheet(pairs, 16).save(folder / f"held-out-{step:06d}.png")
        return {"psnr": float(psnr(decoded, held_out).mean())}

    folder.mkdir(parents=True, exist_ok=True)
    train(
        plan=plan, folder=folder, module=module, optimizer=optimizer, average=average,
        loss_of=loss_of, evaluate=evaluate, evaluate_every=500,
    )  # fmt: skip


def load_frozen(frozen: Path, decoder: Path) -> AutoencoderKL:
    """The frozen autoencoder, with the further trained decoder where there is a checkpoint of one."""
    vae = AutoencoderKL.from_pretrained(frozen).eval()
    assert isinstance(vae, AutoencoderKL)
    checkpoint = decoder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["average"]
        missing = vae.load_state_dict(state, strict=False)
        assert not missing.unexpected_keys
    return vae


def load_trained(folder: Path) -> AutoencoderKL:
    """The averaged autoencoder of a run, as it is at its last checkpoint."""
    vae = build().eval()
    vae.load_state_dict(torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)["average"])
    return vae
