"""Checkpoints in one file, in the layout of the models' authors, made from folders in diffusers' layout.

The rules are those of the authors' code, written down here the other way round than in what is tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdbuild.families.mmdit import swap_halves, to_joint
from sdbuild.families.sgm import to_sgm
from sdbuild.recipe.places import INDEX

Tensors = dict[str, Tensor]
VAE_NAMES = {
    "conv_norm_out": "norm_out",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "conv_shortcut": "nin_shortcut",
    "resnets": "block",
}
OPENCLIP_NAMES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def make_single(folder: Path, file: Path, family: str, *, t5: bool = True, extra: Tensors | None = None) -> Path:
    """Write the base in a folder as one file."""
    parts = {path.parent.name: load_file(path) for path in folder.glob("*/*.safetensors")}
    vae = {f"first_stage_model.{name}": tensor for name, tensor in vae_names(parts["vae"]).items()}
    match family:
        case "sd1":
            found = _prefixed("model.diffusion_model.", unet_names(parts["unet"])) | vae
            found |= _prefixed("cond_stage_model.transformer.", clip_names(parts["text_encoder"]))
        case "sd2":
            found = _prefixed("model.diffusion_model.", unet_names(parts["unet"])) | vae
            found |= _prefixed("cond_stage_model.model.", openclip_names(parts["text_encoder"]))
            unused = {name.replace("resblocks.1.", "resblocks.2."): tensor for name, tensor in found.items()}
            found = {name: tensor.clone() for name, tensor in unused.items()} | found
        case "sdxl":
            found = _prefixed("model.diffusion_model.", unet_names(parts["unet"])) | vae
            found |= _prefixed("conditioner.embedders.0.transformer.", clip_names(parts["text_encoder"]))
            found |= _prefixed("conditioner.embedders.1.model.", openclip_names(parts["text_encoder_2"]))
        case _:
            found = _prefixed("model.diffusion_model.", mmdit_names(parts["transformer"])) | vae
            clip_l = {name: tensor for name, tensor in parts["text_encoder"].items() if "projection" not in name}
            found |= _prefixed("text_encoders.clip_l.transformer.", clip_names(clip_l))
            found |= _prefixed("text_encoders.clip_g.transformer.", clip_names(parts["text_encoder_2"]))
            if t5:
                found |= _prefixed("text_encoders.t5xxl.transformer.", parts["text_encoder_3"])
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in (found | (extra or {})).items()}, file)
    return file


def copy_configurations(folder: Path, target: Path) -> Path:
    """The folder without its weights."""
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".txt") and path.name != "model.safetensors.index.json":
            place = target / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    assert (target / INDEX).is_file()
    return target


def unet_names(state: Mapping[str, Tensor], layers: int = 1) -> Tensors:
    with_attention = {name.partition(".attentions")[0] for name in state if ".attentions." in name}
    found: Tensors = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        theirs = to_sgm(module, layers)
        if "upsamplers" in name and name.partition(".upsamplers")[0] not in with_attention:
            theirs = theirs.replace(".2.conv", ".1.conv")
        found[f"{theirs}.{kind}"] = tensor
    return found


def vae_names(state: Mapping[str, Tensor]) -> Tensors:
    found: Tensors = {}
    blocks = 1 + max(int(name.split(".")[2]) for name in state if ".up_blocks." in name)
    for name, tensor in state.items():
        theirs = name
        for ours, other in VAE_NAMES.items():
            theirs = theirs.replace(ours, other)
        parts = theirs.split(".")
        if "down_blocks" in parts:
            parts[1] = "down"
        elif "up_blocks" in parts:
            parts[1:3] = ["up", str(blocks - 1 - int(parts[2]))]
        if "attn_1" in parts and tensor.ndim == 2:
            tensor = tensor[..., None, None]
        found[".".join(parts)] = tensor
    return found


def clip_names(state: Mapping[str, Tensor]) -> Tensors:
    return {
        name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": tensor
        for name, tensor in state.items()
    }


def openclip_names(state: Mapping[str, Tensor]) -> Tensors:
    found: Tensors = {}
    state = clip_names(state)
    for name, tensor in state.items():
        if name == "text_projection.weight":
            found["text_projection"] = tensor.T
            continue
        if ".self_attn." in name and "out_proj" not in name:
            stem, _, part = name.partition(".self_attn.")
            if part.startswith("q_proj"):
                kind = part.rpartition(".")[2]
                whole = torch.cat([state[f"{stem}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"])
                place = stem.replace("text_model.encoder.layers.", "transformer.resblocks.")
                found[f"{place}.attn.in_proj_{kind}"] = whole
            continue
        for ours, theirs in OPENCLIP_NAMES.items():
            name = name.replace(ours, theirs)
        found[name] = tensor
    return found


def mmdit_names(state: Mapping[str, Tensor]) -> Tensors:
    found: Tensors = {}
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("transformer_blocks."))
    fused: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if name == "pos_embed.pos_embed":
            found["pos_embed"] = tensor
            continue
        theirs, index = to_joint(module)
        if index is not None:
            fused.setdefault(f"{theirs}.{kind}", {})[index] = tensor
            continue
        swapped = module in ("norm_out.linear", f"transformer_blocks.{depth - 1}.norm1_context.linear")
        found[f"{theirs}.{kind}"] = swap_halves(tensor) if swapped else tensor
    return found | {name: torch.cat([parts[index] for index in range(3)]) for name, parts in fused.items()}


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
