"""Checkpoints in one file: what they are, what they become, and what is said of those that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sdbuild import families
from sdbuild.errors import DataError, StepError
from sdbuild.families import convert, single
from sdbuild.families.digest import base_digest, md5_file
from sdbuild.families.networks import load_network
from sdbuild.families.original import VAE
from sdbuild.families.sources import bring, find, problems
from sdbuild.plan.model import Base
from sdbuild.storage.headers import read_header
from tests.original import copy_configurations, make_single
from tests.tiny import PIPELINES, make_pipeline

PARTS = ("index", "vae", "text", "denoiser", "schedule")


@pytest.fixture(scope="module", params=PIPELINES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A project with a base as a folder and as one file, and its configurations."""
    name = request.param
    project = tmp_path_factory.mktemp(name)
    folder = make_pipeline(project / "base", family=name)
    if name == "sd3":  # the authors have no projection there, which is one that changes nothing
        weights = folder / "text_encoder/model.safetensors"
        save_file(load_file(weights) | {"text_projection.weight": torch.eye(32)}, weights, metadata={"format": "pt"})
    copy_configurations(folder, project / "config")
    return name, project, make_single(folder, project / "one.safetensors", name)


def test_a_single_file_is_the_same_base_as_its_folder(pair: tuple[str, Path, Path]) -> None:
    name, project, _ = pair
    source = Base(model="one.safetensors", config="config")
    assert find(source, project) is None
    said: list[str] = []
    folder = bring(source, project, said.append)
    assert said == ["converting the base one.safetensors"]
    assert bring(source, project, said.append) == find(source, project) == folder
    assert len(said) == 1
    assert families.detect(folder) == name
    for part in PARTS:
        assert base_digest(folder, [part], md5_file) == base_digest(project / "base", [part], md5_file), part
    families.load(folder)


def test_a_header_is_enough_to_tell_the_family(pair: tuple[str, Path, Path]) -> None:
    name, _, file = pair
    assert single.identify(read_header(file).tensors, file).name == name


def test_a_file_of_a_size_of_its_own_needs_configurations(pair: tuple[str, Path, Path]) -> None:
    _, project, file = pair
    with pytest.raises(DataError, match=r"of a size of its own \(.*name a folder with its configurations in base.con"):
        bring(Base(model=file.name), project)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    make_pipeline(tmp_path / "base")
    copy_configurations(tmp_path / "base", tmp_path / "config")
    make_single(tmp_path / "base", tmp_path / "one.safetensors", "sd1")
    return tmp_path


