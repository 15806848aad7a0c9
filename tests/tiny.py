"""Tiny models and pictures for tests: real classes, random weights, nothing downloaded.

`make_pipeline` writes a Stable Diffusion 1 layout with VAE factor 8 (64 pixels are 8 latent pixels, as in SD1) and
about 100,000 parameters; any picture whose sides are multiples of 8 works, 64×64 is its native size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SUBJECTS = ("cat", "rocket", "apple", "house", "star", "fish", "tree", "ball", "boat", "cup")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "pink", "grey", "brown")


def _byte_letters() -> list[str]:
    """Return the 256 letters of byte-level BPE, in the order of OpenAI's table."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + index) for index in range(len(rest))]


def _tokenizer(tokens: int) -> Any:
    """Return a CLIP tokenizer that spells everything letter by letter: it encodes any text."""
    from transformers import CLIPTokenizer

    letters = _byte_letters()
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)}, merges=[], model_max_length=tokens
    )


def make_pipeline(
    folder: Path, *, seed: int = 0, prediction_type: str = "epsilon", scheduler: dict[str, Any] | None = None
) -> Path:
    """Write a random Stable Diffusion pipeline to `folder` and return it; the same seed gives the same bytes."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = _tokenizer(77)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=2,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=64,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=77,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                hidden_act="quick_gelu",
            )
        )
    noise = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": prediction_type,
    }
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**(noise | (scheduler or {}))),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def make_pictures(
    folder: Path, n: int, *, captions: bool = True, seed: int = 0, size: int | tuple[int, int] = 64
) -> list[Path]:
    """Write `n` distinct PNG pictures of `size` (one side, or width and height), with sidecars; return their paths."""
    import random

    from PIL import Image, ImageDraw

    width, height = (size, size) if isinstance(size, int) else size
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(n):
        chance = random.Random(f"{seed}/{index}")
        # The background says which picture it is, so that no two of one seed are alike.
        colour = (index % 256, (index // 256) % 256, chance.randrange(256))
        picture = Image.new("RGB", (width, height), colour)
        draw = ImageDraw.Draw(picture)
        for _ in range(3):
            left, top = chance.randrange(width), chance.randrange(height)
            box = (left, top, left + 1 + chance.randrange(width), top + 1 + chance.randrange(height))
            draw.ellipse(box, fill=tuple(chance.randrange(256) for _ in range(3)))
        draw.rectangle((0, 0, width // 8, height // 8), fill=colour)
        path = folder / f"{index:04d}.png"
        picture.save(path)
        if captions:
            subject, shade = SUBJECTS[index % len(SUBJECTS)], COLOURS[(index // len(SUBJECTS)) % len(COLOURS)]
            path.with_suffix(".txt").write_text(f"a {shade} {subject}\n", encoding="utf-8")
        paths.append(path)
    return paths


def make_lora(folder: Path, base: Path, *, rank: int = 2, seed: int = 0, text: bool = False, size: float = 0.5) -> Path:
    """Write a random LoRA for `base` as `folder`/pytorch_lora_weights.safetensors; it changes every prediction."""
    import torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from peft import LoraConfig, get_peft_model_state_dict
    from transformers import CLIPTextModel

    def adapted(model: Any, targets: list[str]) -> dict[str, torch.Tensor]:
        model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
        state = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
        return {name: torch.randn(tensor.shape, generator=chance) * size for name, tensor in sorted(state.items())}

    chance = torch.Generator().manual_seed(seed)
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", local_files_only=True)
    layers = {"unet_lora_layers": adapted(unet, ["to_q", "to_k", "to_v", "to_out.0"])}
    if text:
        encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder", local_files_only=True)
        state = adapted(encoder, ["q_proj", "v_proj"])
        layers["text_encoder_lora_layers"] = {
            f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()
        }
    folder.mkdir(parents=True, exist_ok=True)
    StableDiffusionPipeline.save_lora_weights(folder, **layers)
    return folder / "pytorch_lora_weights.safetensors"
