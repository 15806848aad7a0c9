"""What the field's programs make of an adapter's file: new weights of one layer, from what is named after it.

By ComfyUI's `comfy/weight_adapter/*.py` and `comfy/lora.py` (LoRA, LoHa, LoKr, GLoRA, OFT, changes of biases), by
LyCORIS' modules, and by A1111's `extensions-builtin/Lora/network_ia3.py`; of hypernetworks by A1111's
`modules/hypernetworks/hypernetwork.py`, which ComfyUI's `comfy_extras/nodes_hypernetwork.py` follows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Part = Mapping[str, Tensor]


def weight_of(part: Part, weight: Tensor) -> Tensor:
    """Return the weight with the adapter in it, at strength 1."""
    for mark, reader in READERS.items():
        if mark in part:
            return reader(part, weight)
    raise AssertionError(f"no reader knows {sorted(part)}")


def _scale(part: Part, rank: int | None) -> float:
    return float(part["alpha"]) / rank if rank and "alpha" in part else 1.0


def lora(part: Part, weight: Tensor) -> Tensor:
    down, up = part["lora_down.weight"], part["lora_up.weight"]
    product = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    scale = _scale(part, len(down))
    if "dora_scale" not in part:
        return weight + scale * product
    lengths = part["dora_scale"]
    readers = [dora_in_lycoris] if len(lengths) == len(weight) else DORA
    first, *others = (reader(lengths, weight, product, scale) for reader in readers)
    assert all(torch.allclose(each, first, atol=1e-6) for each in others)
    return first


def _row_lengths(weight: Tensor) -> Tensor:
    found: Tensor = weight.reshape(len(weight), -1).norm(dim=1).reshape(-1, *[1] * (weight.dim() - 1))
    return found


def _column_lengths(weight: Tensor) -> Tensor:
    flat = weight.transpose(0, 1).reshape(weight.shape[1], -1)
    found: Tensor = flat.norm(dim=1).reshape(-1, *[1] * (weight.dim() - 1)).transpose(0, 1)
    return found


def dora_in_comfyui(lengths: Tensor, weight: Tensor, product: Tensor, scale: float) -> Tensor:
    """ComfyUI 9c0cf36, `comfy/weight_adapter/base.py: weight_decompose`; Forge dfdcbab, `backend/patcher/lora.py`."""
    added = weight + product * scale
    own = _row_lengths(weight) if lengths.shape[0] == added.shape[0] else _column_lengths(added)
    return added * (lengths / (own + torch.finfo(weight.dtype).eps))


def dora_in_a1111(lengths: Tensor, weight: Tensor, product: Tensor, scale: float) -> Tensor:
    """A1111 1.10.1, `extensions-builtin/Lora/network.py: finalize_updown` and `apply_weight_decompose`."""
    added = product * scale + weight
    return weight + (added * (lengths / _column_lengths(added)) - weight)


def dora_in_sd_next(lengths: Tensor, weight: Tensor, product: Tensor, scale: float) -> Tensor:
    """SD.Next 1b6ebd9, the same file: lengths come first, then the scale, which is that of the whole change."""
    added = product + weight
    return weight + scale * (added * (lengths / _column_lengths(added)) - weight)


def dora_in_invokeai(lengths: Tensor, weight: Tensor, product: Tensor, scale: float) -> Tensor:
    """InvokeAI 19ef9e9, `invokeai/backend/patches/layers/dora_layer.py: get_weight`, of a `dora_scale`."""
    added = weight + product * scale
    return weight + (added * (lengths / _column_lengths(added)) - weight)


def dora_in_lycoris(lengths: Tensor, weight: Tensor, product: Tensor, scale: float) -> Tensor:
    """LyCORIS 4.1.3, `lycoris/functional/general.py: weight_decompose`, whose loader takes lengths of outputs alone."""
    added = weight + product * scale
    assert lengths.shape[0] == len(added)
    return added * (lengths / (_row_lengths(added) + torch.finfo(added.dtype).eps))


DORA = (dora_in_comfyui, dora_in_a1111, dora_in_sd_next, dora_in_invokeai)
"""What programs make of lengths, the base's weight, and a product with its scale."""