def change(project: Path, **tensors: Any) -> Base:
    """A base in one file of which some tensors are others, or none."""
    state = load_file(project / "one.safetensors")
    for name, tensor in tensors.items():
        if tensor is None:
            state.pop(name)
        else:
            state[name] = tensor
    save_file(state, project / "one.safetensors")
    return Base(model="one.safetensors", config="config")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"model.diffusion_model.out.2.weight": None},
            "lacks 1 of the unet's tensors, such as conv_out.weight; it is no whole checkpoint",
        ),
        (
            {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3)},
            r"has a unet unlike Stable Diffusion 1's: conv_in.weight is \[8, 9, 3, 3\], not \[8, 4, 3, 3\]",
        ),
        (
            {"first_stage_model.encoder.conv_in.weight": None},
            "is no whole checkpoint of a known family; the nearest is Stable Diffusion 1, of which it lacks first_st",
        ),
    ],
)
def test_checkpoints_that_are_not_whole(project: Path, tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        bring(change(project, **tensors), project)
    assert [path.name for path in (project / ".sdbuild/bases").iterdir()] == ["files.json"]


def test_other_files_are_refused(project: Path) -> None:
    save_file({"lora_unet_a.lora_down.weight": torch.zeros(2, 2)}, project / "one.safetensors")
    with pytest.raises(
        DataError, match=r"has no known layout: its tensors begin with lora_unet_a; looked for cond_sta"
    ):
        bring(Base(model="one.safetensors"), project)
    save_file({}, project / "one.safetensors")
    with pytest.raises(DataError, match=r"one.safetensors: holds no tensors; copy or download it again"):
        bring(Base(model="one.safetensors"), project)
    (project / "one.safetensors").write_bytes(b"\x10\0\0")
    with pytest.raises(DataError, match=r"one.safetensors: is damaged"):
        bring(Base(model="one.safetensors"), project)


def test_a_vae_of_another_family_is_no_matter_of_configurations(project: Path) -> None:
    other = make_pipeline(project / "flow", family="sd3") / "vae/diffusion_pytorch_model.safetensors"
    wanted = Base(model="base", vae="flow")
    assert [str(problem) for problem in problems(wanted, bring(wanted, project))] == [
        "base.vae: gives 16 channels, and the base takes 4; choose a VAE of Stable Diffusion 1"
    ]
    other.rename(project / "vae.safetensors")
    with pytest.raises(DataError, match=r"vae.safetensors: lacks 4 of the VAE's tensors, .*; choose another base.vae$"):
        bring(Base(model="base", vae="vae.safetensors"), project)
    own = load_file(project / "base/vae/diffusion_pytorch_model.safetensors")
    save_file(own | {"decoder.conv_out.bias": torch.zeros(4)}, project / "vae.safetensors")
    with pytest.raises(DataError, match=r"vae.safetensors: has a VAE unlike the base's: .*; choose another base.vae$"):
        bring(Base(model="base", vae="vae.safetensors"), project)


def test_a_full_disk_is_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:  # in the library's own words
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(convert, "save_file", full)
    said = r"\.sdbuild/bases: the converted base cannot be written \(No space left on device\); .*: make room and build"
    with pytest.raises(StepError, match=said):
        bring(Base(model="one.safetensors", config="config"), project)
    assert [path.name for path in (project / ".sdbuild/bases").iterdir()] == ["files.json"]


def test_what_a_killed_conversion_left_goes(project: Path) -> None:
    source = Base(model="one.safetensors", config="config")
    folder = bring(source, project)
    left = folder.rename(folder.with_name(f".{folder.name}.tmp"))
    (left / "half").write_text("written")
    assert find(source, project) is None
    assert bring(source, project) == folder
    assert not (folder / "half").exists()
    (folder / "model_index.json").unlink()
    families.load(bring(source, project))
    assert {path.name for path in folder.parent.iterdir()} == {"files.json", folder.name}


def test_a_changed_file_is_converted_anew(project: Path) -> None:
    source = Base(model="one.safetensors", config="config")
    first = bring(source, project)
    before = base_digest(first, ["denoiser"], md5_file), base_digest(first, ["text"], md5_file)
    name = "model.diffusion_model.out.2.bias"
    second = bring(change(project, **{name: torch.ones(4)}), project)
    assert second != first
    assert base_digest(second, ["denoiser"], md5_file) != before[0]
    assert base_digest(second, ["text"], md5_file) == before[1]


@pytest.mark.parametrize("extra", [None, "v_pred"])
def test_what_is_predicted_is_said_by_file_or_recipe(project: Path, extra: str | None) -> None:
    if extra:
        change(project, **{extra: torch.zeros(0), "ztsnr": torch.zeros(0)})
        folder = bring(Base(model="one.safetensors", config="config"), project)
        scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
        assert scheduler["rescale_betas_zero_snr"]
        with pytest.raises(DataError, match="is epsilon, but the checkpoint says v_prediction"):
            bring(Base(model="one.safetensors", config="config", prediction_type="epsilon"), project)
    else:
        folder = bring(Base(model="one.safetensors", config="config", prediction_type="v_prediction"), project)
    assert families.load(folder).noise_schedule().prediction_type == "v_prediction"
    assert problems(Base(model="one.safetensors", prediction_type="v_prediction"), folder) == []


def test_pickles_give_tensors_and_nothing_else(project: Path) -> None:
    torch.save({"state_dict": load_file(project / "one.safetensors")}, project / "one.ckpt")
    folder = bring(Base(model="one.ckpt", config="config"), project)
    assert base_digest(folder, PARTS, md5_file) == base_digest(project / "base", PARTS, md5_file)
    torch.save({"state_dict": {}, "code": Path}, project / "bad.ckpt")
    with pytest.raises(
        DataError, match=r"bad.ckpt: is damaged, or holds more than tensors, which is never read; convert"
    ):
        bring(Base(model="bad.ckpt", config="config"), project)


def test_t5_may_be_left_out(tmp_path: Path) -> None:
    make_pipeline(tmp_path / "base", family="sd3")
    copy_configurations(tmp_path / "base", tmp_path / "config")
    make_single(tmp_path / "base", tmp_path / "one.safetensors", "sd3")
    folder = bring(Base(model="one.safetensors", config="config", t5=False), tmp_path)
    assert not (folder / "text_encoder_3").exists()
    assert set(families.load(folder).load_text().encode("a cat")) == {"hidden", "pooled"}
    plain = bring(Base(model="base", t5=False), tmp_path)
    assert families.components(plain, ["text"]) == ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    assert base_digest(plain, ["denoiser"], md5_file) == base_digest(tmp_path / "base", ["denoiser"], md5_file)
    (tmp_path / "config/tokenizer_3/tokenizer_config.json").unlink()
    (tmp_path / "config/tokenizer_3/tokenizer.json").unlink()
    (tmp_path / "config/tokenizer_3").rmdir()
    with pytest.raises(DataError, match="tokenizer_3"):
        bring(Base(model="one.safetensors", config="config"), tmp_path)


@pytest.mark.parametrize("layout", ["diffusers", "authors", "whole"])
def test_a_vae_of_its_own(project: Path, layout: str) -> None:
    other = make_pipeline(project / "other", seed=5)
    weights = load_file(other / "vae/diffusion_pytorch_model.safetensors")
    if layout == "authors":
        network = load_network("AutoencoderKL", other / "vae", None, "cpu")
        weights = {name: tensor.contiguous() for name, tensor in VAE.write(weights, "", network).items()}
    if layout == "whole":
        make_single(other, project / "vae.safetensors", "sd1")
    else:
        save_file(weights, project / "vae.safetensors")
    folder = bring(Base(model="base", vae="vae.safetensors"), project)
    assert base_digest(folder, ["vae"], md5_file) == base_digest(other, ["vae"], md5_file)
    for part in ("text", "denoiser", "schedule", "index"):
        assert base_digest(folder, [part], md5_file) == base_digest(project / "base", [part], md5_file)
    assert base_digest(bring(Base(model="base", vae="other"), project), ["vae"], md5_file) == base_digest(
        other, ["vae"], md5_file
    )


def test_variants_are_read_as_if_they_were_all_there_is(project: Path) -> None:
    other = make_pipeline(project / "other", seed=5)
    for component in ("unet", "vae"):
        name = "diffusion_pytorch_model"
        (other / component / f"{name}.safetensors").rename(project / f"base/{component}/{name}.fp16.safetensors")
    folder = bring(Base(model="base", variant="fp16"), project)
    fresh = make_pipeline(project / "fresh", seed=5)
    assert base_digest(folder, ["unet", "vae"], md5_file) == base_digest(fresh, ["unet", "vae"], md5_file)
    assert base_digest(folder, ["text"], md5_file) == base_digest(project / "base", ["text"], md5_file)
    families.load(folder).load_denoiser()
    with pytest.raises(DataError, match=r"base.variant: base has no copies of its weights called bf16"):
        bring(Base(model="base", variant="bf16"), project)


def test_a_layer_that_the_base_does_not_have(project: Path) -> None:
    families.load(project / "base", clip_skip=2)
    with pytest.raises(DataError, match=r"base.clip_skip: is 3, but the base's text encoders have 2 layers to choose"):
        families.load(project / "base", clip_skip=3)


def test_what_a_recipe_states_is_checked(project: Path) -> None:
    stated = Base(model="base", family="sdxl", t5=False, prediction_type="v_prediction")
    found = problems(stated, project / "base")
    assert [str(problem) for problem in found] == [
        "base.family: is sdxl, but the base is Stable Diffusion 1 (sd1); mend or remove it",
        "base.t5: Stable Diffusion 1 has no T5; remove it",
        "base.prediction_type: is v_prediction, but the base says epsilon; mend or remove it",
    ]
