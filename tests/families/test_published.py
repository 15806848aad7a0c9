"""The models as they were published, without their weights: configurations that sdbuild carries, at full size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTokenizer

from sdbuild import families
from sdbuild.families import convert, single
from sdbuild.families.layout import read_json
from tests.adapters import inject

NAMES = sorted(path.stem for path in single.CONFIGS.glob("*.json"))
SIZES = {
    "sd1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
    "sd3-medium": {"transformer": 2_028_328_000, "vae": 83_819_683, "text_encoder_3": 4_762_310_656},
    "sd3.5-medium": {"transformer": 2_243_171_520},
    "sd3.5-large": {"transformer": 8_056_627_520},
}
"""Parameters, as the models' cards and papers have them."""
LORAS = {"sd1": 797_184, "sdxl": 5_806_080, "sd3-medium": 2_347_008}
"""Parameters of a LoRA of rank 4 on attention alone, as diffusers' training scripts report them."""


def components(name: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(single.CONFIGS / f"{name}.json")["components"]
    return found


def network(name: str, component: str, folder: Path) -> Any:
    content = components(name)
    (folder / "config.json").write_text(json.dumps(content[component]))
    return convert._empty(content["model_index"][component], folder)


def size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "component"), [(name, component) for name in SIZES for component in SIZES[name]])
def test_sizes_are_the_published_ones(name: str, component: str, tmp_path: Path) -> None:
    assert size(network(name, component, tmp_path)) == SIZES[name][component]


@pytest.mark.parametrize("name", LORAS)
def test_a_lora_has_the_usual_size(name: str, tmp_path: Path) -> None:
    component: Any = "transformer" if name.startswith("sd3") else "unet"
    module = network(name, component, tmp_path)
    spec = {"kind": "lora", "rank": 4, "alpha": 4.0, "targets": "attention", "text_encoder": False, "dropout": 0.0}
    adapter = inject({component: module.to_empty(device="meta")}, spec)
    assert sum(parameter.numel() for _, parameter in adapter.parameters()) == LORAS[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_published_checkpoint_fits_its_configuration(name: str, tmp_path: Path) -> None:
    content = read_json(single.CONFIGS / f"{name}.json")
    description = next(each for each in families.descriptions() if each.name == content["family"])
    names: dict[str, tuple[int, ...]] = {}
    for component, (authors, prefix) in description.original.components.items():
        module = network(name, component, tmp_path)
        state = {key: tensor for key, tensor in module.state_dict().items() if key != "encoder.embed_tokens.weight"}
        if component == "text_encoder":
            state.pop("text_projection.weight", None)
        tensors = authors.write(state, prefix, module)
        names |= {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        found = convert.fitted(authors.read(tensors, prefix, module), module, component, description, tmp_path)
        assert {key: tensor.shape for key, tensor in found.items()}.items() >= {
            key: tensor.shape for key, tensor in state.items()
        }.items()
    assert single.identify(names, tmp_path).name == content["family"]
    assert single.carried(description, names, tmp_path) == content["components"]


def test_the_vocabulary_is_clips(tmp_path: Path) -> None:
    for name in ("tokenizer", "tokenizer_2"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tokenizer_config.json").write_text(json.dumps(components("sdxl")[name]))
        convert._write_vocabulary(folder)
    first, second = (CLIPTokenizer.from_pretrained(tmp_path / name) for name in ("tokenizer", "tokenizer_2"))
    assert first("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (len(first), first.model_max_length) == (49408, 77)
    assert (first.pad_token_id, second.pad_token_id) == (49407, 0)


def test_a_schedule_without_a_prediction_has_to_be_stated(tmp_path: Path) -> None:
    from sdbuild.errors import DataError

    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps(components("sd2")["scheduler"]))
    settings: Any = {"zero_terminal": False, "file": tmp_path / "x.safetensors", "stated": False}
    with pytest.raises(DataError, match=r"does not say what it predicts; set base.prediction_type: v_prediction"):
        convert._say_what_is_predicted(tmp_path, None, **settings)
    convert._say_what_is_predicted(tmp_path, "v_prediction", **settings)
    assert read_json(tmp_path / "scheduler/scheduler_config.json")["prediction_type"] == "v_prediction"