def loha(part: Part, weight: Tensor) -> Tensor:
    def factor(number: int) -> Tensor:
        a, b = part[f"hada_w{number}_a"], part[f"hada_w{number}_b"]
        core = part.get(f"hada_t{number}")
        return a @ b if core is None else torch.einsum("ijkl,jr,ip->prkl", core, b, a)

    return weight + _scale(part, len(part["hada_w1_b"])) * (factor(1) * factor(2)).reshape(weight.shape)


def lokr(part: Part, weight: Tensor) -> Tensor:
    rank = None
    factors = []
    for number in (1, 2):
        whole = part.get(f"lokr_w{number}")
        if whole is None:
            a, b, core = part[f"lokr_w{number}_a"], part[f"lokr_w{number}_b"], part.get(f"lokr_t{number}")
            rank = len(b)
            whole = a @ b if core is None else torch.einsum("ijkl,jr,ip->prkl", core, b, a)
        factors.append(whole)
    first, second = factors
    if second.dim() == 4:
        first = first[:, :, None, None]
    return weight + _scale(part, rank) * torch.kron(first, second).reshape(weight.shape)


def glora(part: Part, weight: Tensor) -> Tensor:
    a1, a2, b1, b2 = (part[f"{name}.weight"].flatten(1) for name in ("a1", "a2", "b1", "b2"))
    turned = weight.movedim(1, -1) @ a1 @ a2
    added = turned.movedim(-1, 1) + (b1 @ b2).reshape(weight.shape)
    return weight + _scale(part, len(a2)) * added


def oft(part: Part, weight: Tensor) -> Tensor:
    blocks = part["oft_blocks"]
    count, size, _ = blocks.shape
    skew = blocks - blocks.transpose(1, 2)
    limit = float(part["alpha"])
    assert limit * size > skew.norm(), "readers would limit the turns"
    identity = torch.eye(size)
    turns = (identity + skew) @ (identity - skew).inverse()
    rows = weight.reshape(count, size, -1)
    return torch.einsum("knm,kni->kmi", turns, rows).reshape(weight.shape)


def ia3(part: Part, weight: Tensor) -> Tensor:
    vector = part["weight"]
    if weight.dim() == 4:
        assert vector.dim() == 4
        return weight + (weight * vector if part["on_input"] else (weight.transpose(0, 1) * vector).transpose(0, 1))
    return weight + weight * (vector if int(part["on_input"]) else vector.reshape(-1, 1))


READERS = {
    "lora_down.weight": lora,
    "hada_w1_a": loha,
    "lokr_w1": lokr,
    "lokr_w1_a": lokr,
    "a1.weight": glora,
    "oft_blocks": oft,
    "on_input": ia3,
}
"""By a name that tells the method."""


def hypernetwork_of(content: Mapping[Any, Any]) -> dict[int, list[nn.Module]]:
    """Return the networks of keys and values by width, from what a `.pt` file holds."""
    assert not content["use_dropout"]
    assert not content["activate_output"]
    activation, structure = content["activation_func"], content["layer_structure"]
    found: dict[int, list[nn.Module]] = {}
    for width in (key for key in content if isinstance(key, int)):
        for state in content[width]:
            parts: list[nn.Module] = []
            for index in range(len(structure) - 1):
                one, other = (int(width * structure[place]) for place in (index, index + 1))
                parts.append(nn.Linear(one, other))
                if activation != "linear" and index < len(structure) - 2:
                    parts.append({"mish": nn.Mish}[activation]())
                if content["is_layer_norm"]:
                    parts.append(nn.LayerNorm(other))
            network = nn.Sequential(OrderedDict(linear=nn.Sequential(*parts)))
            network.load_state_dict(state)
            found.setdefault(width, []).append(network)
    return found
