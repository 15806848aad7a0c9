"""The finished pipeline as a folder in diffusers' SD1 layout, in half precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from tools.emoji64.unet import Denoiser


def pipeline(vae: AutoencoderKL, model: Denoiser, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """The parts as a pipeline, with SD1's scheduler."""
    schedule = PNDMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=model.text_encoder, tokenizer=tokenizer, unet=model.unet, scheduler=schedule,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def export(pipe: StableDiffusionPipeline, vocabulary: Path, folder: Path) -> int:
    """Write ``pipe`` to ``folder`` as float16 safetensors, each file whole or not at all; returns their bytes.

    ``vocabulary`` is the folder with the tokenizer's ``vocab.json`` and ``merges.txt``.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    pipe.to(torch.float16).save_pretrained(temporary, safe_serialization=True)
    _suit_older_readers(temporary, vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    for part in sorted(path for path in temporary.rglob("*") if path.is_file()):
        target = folder / part.relative_to(temporary)
        target.parent.mkdir(parents=True, exist_ok=True)
        part.chmod(0o644)
        part.replace(target)
    shutil.rmtree(temporary)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _suit_older_readers(folder: Path, vocabulary: Path) -> None:
    """Write text encoder and tokenizer as SD1 has them, which every release of transformers reads."""
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(vocabulary / name, folder / "tokenizer" / name)
    settings = folder / "tokenizer" / "tokenizer_config.json"
    known = json.loads(settings.read_text(encoding="utf-8"))
    kept = {name: value for name, value in known.items() if name.endswith(("_token", "_class", "_length"))}
    settings.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    for config in folder.glob("*/config.json"):  # where the parts lay when they were loaded is nobody's business
        content = json.loads(config.read_text(encoding="utf-8"))
        content.pop("_name_or_path", None)
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
