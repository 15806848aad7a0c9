"""Names of Stable Diffusion 3's transformer in the layout of its authors (`joint_blocks.0.x_block…`).

There one layer gives queries, keys and values together. A LoRA on the three is written as one whose factors stand side
by side, the second in blocks on the diagonal: its rank is three times as large, its product the same. Files of other
methods have diffusers' names after `lora_transformer_`, which ComfyUI reads as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdbuild.families.keys import KohyaKeys

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sdbuild.families.contract import Component

WORDS = (
    "transformer_blocks attn attn2 to_q to_k to_v to_out add_q_proj add_k_proj add_v_proj to_add_out ff ff_context net "
    "proj norm1 norm1_context norm_out linear linear_1 linear_2 context_embedder pos_embed time_text_embed "
    "timestep_embedder text_embedder proj_out"
)
JOINT_WORDS = (
    "joint_blocks x_block context_block attn attn2 qkv proj mlp fc1 fc2 adaLN_modulation final_layer linear x_embedder "
    "context_embedder t_embedder y_embedder"
)
PREFIX = "lora_unet"
"""Of the authors' names, in kohya's files."""
ENDS = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
BLOCK = {
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
}
_BLOCK = re.compile(r"(transformer_blocks|joint_blocks)\.(\d+)\.(.+)")
_BACK = {theirs: ours for ours, theirs in (ENDS | BLOCK).items()}
_PARTS = {part: (fused, index) for fused, parts in FUSED.items() for index, part in enumerate(parts)}


def to_joint(path: str) -> tuple[str, int | None]:
    """Rename a module to the authors' layout; of a part of a fused layer, which of its three parts it is."""
    if path in ENDS:
        return ENDS[path], None
    match = _BLOCK.fullmatch(path)
    inner = match[3] if match else ""
    if match and inner in BLOCK:
        return f"joint_blocks.{match[2]}.{BLOCK[inner]}", None
    if match and inner in _PARTS:
        fused, index = _PARTS[inner]
        return f"joint_blocks.{match[2]}.{fused}", index
    raise ValueError(f"{path}: is no module of this family's transformer")


def from_joint(path: str) -> tuple[str, ...]:
    """Undo `to_joint`: the module, or the three that are fused."""
    match = _BLOCK.fullmatch(path)
    if match is None and path in _BACK:
        return (_BACK[path],)
    inner = match[3] if match else ""
    names = FUSED.get(inner) or ((_BACK[inner],) if inner in _BACK else ())
    if match is None or not names:
        raise ValueError(f"{path}: is no module of this family's transformer")
    return tuple(f"transformer_blocks.{match[2]}.{name}" for name in names)


def to_authors(tensors: Mapping[str, Tensor], prefix: str, network: Any) -> dict[str, Tensor]:
    """Name a transformer's tensors as its authors do; see `original`."""
    import torch

    found: dict[str, Tensor] = {}
    fused: dict[str, dict[int, Tensor]] = {}
    swapped = _swapped(network.config.num_layers)
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if name == "pos_embed.pos_embed":
            found[f"{prefix}pos_embed"] = tensor
            continue
        theirs, index = to_joint(module)
        if index is not None:
            fused.setdefault(f"{prefix}{theirs}.{kind}", {})[index] = tensor
        else:
            found[f"{prefix}{theirs}.{kind}"] = swap_halves(tensor) if module in swapped else tensor
    return found | {name: torch.cat([parts[index] for index in range(3)]) for name, parts in fused.items()}


def _swapped(depth: int) -> frozenset[str]:
    """Layers whose two halves, scale and shift, the authors have the other way round."""
    return frozenset({f"transformer_blocks.{depth - 1}.norm1_context.linear", "norm_out.linear"})


