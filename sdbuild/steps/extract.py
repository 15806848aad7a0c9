"""The extract step: a LoRA from a checkpoint that was trained whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors import safe_open
from torch import nn

from sdbuild import families
from sdbuild.errors import StepError
from sdbuild.methods.extraction import extract
from sdbuild.steps.contract import Context, Inputs, Items
from sdbuild.training.metadata import write_files


def run(spec: Mapping[str, Any], inputs: Inputs, out: Path, context: Context) -> Items:
    """Write `extracted/` and `extract.json`."""
    assert inputs.base is not None
    assert inputs.adapter is not None
    name, rank = spec["name"], spec["rank"]
    file = inputs.adapter / f"{name}.safetensors"
    family = families.load(inputs.base)
    networks: dict[Any, nn.Module] = {family.denoiser: family.load_denoiser().module}
    if "text" in spec["sides"]:
        networks |= family.load_text().modules
    context.progress(0, 1, "checkpoints")
    found = extract(networks, family.read_checkpoint(file, networks), rank, PartialState().device)
    if not found.layers:
        raise StepError(f"{file.name} differs from its base in no linear layer or convolution; there is no LoRA of it")
    with safe_open(file, framework="pt") as opened:
        header = dict(opened.metadata())
    header |= {
        "modelspec.architecture": f"{family.modelspec_architecture}/lora",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
    }
    write_files(out / "extracted", found.files(family.key_map, name), header)
    (out / "extract.json").write_text(json.dumps({"rank": rank, **found.figures()}, indent=2) + "\n", encoding="utf-8")
    context.progress(1, 1, "checkpoints")
    return Items(total=1, computed=1)
