"""Tensors in the layouts of the models' authors, renamed to those of diffusers and transformers by diffusers' rules.

Each function takes a component's tensors, the prefix of their names, and an empty network of the component's class and
configuration. It returns the tensors by the network's own names. Importing this is light.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdbuild.families.keys import TEXT_ROOT

if TYPE_CHECKING:
    from torch import Tensor


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
