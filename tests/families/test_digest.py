"""Digests of bases: content of the parts that are read, nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdbuild.errors import DataError
from sdbuild.families.digest import base_digest, md5_file, read_digest
from tests.tiny import make_pipeline

ALL = ("model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae")


def test_the_place_does_not_matter(base: Path, copy: Path) -> None:
    assert base_digest(base, ALL, md5_file) == base_digest(copy, ALL, md5_file)
    assert base_digest(base, ALL, md5_file) == base_digest(base, (*reversed(ALL), "vae"), md5_file)


def test_only_named_components_count(base: Path, copy: Path) -> None:
    before = {component: base_digest(copy, [component], md5_file) for component in ALL}
    make_pipeline(copy, seed=1)
    after = {component: base_digest(copy, [component], md5_file) for component in ALL}
    assert {name for name in ALL if before[name] != after[name]} == {"text_encoder", "unet", "vae"}
    assert len(set(after.values())) == len(ALL)


@pytest.mark.parametrize(
    "name", ["vae/README.md", "vae/model.bin", "vae/x.py", "vae/diffusion_pytorch_model.fp16.safetensors"]
)
def test_files_that_are_not_read_do_not_count(base: Path, copy: Path, name: str) -> None:
    (copy / name).write_text("x")
    assert base_digest(copy, ["vae"], md5_file) == base_digest(base, ["vae"], md5_file)


def test_a_single_file_is_a_component(copy: Path) -> None:
    before = base_digest(copy, ["vae/config.json"], md5_file)
    (copy / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"other")
    assert base_digest(copy, ["vae/config.json"], md5_file) == before
    (copy / "vae/config.json").write_text("{}")
    assert base_digest(copy, ["vae/config.json"], md5_file) != before


def test_each_file_is_hashed_once(base: Path) -> None:
    seen: list[Path] = []
    base_digest(base, ["vae", "vae/config.json"], lambda path: seen.append(path) or "")  # type: ignore[func-returns-value]
    assert [path.name for path in seen] == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_missing_components_are_told(copy: Path) -> None:
    with pytest.raises(DataError, match=r"text_encoder_2: is missing; the base is incomplete"):
        base_digest(copy, ["unet", "text_encoder_2"], md5_file)


def test_steps_take_the_recorded_digest(base: Path) -> None:
    assert read_digest({"reads": {"base": "d"}}, base, ["vae"]) == "d"
    assert read_digest({"reads": {}}, base, ["vae"]) == base_digest(base, ["vae"], md5_file)
