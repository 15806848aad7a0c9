"""Header metadata of adapter files: what the ecosystem shows, and what the adapter was made of.

- ``modelspec.*``: Stability's model metadata standard 1.0.0 (https://github.com/Stability-AI/ModelSpec).
- ``ss_*``: what kohya's scripts write and A1111 and others show.
- ``sdbuild.*``: lineage.

Nothing is dated: equal inputs give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdbuild import __version__
from sdbuild.data.records import CaptionRecord
from sdbuild.families.contract import Family
from sdbuild.training.examples import Example
from sdbuild.training.tensorfile import content_digest, write_tensors

HASH = "modelspec.hash_sha256"
"""Header entry with the digest of a file's tensors."""
MAX_TAGS = 1000
"""Tags listed in ``ss_tag_frequency``; the most frequent."""
LIBRARIES = ("torch", "diffusers", "transformers", "peft")


def canonical_digest(value: Any) -> str:
    """Return the sha256 (hex) of a JSON-able value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hashed(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the header entry that tells whether a file's tensors are whole."""
    return {HASH: f"0x{content_digest(tensors)}"}


def write_files(folder: Path, files: Mapping[str, Mapping[str, Tensor]], header: Mapping[str, str]) -> None:
    """Write an adapter's files into a new folder, each with its own hash in its header."""
    folder.mkdir()
    for name, tensors in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_tensors(folder / name, tensors, {**header, **hashed(tensors)})


def write_pickles(folder: Path, files: Mapping[str, Any]) -> None:
    """Write beside an adapter's files what some programs read in torch's own format alone."""
    for name, content in files.items():
        with (folder / name).open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())


def lineage(spec: Mapping[str, Any], *, data: str, pictures: int, holdout: int) -> dict[str, str]:
    """Return what the adapter was made of, and with which versions.

    The whole spec is there, so that `sdbuild why` reads the settings from the file alone and finds the commit whose
    `dvc.lock` records the same. Names of the base and of folders are not: a step does not see them, and one that
    is moved would give other bytes.
    """
    return {
        "sdbuild.recipe": spec["name"],
        "sdbuild.spec": json.dumps(spec, ensure_ascii=False, sort_keys=True, separators=(",", ":")),
        "sdbuild.pictures": str(pictures),
        "sdbuild.holdout": str(holdout),
        "sdbuild.recipe_digest": canonical_digest(spec),
        "sdbuild.data_digest": data,
        "sdbuild.base_digest": spec["reads"]["base"],
        "sdbuild.version": __version__,
        **{f"sdbuild.{library}_version": version(library) for library in LIBRARIES},
    }


def modelspec(family: Family, *, kind: str, name: str, prediction_type: str, resolution: str) -> dict[str, str]:
    """Return the metadata standard's fields, but for the hash; `kind` is what follows the family's name."""
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{family.modelspec_architecture}{kind}",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.resolution": resolution,
        "modelspec.prediction_type": {"v_prediction": "v"}.get(prediction_type, prediction_type),
    }


def kohya(
    family: Family,
    spec: Mapping[str, Any],
    examples: Sequence[Example],
    captions: Sequence[CaptionRecord],
    *,
    class_pictures: int = 0,
) -> dict[str, str]:
    """Return the usual ``ss_*`` fields; those of the network come from the adapter."""
    train = spec["train"]
    rates = train["learning_rates"]
    text_rate = rates["text_encoder"] or train["learning_rate"]
    trained = [record for record in captions if record.split == "train"]
    return {
        "ss_output_name": spec["name"],
        "ss_base_model_version": family.ss_base_model_version,
        "ss_learning_rate": str(train["learning_rate"]),
        "ss_unet_lr": str(rates["denoiser"] or train["learning_rate"]),
        "ss_text_encoder_lr": str(text_rate if spec["method"].get("text_encoder") else 0.0),
        "ss_optimizer": train["optimizer"],
        "ss_lr_scheduler": train["schedule"],
        "ss_lr_warmup_steps": str(train["warmup"]),
        "ss_steps": str(train["steps"]),
        "ss_max_train_steps": str(train["steps"]),
        "ss_total_batch_size": str(train["batch"] * train["accumulate"]),
        "ss_gradient_accumulation_steps": str(train["accumulate"]),
        "ss_mixed_precision": {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[train["precision"]],
        "ss_seed": str(train["seed"]),
        "ss_caption_dropout_rate": str(train["caption_dropout"]),
        "ss_max_grad_norm": str(train["clip"] or 0.0),
        **objective(train),
        "ss_num_train_images": str(sum(example.repeats for example in examples)),
        "ss_num_reg_images": str(class_pictures),
        "ss_v2": str(family.ss_base_model_version.startswith("sd_v2")),
        "ss_tag_frequency": json.dumps(tag_frequency(trained, spec["datasets"]), ensure_ascii=False),
    }


def objective(train: Mapping[str, Any]) -> dict[str, str]:
    """Return kohya's fields on what was taught; those of settings that are off say `None`, as his scripts do."""
    noise, weighting, loss = train["noise"], train["weighting"], train["loss"]
    return {
        "ss_noise_offset": str(noise["offset"] or None),
        "ss_multires_noise_discount": str(noise["pyramid"] or None),
        "ss_multires_noise_iterations": str(noise["pyramid_levels"] if noise["pyramid"] else None),
        "ss_ip_noise_gamma": str(noise["perturbation"] or None),
        "ss_zero_terminal_snr": str(noise["zero_terminal_snr"]),
        "ss_min_snr_gamma": str(weighting.get("gamma")),
        "ss_debiased_estimation": str(weighting["kind"] == "debiased"),
        "ss_loss_type": loss["kind"].replace("-", "_"),
        "ss_huber_schedule": str(loss.get("schedule")),
        "ss_huber_c": str(loss.get("delta")),
    }


def tag_frequency(
    captions: Sequence[CaptionRecord], datasets: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, int]]:
    """Return how often each comma-separated tag occurs, by dataset as kohya names its folders, ``<repeats>_<name>``."""
    counts: dict[int, Counter[str]] = {}
    for record in captions:
        tags = (tag.strip() for tag in record.text.split(","))
        counts.setdefault(record.dataset, Counter()).update(tag for tag in tags if tag)
    return {
        f"{datasets[index]['repeats']}_dataset{index}": dict(
            sorted(counts[index].items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_TAGS]
        )
        for index in sorted(counts)
    }
