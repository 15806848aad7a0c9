"""A base with trained networks as one file in the layout of its authors, and those networks back from such a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sdbuild import families
from sdbuild.families.contract import Component, PredictionType
from sdbuild.families.convert import fitted
from sdbuild.families.networks import load_network


def whole_checkpoint(folder: Path, networks: Mapping[Component, nn.Module], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a whole checkpoint, by the authors' names.

    Args:
        folder: of the base; its other networks are read from there.
        networks: in place of the base's own, by component.
        dtype: what all is held in, but for single tensors whose numbers are too large for it.
    """
    description = families.describe(folder)
    there = families.components(folder, ["vae", "text", "denoiser"])
    own: dict[str, nn.Module] = {str(name): network for name, network in networks.items()}
    found: dict[str, Tensor] = {}
    for name, (authors, prefix) in description.original.components.items():
        if name not in there:
            continue
        network = (
            own[name] if name in own else load_network(str(description.classes[name]), folder / name, dtype, "cpu")
        )
        tied = getattr(network, "all_tied_weights_keys", None) or {}
        state = {key: tensor.detach() for key, tensor in network.state_dict().items() if key not in tied}
        written = authors.write(state, prefix, network)
        found |= {key: _narrowed(tensor, dtype).contiguous() for key, tensor in written.items()}
    return found


def marks(prediction_type: PredictionType, *, zero_terminal_snr: bool) -> dict[str, Tensor]:
    """Return the tensors, without numbers, by which ComfyUI and others tell a checkpoint that predicts v.

    ComfyUI looks for them in `SDXL.model_type` (`comfy/supported_models.py`) and writes them so.
    """
    if prediction_type != "v_prediction":
        return {}
    return {"v_pred": torch.zeros(0)} | ({"ztsnr": torch.zeros(0)} if zero_terminal_snr else {})


def read_networks(
    folder: Path, file: Path, networks: Mapping[Component, nn.Module]
) -> dict[Component, dict[str, Tensor]]:
    """Return the tensors of some networks from a checkpoint in one file, by the networks' own names.

    Args:
        folder: of a base of the same family.
        file: the checkpoint.
        networks: of the class and configuration that the file's have, by component.

    Raises:
        DataError: the file lacks some, or has them in other shapes.
    """
    description = families.describe(folder)
    found: dict[Component, dict[str, Tensor]] = {}
    with safe_open(file, framework="pt") as opened:
        for name, network in networks.items():
            authors, prefix = description.original.components[name]
            tensors = {key: opened.get_tensor(key) for key in opened.keys() if key.startswith(prefix)}  # noqa: SIM118
            found[name] = fitted(authors.read(tensors, prefix, network), network, name, description, file)
    return found


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    narrow = tensor.to(dtype)
    return narrow if bool(narrow.isfinite().all()) else tensor
