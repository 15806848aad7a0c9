"""Tensors in the layouts of the models' authors and in those of diffusers and transformers: there and back.

Each function takes a component's tensors, the prefix that their names have in the authors' layout, and a network of the
component's class and configuration. Reading, which is by diffusers' rules, returns the tensors by the network's own
names; writing returns them by the authors' names, prefix included. Importing this is light.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdbuild.families.description import Names
from sdbuild.families.keys import TEXT_ROOT
from sdbuild.families.sgm import to_sgm

if TYPE_CHECKING:
    from torch import Tensor

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
"""Parts of names in an autoencoder, and what its authors call them."""
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
"""The same of a text encoder of OpenCLIP."""


def ldm_unet(tensors: Mapping[str, Tensor], prefix: str, network: Any) -> dict[str, Tensor]:
    """A UNet: `input_blocks.1.0.in_layers.2.weight` and so on."""
    from diffusers.loaders import single_file_utils as rules

    found: dict[str, Tensor] = rules.convert_ldm_unet_checkpoint(dict(tensors), config=dict(network.config))
    return found


def ldm_vae(tensors: Mapping[str, Tensor], prefix: str, network: Any) -> dict[str, Tensor]:
    """An autoencoder: `encoder.down.0.block.0.conv1.weight` and so on."""
    from diffusers.loaders import single_file_utils as rules

    found: dict[str, Tensor] = rules.convert_ldm_vae_checkpoint(dict(tensors), config=dict(network.config))
    return found


def clip(tensors: Mapping[str, Tensor], prefix: str, network: Any) -> dict[str, Tensor]:
    """A CLIP text encoder as transformers has it."""
    import torch

    found = unprefixed(tensors, prefix, network)
    if hasattr(network, "text_projection") and "text_projection.weight" not in found:
        # The authors take the pooled state as it is; transformers has a projection there in any case.
        found["text_projection.weight"] = torch.eye(network.config.hidden_size)
    return found


def openclip(tensors: Mapping[str, Tensor], prefix: str, network: Any) -> dict[str, Tensor]:
    """A text encoder of OpenCLIP: `transformer.resblocks.0.attn.in_proj_weight` and so on."""
    from diffusers.loaders import single_file_utils as rules

    found: dict[str, Tensor] = rules.convert_open_clip_checkpoint(network, dict(tensors), prefix=prefix)
    # Version 2 takes the second to last layer, and its configuration has no other: the last is left out.
    unused = f"{TEXT_ROOT}encoder.layers.{network.config.num_hidden_layers}."
    return {name: tensor for name, tensor in found.items() if not name.startswith(unused)}


def unprefixed(tensors: Mapping[str, Tensor], prefix: str, network: Any) -> dict[str, Tensor]:
    """A network whose names differ by the prefix alone."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def to_ldm_unet(tensors: Mapping[str, Tensor], prefix: str, network: Any) -> dict[str, Tensor]:
    """Undo `ldm_unet`."""
    layers = network.config.layers_per_block
    with_attention = {name.partition(".attentions")[0] for name in tensors if ".attentions." in name}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        theirs = to_sgm(module, layers if isinstance(layers, int) else layers[0])
        if "upsamplers" in name and name.partition(".upsamplers")[0] not in with_attention:
            theirs = theirs.replace(".2.conv", ".1.conv")
        found[f"{prefix}{theirs}.{kind}"] = tensor
    return found


def to_ldm_vae(tensors: Mapping[str, Tensor], prefix: str, network: Any) -> dict[str, Tensor]:
    """Undo `ldm_vae`."""
    blocks = len(network.config.block_out_channels)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = _replaced(name, VAE_NAMES).split(".")
        if "down_blocks" in parts:
            parts[1] = "down"
        elif "up_blocks" in parts:  # counted from the other end
            parts[1:3] = ["up", str(blocks - 1 - int(parts[2]))]
        convolution = "attn_1" in parts and tensor.ndim == 2
        found[prefix + ".".join(parts)] = tensor[..., None, None] if convolution else tensor
    return found


def to_clip(tensors: Mapping[str, Tensor], prefix: str, network: Any) -> dict[str, Tensor]:
    """Undo `clip`."""
    return {f"{prefix}{name}": tensor for name, tensor in _rooted(tensors).items()}


def to_openclip(tensors: Mapping[str, Tensor], prefix: str, network: Any) -> dict[str, Tensor]:
    """Undo `openclip`: queries, keys and values lie in one tensor there."""
    import torch

    found: dict[str, Tensor] = {}
    state = _rooted(tensors)
    for name, tensor in state.items():
        stem, attention, part = name.partition(".self_attn.")
        if name == "text_projection.weight":
            found[f"{prefix}text_projection"] = tensor.T
        elif attention and not part.startswith("out_proj"):
            kind = part.rpartition(".")[2]
            whole = [state[f"{stem}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            place = stem.replace("text_model.encoder.layers.", "transformer.resblocks.")
            found.setdefault(f"{prefix}{place}.attn.in_proj_{kind}", torch.cat(whole))
        else:
            found[f"{prefix}{_replaced(name, OPENCLIP_NAMES)}"] = tensor
    return found


def prefixed(tensors: Mapping[str, Tensor], prefix: str, network: Any) -> dict[str, Tensor]:
    """Undo `unprefixed`."""
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _replaced(name: str, words: Mapping[str, str]) -> str:
    for ours, theirs in words.items():
        name = name.replace(ours, theirs)
    return name


def _rooted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's tensors under the root that recent releases of transformers dropped."""
    return {
        name if name.startswith((TEXT_ROOT, "text_projection.")) else f"{TEXT_ROOT}{name}": tensor
        for name, tensor in tensors.items()
    }


UNET = Names(read=ldm_unet, write=to_ldm_unet)
VAE = Names(read=ldm_vae, write=to_ldm_vae)
CLIP = Names(read=clip, write=to_clip)
OPENCLIP = Names(read=openclip, write=to_openclip)
PREFIXED = Names(read=unprefixed, write=prefixed)
