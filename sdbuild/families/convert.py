"""Writes a checkpoint in one file as a folder in diffusers' layout: names by diffusers' own rules, bytes by its format.

Components are converted one after the other, so that memory holds one at a time.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sdbuild.errors import DataError, Problem
from sdbuild.families.description import Description
from sdbuild.families.keys import TEXT_ROOT
from sdbuild.families.layout import INDEX, config_name, read_config, read_json, read_layout
from sdbuild.families.original import VAE
from sdbuild.families.single import CONFIGS, carried, identify, prediction, shapes_of
from sdbuild.recipe.places import is_pickle
from sdbuild.storage.headers import read_header

WEIGHTS = {"transformers": "model.safetensors", "diffusers": "diffusion_pytorch_model.safetensors"}
_WORDS = ("<|startoftext|>", "<|endoftext|>")
_NARROW = (torch.float8_e4m3fn, torch.float8_e5m2)
"""Types that networks cannot compute in; they are widened without loss."""


def write_base(file: Path, folder: Path, config: Path | None, prediction_type: str | None, *, t5: bool) -> None:
    """Write all of a checkpoint; see `single.convert`."""
    with _opened(file) as (names, shapes, metadata, read):
        description = identify(names, file)
        texts = _carried(description, shapes, file, folder) if config is None else _given(description, config, folder)
        there = _components(description, names, t5=t5)
        if "text_encoder_3" in there and not (folder / "tokenizer_3").is_dir():
            message = (
                "holds T5, whose vocabulary sdbuild does not carry; set base.t5: false, or name a folder with "
                "tokenizer_3 in base.config"
            )
            raise DataError([Problem(file=str(file), message=message)])
        for name in there:
            authors, prefix = description.original.components[name]
            cls = texts[INDEX][name]
            network = _empty(cls, folder / name)
            tensors = {key: read(key) for key in names if key.startswith(prefix)}
            state = fitted(authors.read(tensors, prefix, network), network, name, description, file)
            _save(state, folder / name / WEIGHTS[cls[0]])
        if "transformer" not in description.classes:
            said = _agreed(prediction_type, prediction(metadata, names))
            _say_what_is_predicted(folder, said, zero_terminal="ztsnr" in names, file=file, stated=config is not None)
        _write_index(description, folder, texts[INDEX], there)


def write_vae(file: Path, folder: Path, config: Path) -> None:
    """Write a VAE in one file, in diffusers' or its authors' layout; see `single.convert_vae`."""
    with _opened(file) as (names, _, _, read):
        shutil.copyfile(config / "config.json", folder / "config.json")
        cls = ["diffusers", "AutoencoderKL"]
        network = _empty(cls, folder)
        state = {name: read(name) for name in names}
        if "encoder.conv_in.weight" not in network.state_dict() or not any("down_blocks" in name for name in names):
            own = {name: tensor for name, tensor in state.items() if name.startswith("first_stage_model.")} or state
            state = VAE.read(own, "", network)
        _save(fitted(state, network, "VAE", None, file), folder / WEIGHTS["diffusers"])


@contextmanager
def _opened(
    file: Path,
) -> Iterator[tuple[list[str], Mapping[str, tuple[int, ...]], Mapping[str, str], Callable[[str], Tensor]]]:
    """Names, shapes, metadata and a reader of a file's tensors."""
    if is_pickle(file.name):
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            # What the loader says of code in a file is how to run it all the same.
            said = "" if isinstance(error, UnpicklingError) else next(iter(str(error).splitlines()), "")
            reason = f" ({said})" if said else ""
            message = f"is damaged, or holds more than tensors, which is never read{reason}; convert it elsewhere"
            raise DataError([Problem(file=str(file), message=message)]) from None
        state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
        tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
        yield (
            list(tensors),
            {name: tuple(t.shape) for name, t in tensors.items()},
            {},
            lambda name: _wide(tensors[name]),
        )
        return
    header = read_header(file)
    shapes = shapes_of(header)
    with safe_open(file, framework="pt") as opened:
        yield sorted(shapes), shapes, header.metadata, lambda name: _wide(opened.get_tensor(name))


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    """Write weights as diffusers does.

    Raises:
        OSError: they cannot be written, which the library tells in words alone.
    """
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.dtype in _NARROW else tensor


def _components(description: Description, names: list[str], *, t5: bool) -> list[str]:
    """Networks that the file has; those that may be absent are no more where they are not wanted."""
    found = []
    for name, (_, prefix) in description.original.components.items():
        left_out = name in description.optional and not (t5 and any(key.startswith(prefix) for key in names))
        found += [] if left_out else [name]
    return found


