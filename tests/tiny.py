"""Tiny models and pictures for tests: real classes, random weights, nothing downloaded.

`make_pipeline` writes a pipeline of one family with VAE factor 8 (64 pixels are 8 latent pixels, as in SD1) and
about 100,000 parameters; any picture whose sides are multiples of 8 works (of 16 for sd3), 64×64 is its native size.
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


def _tokenizer(tokens: int, pad: str = "<|endoftext|>") -> Any:
    """Return a CLIP tokenizer that spells everything letter by letter: it encodes any text."""
    from transformers import CLIPTokenizer

    letters = _byte_letters()
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        merges=[],
        model_max_length=tokens,
        **({} if pad == "<|endoftext|>" else {"pad_token": pad}),
    )


def _t5_tokenizer() -> Any:
    """Return a T5 tokenizer that spells letter by letter."""
    from transformers import T5TokenizerFast

    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in letters)]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)


def _unet(**settings: Any) -> Any:
    from diffusers import UNet2DConditionModel

    common = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**(common | settings))


def _vae(**settings: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
        **({"latent_channels": 4} | settings),
    )


def _clip(
    tokenizer: Any, name: str = "CLIPTextModel", activation: str = "quick_gelu", layers: int = 2, **settings: Any
) -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_act=activation,
        **settings,
    )
    return getattr(transformers, name)(config)


def _ddim(**settings: Any) -> Any:
    from diffusers import DDIMScheduler

    noise = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    return DDIMScheduler(**(noise | settings))


def _sd1(noise: dict[str, Any]) -> Any:
    from diffusers import StableDiffusionPipeline

    tokenizer = _tokenizer(77)
    return StableDiffusionPipeline(
        unet=_unet(),
        vae=_vae(),
        text_encoder=_clip(tokenizer),
        tokenizer=tokenizer,
        scheduler=_ddim(**noise),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd2(noise: dict[str, Any]) -> Any:
    from diffusers import StableDiffusionPipeline

    tokenizer = _tokenizer(77, pad="!")
    return StableDiffusionPipeline(
        unet=_unet(use_linear_projection=True),
        vae=_vae(),
        text_encoder=_clip(tokenizer, activation="gelu"),
        tokenizer=tokenizer,
        scheduler=_ddim(**noise),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _unet_xl(width: int, numbers: int) -> Any:
    return _unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=numbers * 8 + 24,
    )


def make_refiner(folder: Path, *, seed: int = 0) -> Path:
    """Write the part of a refiner for sdxl that pictures are finished with; return the folder."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _unet_xl(32, 5).save_pretrained(folder / "unet")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLImg2ImgPipeline"}\n')
    return folder


def _sdxl(noise: dict[str, Any]) -> Any:
    from diffusers import StableDiffusionXLPipeline

    first, second = _tokenizer(77), _tokenizer(77, pad="!")
    unet = _unet_xl(64, 6)
    return StableDiffusionXLPipeline(
        unet=unet,
        vae=_vae(scaling_factor=0.13025),
        text_encoder=_clip(first, layers=3),
        text_encoder_2=_clip(second, "CLIPTextModelWithProjection", "gelu", layers=3, projection_dim=24),
        tokenizer=first,
        tokenizer_2=second,
        scheduler=_ddim(**noise),
        add_watermarker=False,
    )


def _sd3(noise: dict[str, Any]) -> Any:
    import transformers
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    first, second, third = _tokenizer(77), _tokenizer(77, pad="!"), _t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=72,
        caption_projection_dim=16,
        pooled_projection_dim=56,
        pos_embed_max_size=12,
    )
    t5 = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=len(third),
            d_model=72,
            d_kv=8,
            d_ff=64,
            num_layers=1,
            num_heads=2,
            relative_attention_num_buckets=8,
            feed_forward_proj="gated-gelu",
        )
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        vae=_vae(
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=_clip(first, "CLIPTextModelWithProjection", layers=3, projection_dim=32),
        text_encoder_2=_clip(second, "CLIPTextModelWithProjection", "gelu", layers=3, projection_dim=24),
        text_encoder_3=t5,
        tokenizer=first,
        tokenizer_2=second,
        tokenizer_3=third,
        scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 3.0} | noise)),
    )


PIPELINES = {"sd1": _sd1, "sd2": _sd2, "sdxl": _sdxl, "sd3": _sd3}
"""By family."""
PREDICTS = {"sd1": "epsilon", "sd2": "v_prediction", "sdxl": "epsilon"}
"""What each diffusion predicts unless a test wants something else."""


def make_pipeline(
    folder: Path,
    *,
    seed: int = 0,
    prediction_type: str | None = None,
    scheduler: dict[str, Any] | None = None,
    family: str = "sd1",
    t5: bool = True,
) -> Path:
    """Write a random pipeline of a family to `folder` and return it; the same seed gives the same bytes.

    Args:
        folder: where to.
        seed: of all weights.
        prediction_type: of a diffusion.
        scheduler: settings of its scheduler besides the usual ones.
        family: a key of `PIPELINES`.
        t5: whether sd3 has its third text encoder.
    """
    import torch

    noise = dict(scheduler or {})
    if kind := prediction_type or PREDICTS.get(family):
        noise.setdefault("prediction_type", kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = PIPELINES[family](noise)
    if not t5:
        pipeline.register_modules(text_encoder_3=None, tokenizer_3=None)
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
