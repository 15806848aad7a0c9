"""Names of a UNet's modules in the layout of its authors (`input_blocks.4.1…`), which kohya's files for SDXL have."""

from __future__ import annotations

import re

from sdbuild.families.keys import UNET_WORDS, KohyaKeys

SGM_WORDS = (
    "input_blocks middle_block output_blocks in_layers out_layers emb_layers skip_connection time_embed label_emb "
    "out op"
)
ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
"""Modules outside the blocks."""
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
"""Modules inside a residual block."""
_ENDS_BACK = {theirs: ours for ours, theirs in ENDS.items()}
_RESNET_BACK = {theirs: ours for ours, theirs in RESNET.items()}
_OURS = re.compile(
    r"(down_blocks|mid_block|up_blocks)\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)"
)
_THEIRS = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)(?:\.(\d+))?")


class SDXLKeys(KohyaKeys):
    """Key map of Stable Diffusion XL; names as in diffusers' layout are understood too."""

    words = f"{UNET_WORDS} {SGM_WORDS}"

    def __init__(self, layers: int) -> None:
        """Use a UNet with that many layers a block."""
        super().__init__({"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"})
        self._layers = layers

    def filed(self, path: str) -> str:
        """Path in the authors' layout."""
        return to_sgm(path, self._layers)

    def own(self, path: str) -> str:
        """Path in diffusers' layout."""
        return from_sgm(path, self._layers)


def to_sgm(path: str, layers: int) -> str:
    """Rename a module from diffusers' layout to the authors'; `layers` is a block's number of them."""
    if path in ENDS:
        return ENDS[path]
    match = _OURS.match(path)
    if match is None:
        return path
    side, block, kind, index = match[1], int(match[2] or 0), match[3], int(match[4])
    rest = path[match.end() + 1 :]
    if kind == "resnets":
        rest = RESNET.get(rest, rest)
    elif kind == "downsamplers":
        rest = "op"
    if side == "mid_block":
        place = f"middle_block.{2 * index if kind == 'resnets' else 1}"
    elif side == "down_blocks":
        number = block * (layers + 1) + (layers if kind == "downsamplers" else index) + 1
        place = f"input_blocks.{number}.{int(kind == 'attentions')}"
    else:
        number = block * (layers + 1) + (layers if kind == "upsamplers" else index)
        place = f"output_blocks.{number}.{('resnets', 'attentions', 'upsamplers').index(kind)}"
    return f"{place}.{rest}" if rest else place


def from_sgm(path: str, layers: int) -> str:
    """Undo `to_sgm`; a path in diffusers' layout stays. `ValueError` for one of neither."""
    if path in _ENDS_BACK:
        return _ENDS_BACK[path]
    match = _THEIRS.match(path)
    if match is None:
        return path
    side, number, inner = match[1], int(match[2]), match[3]
    rest = path[match.end() + 1 :]
    if side == "middle_block":
        rest = path.split(".", 2)[2] if path.count(".") > 1 else ""
        if number == 1:
            return f"mid_block.attentions.0.{rest}"
        return f"mid_block.resnets.{number // 2}.{_RESNET_BACK.get(rest, rest)}"
    if inner is None:
        raise ValueError(f"{path}: is no module of this family's networks")
    if side == "input_blocks":
        block, index = divmod(number - 1, layers + 1)
        if rest == "op":
            return f"down_blocks.{block}.downsamplers.0.conv"
        side = "down_blocks"
    else:
        block, index = divmod(number, layers + 1)
        if rest == "conv":  # the third part of a block, or the second where it has no attention
            return f"up_blocks.{block}.upsamplers.0.conv"
        side = "up_blocks"
    if inner == "0":
        return f"{side}.{block}.resnets.{index}.{_RESNET_BACK.get(rest, rest)}"
    return f"{side}.{block}.attentions.{index}.{rest}"