class SD3Keys(KohyaKeys):
    """Key map of Stable Diffusion 3."""

    words = WORDS

    def __init__(self, depth: int) -> None:
        """Use a transformer with that many blocks."""
        super().__init__({"transformer": "lora_transformer", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"})
        self._swapped = _swapped(depth)

    def authors(self, component: Component, path: str) -> tuple[str, bool]:
        """Name layers with halves that the authors have the other way round as the authors do."""
        if component != "transformer" or path not in self._swapped:
            return super().authors(component, path)
        return f"{PREFIX}_{to_joint(path)[0].replace('.', '_')}", True

    def path(self, name: str) -> tuple[Component, str]:
        """Return component and module path of a name; one of a fused layer belongs to no single module."""
        if name.startswith(f"{PREFIX}_"):
            found = from_joint(self.split(name.removeprefix(f"{PREFIX}_"), JOINT_WORDS, name))
            if len(found) > 1:
                raise ValueError(f"{name}: holds {', '.join(found)} together")
            return "transformer", found[0]
        return super().path(name)

    def to_kohya(self, state: Mapping[str, Tensor], alphas: Mapping[str, float] | float) -> dict[str, Tensor]:
        """Rename a LoRA from diffusers' names to kohya's, queries, keys and values side by side."""
        import torch

        text = {key: tensor for key, tensor in state.items() if not key.startswith("transformer.")}
        renamed = super().to_kohya(text, alphas)
        fused: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
        for key, down in state.items():
            if not key.startswith("transformer.") or not key.endswith(".lora_A.weight"):
                continue
            module = key.removesuffix(".lora_A.weight")
            path = module.removeprefix("transformer.")
            up = state[f"{module}.lora_B.weight"]
            up = swap_halves(up) if path in self._swapped else up
            theirs, index = to_joint(path)
            alpha = float(alphas[module] if isinstance(alphas, Mapping) else alphas)
            name = f"{PREFIX}_{theirs.replace('.', '_')}"
            if index is None:
                renamed |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
                renamed[f"{name}.alpha"] = torch.tensor(alpha)
            else:  # scaled so that alpha over rank is 1 in the whole
                fused.setdefault(name, {})[index] = (down, up * (alpha / len(down)))
        for name, parts in fused.items():
            renamed |= {f"{name}.{suffix}": tensor for suffix, tensor in _fuse(parts).items()}
        return renamed

    def from_kohya(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Undo `to_kohya`; what was fused comes apart, with a rank of its own where its parts had one."""
        joint = {key: tensor for key, tensor in state.items() if key.startswith(f"{PREFIX}_")}
        renamed, alphas = super().from_kohya({key: tensor for key, tensor in state.items() if key not in joint})
        for name in sorted({key.partition(".")[0] for key in joint}):
            modules = from_joint(self.split(name.removeprefix(f"{PREFIX}_"), JOINT_WORDS, name))
            down, up = joint[f"{name}.lora_down.weight"], joint[f"{name}.lora_up.weight"]
            alpha = float(joint.get(f"{name}.alpha", len(down)))
            parts = [(down, up)] if len(modules) == 1 else _unfuse(down, up)
            for module, (part, whole) in zip(modules, parts, strict=True):
                if module in self._swapped:
                    whole = swap_halves(whole)
                key = f"transformer.{module}"
                renamed |= {f"{key}.lora_A.weight": part, f"{key}.lora_B.weight": whole}
                alphas[key] = alpha * len(part) / len(down)
        return renamed, alphas


def swap_halves(tensor: Tensor) -> Tensor:
    """Exchange the first and the second half of the rows."""
    return tensor.roll(len(tensor) // 2, 0)


def _fuse(parts: Mapping[int, tuple[Tensor, Tensor]]) -> dict[str, torch.Tensor]:
    import torch

    down = torch.cat([parts[index][0] for index in sorted(parts)])
    height = len(next(iter(parts.values()))[1])
    up = down.new_zeros(3 * height, len(down))
    column = 0
    for index in sorted(parts):
        block = parts[index][1]
        up[index * height : (index + 1) * height, column : column + block.shape[1]] = block
        column += block.shape[1]
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(float(len(down)))}


def _unfuse(down: Tensor, up: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Take apart; the columns that a part does not use go, where what is left of each has the same rank."""
    blocks = up.chunk(3)
    used = [block.abs().sum(dim=0) != 0 for block in blocks]
    ranks = {int(columns.sum()) for columns in used}
    if ranks == {len(down) // 3}:
        return [(down[columns], block[:, columns]) for block, columns in zip(blocks, used, strict=True)]
    return [(down, block.contiguous()) for block in blocks]
