"""Detection of the family, and what is said of bases that cannot be used."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from sdbuild.errors import DataError
from sdbuild.families import FAMILIES, descriptions, detect, load
from sdbuild.families.tokens import token_counter
from sdbuild.recipe.base import Base


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not ...}))


def test_a_tiny_base_is_sd1(base: Path) -> None:
    assert detect(base) == "sd1"
    family = load(base)
    assert (family.name, family.folder, family.vae_factor) == ("sd1", base, 8)
    assert family.modelspec_architecture == "stable-diffusion-v1"
    assert family.ss_base_model_version == "sd_v1"


def test_families_are_known_by_their_own_names() -> None:
    assert [description.name for description in descriptions()] == list(FAMILIES)
    (stated, _) = get_args(Base.model_fields["family"].annotation)
    assert get_args(stated) == tuple(FAMILIES)


def test_detection_is_light(base: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sdbuild.families import detect, digest, sources;"
        f"detect(Path({str(base)!r})); heavy = {{'torch', 'diffusers', 'transformers', 'huggingface_hub', 'dvc'}};"
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("AudioLDMPipeline", "is a AudioLDMPipeline, which sdbuild cannot adapt; choose a base"),
        (["pipeline", "MyPipeline"], "names no pipeline class"),
        (..., "names no pipeline class"),
    ],
)
def test_other_pipelines_are_refused(copy: Path, name: Any, message: str) -> None:
    edit(copy / "model_index.json", _class_name=name)
    with pytest.raises(DataError, match=message):
        detect(copy)


def test_a_folder_without_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no base in diffusers layout: it has no model_index.json"):
        detect(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\x00\xff"])
def test_a_damaged_index_is_refused(copy: Path, text: str) -> None:
    (copy / "model_index.json").write_text(text)
    with pytest.raises(DataError, match=r"model_index.json: is not (JSON|a JSON object)"):
        detect(copy)


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda base: cut(base / "unet/diffusion_pytorch_model.safetensors", 9000), r"unet/.*damaged \(cut short"),
        (lambda base: cut(base / "vae/diffusion_pytorch_model.safetensors", 5), r"vae/.*damaged \(cut short"),
        (lambda base: cut(base / "text_encoder/model.safetensors", 0), r"text_encoder/.*damaged \(cut short"),
        (lambda base: grow(base / "text_encoder/model.safetensors"), "longer than its header says"),
        (lambda base: (base / "vae/config.json").unlink(), r"vae/config.json: is missing; the base is incomplete"),
        (lambda base: (base / "unet/config.json").write_text("}"), r"unet/config.json: is not JSON"),
        (
            lambda base: (base / "unet/diffusion_pytorch_model.safetensors").rename(
                base / "unet/diffusion_pytorch_model.bin"
            ),
            r"unet: has no weights as \.safetensors",
        ),
        (lambda base: edit(base / "model_index.json", vae=[None, None]), "has no vae; a text-to-image base needs one"),
        (
            lambda base: edit(base / "model_index.json", unet=["my_module", "MyUNet"]),
            "has a MyUNet as unet; sdbuild knows UNet2DConditionModel",
        ),
        (
            lambda base: (base / "unet/diffusion_pytorch_model.safetensors").rename(
                base / "unet/diffusion_pytorch_model.fp16.safetensors"
            ),
            r"unet: has weights as fp16 alone; set base.variant: fp16",
        ),
        (
            lambda base: edit(base / "model_index.json", scheduler=["diffusers", "EDMEulerScheduler"]),
            "has a EDMEulerScheduler: it was trained with other noise than sd1, which sdbuild cannot adapt",
        ),
        (lambda base: edit(base / "unet/config.json", in_channels=9), "for inpainting or editing"),
        (lambda base: edit(base / "vae/config.json", latent_channels=16), "gives 16: the VAE is of another family"),
        (lambda base: edit(base / "unet/config.json", cross_attention_dim=768), "do not belong together"),
    ],
)
def test_bases_that_cannot_be_used_are_refused(copy: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(copy)
    with pytest.raises(DataError, match=message):
        load(copy)


def test_all_problems_are_told_at_once(copy: Path) -> None:
    cut(copy / "unet/diffusion_pytorch_model.safetensors", 100)
    (copy / "tokenizer/tokenizer_config.json").unlink()
    edit(copy / "model_index.json", scheduler=[None, None])
    with pytest.raises(DataError) as caught:
        load(copy)
    assert len(caught.value.problems) == 3


def test_sharded_weights_need_all_shards(copy: Path) -> None:
    unet = copy / "unet"
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "part-1.safetensors", "b": "diffusion_pytorch_model.safetensors"}})
    )
    with pytest.raises(DataError, match=r"unet/part-1.safetensors: is missing"):
        load(copy)


def test_unknown_prediction_types_are_refused(copy: Path) -> None:
    edit(copy / "scheduler/scheduler_config.json", prediction_type="flow")
    with pytest.raises(DataError, match="prediction_type 'flow'; sdbuild knows epsilon"):
        load(copy).noise_schedule()


def test_values_of_any_type_in_a_configuration_are_taken_or_told(copy: Path) -> None:
    refused = 0
    for file in sorted(copy.rglob("*config.json")):
        content = file.read_text()
        for key in json.loads(content):
            for value in ("x", None, -1):
                edit(file, **{key: value})
                for look in (load, token_counter) if file.parent.name.startswith(("text", "token")) else (load,):
                    try:
                        look(copy)
                    except DataError:  # any other error fails the test
                        refused += 1
        file.write_text(content)
    assert refused > 20
    load(copy)