def _given(description: Description, config: Path, folder: Path) -> dict[str, Any]:
    """Copy configurations and vocabularies from a folder."""
    layout = read_layout(config)
    if layout.pipeline != description.pipeline:
        message = f"is for a {layout.pipeline}, but the checkpoint is {description.title}; name another base.config"
        raise DataError([Problem(file=str(layout.file), message=message)])
    for name in layout.components.keys() & description.classes.keys():
        read_config(config, name)
        for path in (config / name).rglob("*"):
            if path.suffix in (".json", ".txt") and ".safetensors." not in path.name:
                target = folder / path.relative_to(config)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    return {INDEX: read_json(config / INDEX)}


def _carried(
    description: Description, shapes: Mapping[str, tuple[int, ...]], file: Path, folder: Path
) -> dict[str, Any]:
    """Write the configurations that sdbuild has for a published model."""
    components = carried(description, shapes, file)
    for name, content in components.items():
        if name == "model_index":
            continue
        (folder / name).mkdir()
        (folder / name / config_name(name)).write_text(_json(content), encoding="utf-8")
        if name.startswith("tokenizer"):
            _write_vocabulary(folder / name)
    return {INDEX: components["model_index"]}


def _write_vocabulary(folder: Path) -> None:
    """Write CLIP's vocabulary: 256 bytes, the same at the end of a word, the merges, start and end."""
    merges = gzip.decompress((CONFIGS / "clip-merges.txt.gz").read_bytes()).decode().splitlines()
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    letters = [chr(byte) for byte in plain] + [chr(256 + index) for index in range(len(rest))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges), *_WORDS]
    (folder / "vocab.json").write_text(
        json.dumps({word: index for index, word in enumerate(words)}, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def _empty(cls: list[str], folder: Path) -> Any:
    """A network without weights, of the class and configuration in a folder."""
    library, name = cls
    content = read_json(folder / "config.json")
    with torch.device("meta"):
        if library == "diffusers":
            return getattr(diffusers, name).from_config(content)
        kind = getattr(transformers, name)
        return kind(kind.config_class.from_dict(content))


def fitted(
    state: Mapping[str, Tensor], network: Any, component: str, description: Description | None, file: Path
) -> dict[str, Tensor]:
    """The tensors that a network has, contiguous, under its own names.

    Raises:
        DataError: some are missing, or have another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if not any(name.startswith(TEXT_ROOT) for name in expected):
        state = {name.removeprefix(TEXT_ROOT): tensor for name, tensor in state.items()}
    tied = getattr(network, "all_tied_weights_keys", None) or {}
    missing = sorted(name for name in expected if name not in state and name not in tied)
    if missing:
        remedy = "it is no whole checkpoint" if description else "choose another base.vae"
        message = f"lacks {len(missing)} of the {component}'s tensors, such as {missing[0]}; {remedy}"
        raise DataError([Problem(file=str(file), message=message)])
    found: dict[str, Tensor] = {}
    for name, shape in expected.items():
        if name in tied:
            continue
        if tuple(state[name].shape) != shape:
            known = f"{description.title}'s" if description else "the base's"
            remedy = (
                "name a folder with its configurations in base.config" if description else "choose another base.vae"
            )
            message = (
                f"has a {component} unlike {known}: {name} is {list(state[name].shape)}, not {list(shape)}; {remedy}"
            )
            raise DataError([Problem(file=str(file), message=message)])
        found[name] = state[name].contiguous()
    return found


def _agreed(stated: str | None, said: str | None) -> str | None:
    """What the recipe and the checkpoint say that it predicts."""
    if stated and said and stated != said:
        message = f"is {stated}, but the checkpoint says {said}; mend or remove it"
        raise DataError([Problem(field="base.prediction_type", message=message)])
    return stated or said


def _say_what_is_predicted(folder: Path, said: str | None, *, zero_terminal: bool, file: Path, stated: bool) -> None:
    """Complete the scheduler's configuration.

    Raises:
        DataError: nobody says what is predicted, and models of this layout differ in it.
    """
    place = folder / "scheduler" / config_name("scheduler")
    content = read_json(place)
    found: dict[str, Any] = dict(content)
    if said:
        found["prediction_type"] = said
    if zero_terminal:
        found |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if "prediction_type" not in found and not stated:
        message = "does not say what it predicts; set base.prediction_type: v_prediction (768 pixels) or epsilon (512)"
        raise DataError([Problem(file=str(file), message=message)])
    if found != content:
        place.write_text(_json(found), encoding="utf-8")


def _write_index(description: Description, folder: Path, index: Mapping[str, Any], there: list[str]) -> None:
    """Write the index, without what was left out."""
    gone = [name for name in description.optional if name.replace("tokenizer", "text_encoder") not in there]
    for name in gone:
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / INDEX).write_text(_json({**index, **{name: [None, None] for name in gone}}), encoding="utf-8")


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
