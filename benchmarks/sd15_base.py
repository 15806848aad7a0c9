"""A base of Stable Diffusion 1.5's shapes and size with random weights, and projects on it whose items are cached.

With `small`, the layout is the same and the widths are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.project import Steps, bare_project
from tests.conftest import Work
from tests.tiny import make_pictures

METHOD = {"kind": "lora", "rank": 4, "alpha": 4, "targets": "attention"}
"""What is trained; all else is the default."""
SIDE = 256
"""Of pictures, in pixels."""


def cached_project(root: Path, *, small: bool, side: int = SIDE, batch: int = 1, **train: Any) -> Steps:
    """Make a folder in which all is ready for training on four pictures of `side` pixels."""
    steps = Steps(project(root, small=small, side=side, batch=batch, **train))
    steps.run("images", "captions", "latents", "text")
    return steps


def project(
    root: Path,
    *,
    small: bool,
    side: int = SIDE,
    batch: int = 1,
    make: Callable[[Path], Work] = bare_project,
    **train: Any,
) -> Work:
    """Make a folder with such a base, four pictures and a recipe."""
    work = make(root)
    write_base(work.root / "base", small=small)
    side = 64 if small else side
    make_pictures(work.root / "datasets" / "cats", 4, size=side + side // 4)
    work.recipe(
        datasets=[{"path": "datasets/cats", "trigger": "sks"}],
        images={"resolution": side, "buckets": {"step": 8, "max_aspect": 1}},
        method=METHOD,
        train={"steps": 1, "batch": batch, **train},
    )
    return work


def write_base(folder: Path, *, small: bool) -> None:
    """Put networks of Stable Diffusion 1.5's shapes, random and in float16 (2.1 GB), in place of a tiny base's."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    narrow = 10 if small else 1
    width = 768 // 8 if small else 768
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=tuple(channels // narrow for channels in (320, 640, 1280, 1280)),
            attention_head_dim=8,
            cross_attention_dim=width,
        )
        channels = 32 if small else 128
        vae = AutoencoderKL(
            block_out_channels=(channels, 2 * channels, 4 * channels, 4 * channels),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        )
        text = CLIPTextModel(_text_config(CLIPTextConfig, folder, width, small))
    _write(unet, folder / "unet", "diffusion_pytorch_model.safetensors")
    _write(vae, folder / "vae", "diffusion_pytorch_model.safetensors")
    _write(text, folder / "text_encoder", "model.safetensors")


def _text_config(cls: Any, folder: Path, width: int, small: bool) -> Any:
    """The real encoder's shapes, with the ids of the tiny base's tokenizer."""
    tiny = cls.from_pretrained(folder / "text_encoder")
    ids = {name: getattr(tiny, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return cls(
        vocab_size=tiny.vocab_size if small else 49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2 if small else 12,
        num_attention_heads=12,
        hidden_act="quick_gelu",
        **ids,
    )


def _write(network: Any, folder: Path, name: str) -> None:
    """Write a network that has shapes only, with random weights: norms as they start, the rest as layers start."""
    import torch
    from safetensors.torch import save_file

    chance = torch.Generator().manual_seed(0)
    tensors = {}
    for key, shaped in network.state_dict().items():
        if not shaped.is_floating_point():  # positions of tokens, which every class makes itself
            continue
        tensor = torch.empty(shaped.shape, dtype=torch.float16)
        if "norm" in key or shaped.ndim == 1:
            tensors[key] = tensor.fill_(1.0 if key.endswith("weight") else 0.0)
        else:
            bound = shaped[0].numel() ** -0.5
            tensors[key] = tensor.uniform_(-bound, bound, generator=chance)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    if hasattr(network, "save_config"):  # diffusers
        network.save_config(folder)
    else:
        network.config.save_pretrained(folder)
    save_file(tensors, folder / name, metadata={"format": "pt"})


def attention_layers(network: Any) -> Iterator[str]:
    """Paths of what `METHOD` adapts."""
    from torch import nn

    for path, module in network.named_modules():
        if isinstance(module, nn.Linear) and {"attn1", "attn2"} & set(path.split(".")):
            yield path
