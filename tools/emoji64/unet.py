"""The UNet with its text encoder, trained together on the latents of the Noto pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from tools.emoji64 import text
from tools.emoji64.loop import Average, Metrics, Plan, batch_indices, generator, train
from tools.emoji64.pictures import Pictures

SNR_LEAST, SNR_MOST, WEIGHT_MOST = 1.0, 5.0, 16.0


class Denoiser(torch.nn.Module):
    """UNet and text encoder as one module: noisy latents, timesteps and tokens to the noise."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = build()
        self.text_encoder: CLIPTextModel = text.build_encoder(tokenizer)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Predict the noise in ``noisy`` (B, 16, 8, 8) at ``timesteps`` (B) with the captions' ``tokens`` (B, 32)."""
        states = self.text_encoder(tokens).last_hidden_state
        predicted = self.unet(noisy, timesteps, states).sample
        assert isinstance(predicted, torch.Tensor)
        return predicted


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Means and standard deviations of all pictures' latents, already scaled; (count, 16, 8, 8) each."""

    mean: torch.Tensor
    std: torch.Tensor


def build() -> UNet2DConditionModel:
    """A new UNet with random weights: most of its parameters and all attention work at 4x4 and 2x2."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 144),
        layers_per_block=1,
        cross_attention_dim=text.WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def scheduler() -> DDPMScheduler:
    """SD1's noise schedule."""
    return DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )


@torch.no_grad()
def encode_all(vae: AutoencoderKL, noto: Pictures) -> Latents:
    """The latents of every picture."""
    means, stds = [], []
    for part in torch.split(torch.arange(len(noto)), 64):
        latent = vae.encode(noto.normalised(part)).latent_dist
        means.append(latent.mean)
        stds.append(latent.std)
    factor = float(vae.config["scaling_factor"])
    return Latents(mean=torch.cat(means) * factor, std=torch.cat(stds) * factor)


def loss_weight(alphas_cumprod: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Weight of the noise's squared error: that of the clean latents' error is the SNR, kept within 1 and 5.

    The upper bound is min-SNR (Hang et al. 2023, https://arxiv.org/abs/2303.09556, section 3.4), the lower one
    truncated SNR (Salimans and Ho 2022, https://arxiv.org/abs/2202.00512, section 4): at much noise only the text
    says what the picture is, and without the lower bound nearly nothing is learned there. Never above 16.
    """
    snr = alphas_cumprod[timesteps] / (1 - alphas_cumprod[timesteps])
    return (snr.clamp(min=SNR_LEAST, max=SNR_MOST) / snr).clamp(max=WEIGHT_MOST)


def spread_timesteps(count: int, random: torch.Generator) -> torch.Tensor:
    """Random timesteps, one in each of ``count`` equal parts of 0..999, in random order."""
    parts = torch.randperm(count, generator=random) + torch.rand(count, generator=random)
    return (parts * (1000 / count)).long().clamp(max=999)


def train_unet(
    *, noto: Pictures, latents: Latents, tokenizer: CLIPTokenizer, folder: Path, plan: Plan, device: str = "cpu"
) -> None:
    """Train on Noto without the held-out pictures."""
    torch.manual_seed(plan.seed)
    model = Denoiser(tokenizer).to(device)
    average = Average(model, 0.999)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.99), fused=True)
    alphas = scheduler().alphas_cumprod
    pool = noto.indices(held_out=False)
    validation = noto.indices(held_out=True)

    def noisy_loss(model: Denoiser, chosen: torch.Tensor, captions: list[str], random: torch.Generator) -> torch.Tensor:
        spread = torch.randn(latents.mean[chosen].shape, generator=random)
        clean = latents.mean[chosen] + latents.std[chosen] * spread
        noise = torch.randn(clean.shape, generator=random)
        timesteps = spread_timesteps(len(chosen), random)
        alpha = alphas[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        tokens = text.tokens(tokenizer, captions)
        predicted = model(noisy.to(device), timesteps.to(device), tokens.to(device))
        errors = (predicted - noise.to(device)).square().mean(dim=(1, 2, 3))
        return torch.stack([errors, loss_weight(alphas, timesteps).to(device)])

    def loss_of(step: int) -> tuple[torch.Tensor, Metrics]:
        random = generator(plan.seed, step)
        chosen = batch_indices(pool, plan, step)
        draws = torch.rand(len(chosen), 3, generator=random).tolist()
        captions = [text.caption_variant(noto, int(i), d) for i, d in zip(chosen, draws, strict=True)]
        errors, weights = noisy_loss(model, chosen, captions, random)
        return (errors * weights).mean(), {"mse": float(errors.detach().mean())}

    @torch.no_grad()
    def evaluate(step: int) -> Metrics:
        averaged = Denoiser(tokenizer).to(device).eval()
        averaged.load_state_dict(average.state(), strict=False)
        metrics: Metrics = {}
        for name, chosen in {"train": pool[:: max(1, len(pool) // 80)], "held_out": validation}.items():
            captions = [noto.captions[int(i)] for i in chosen]
            errors, weights = noisy_loss(averaged, chosen, captions, generator(7, 0))
            metrics |= {f"{name}_mse": float(errors.mean()), f"{name}_weighted": float((errors * weights).mean())}
        return metrics

    folder.mkdir(parents=True, exist_ok=True)
    train(
        plan=plan, folder=folder, module=model, optimizer=optimizer, average=average,
        loss_of=loss_of, evaluate=evaluate, evaluate_every=500,
    )  # fmt: skip


def load_trained(folder: Path, tokenizer: CLIPTokenizer) -> tuple[Denoiser, int]:
    """The averaged UNet and text encoder of a run at its last checkpoint, and the steps it has had."""
    state = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    model = Denoiser(tokenizer).eval()
    model.load_state_dict(state["average"], strict=False)
    return model, int(state["step"])
