"""Tiny random models of both kinds, through the captions step."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

from sdbuild.captioners import transformers
from sdbuild.captioners.models import bring, place
from sdbuild.errors import DataError, StepError
from sdbuild.steps.contract import Items
from tests.captioners.conftest import Asking
from tests.captioners.server import Speaker
from tests.captioners.tiny import make_blip, make_chat

LOCAL: dict[str, Any] = {"from": "transformers", "model": "./models/tiny", "max_tokens": 6, "device": "cpu"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_blip(folder / "blip")
    make_chat(folder / "chat")
    return folder


@pytest.mark.parametrize("kind", ["blip", "chat"])
def test_tiny_models_describe_pictures(asking: Asking, server: Speaker, models: Path, kind: str) -> None:
    shutil.copytree(models / kind, asking.root / "models/tiny")
    assert asking.run(**LOCAL, batch=3) == Items(total=4, computed=4)
    words = {"a", "cat", "dog", "red", "of", "picture", "sks", "USER:", "ASSISTANT:"}
    assert all(set(text.split()) <= words and len(text.split()) > 1 for text in asking.texts)
    assert {row.origin for row in asking.rows} == {"transformers"}
    first = asking.texts
    assert asking.run(**LOCAL, batch=1) == Items(total=4, computed=0), "how it goes about is in no key"
    assert asking.texts == first
    assert asking.run(**LOCAL, instruction="a cat") == Items(total=4, computed=4)
    assert asking.told[0][:2] == (0, 4)
    assert not server.asked


def test_numbers_do_not_depend_on_the_batch(asking: Asking, models: Path) -> None:
    shutil.copytree(models / "chat", asking.root / "models/tiny")
    asking.run(**LOCAL, batch=4)
    together = asking.texts
    shutil.rmtree(asking.items)
    (asking.previous / "captions.jsonl").unlink()
    asking.run(**LOCAL, batch=1)
    assert asking.texts == together


def test_another_model_in_the_folder_asks_again(asking: Asking, models: Path) -> None:
    shutil.copytree(models / "blip", asking.root / "models/tiny")
    asking.run(**LOCAL)
    shutil.rmtree(asking.root / "models/tiny")
    shutil.copytree(models / "chat", asking.root / "models/tiny")
    assert asking.run(**LOCAL).computed == 4
    shutil.rmtree(asking.root / "models/tiny")
    shutil.copytree(models / "blip", asking.root / "models/tiny")
    assert asking.run(**LOCAL).computed == 0


def test_passes_in_words_only(asking: Asking, models: Path) -> None:
    shutil.copytree(models / "chat", asking.root / "models/tiny")
    chain = [{"instruction": "of {caption}", "picture": False}]
    asking.run(**LOCAL, chain=chain)
    assert all(len(row.said) == 2 for row in asking.rows)
    shutil.rmtree(asking.root / "models/tiny")
    shutil.copytree(models / "blip", asking.root / "models/tiny")
    with pytest.raises(StepError, match=r"this model knows pictures only"):
        asking.run(**LOCAL, chain=chain)


def test_memory_that_runs_out_is_told_with_what_helps(
    asking: Asking, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe(model: object, questions: Sequence[object], pictures: object) -> list[str]:
        if len(questions) < 3:
            return ["a cat"] * len(questions)
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(transformers._Model, "describe", describe)
    shutil.copytree(models / "blip", asking.root / "models/tiny")
    with pytest.raises(StepError, match=r"memory ran out with 3 pictures at once; set a smaller batch, .*\n0 of 4"):
        asking.run(**LOCAL, batch=3)
    assert asking.run(**LOCAL, batch=2).computed == 4


def test_a_hub_id_is_fetched_without_code_and_pickles(
    asking: Asking, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "a" * 40
    repository = asking.root / "repository"
    shutil.copytree(models / "blip", repository)
    for name in ("modeling_tiny.py", "pytorch_model.bin", "onnx/model.safetensors"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("no")
    monkeypatch.setenv("HF_HUB_CACHE", str(asking.root / "hub"))

    def download(model: str, *, revision: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert (model, revision) == ("owner/tiny", commit)
        names = [path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()]
        kept = filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        folder = asking.root / "hub/models--owner--tiny/snapshots" / commit
        for name in kept:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, folder / name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    local = {**LOCAL, "model": "owner/tiny", "revision": commit}
    with pytest.raises(DataError, match=r"captioning model owner/tiny is not ready on this machine"):
        asking.run(**local)
    spec = asking.step(**local).spec
    bring(spec, asking.root)
    folder = place(spec["datasets"][0]["caption"], asking.root)
    assert folder is not None
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    assert not (folder / "onnx").exists()
    assert asking.run(**local).computed == 4
    (repository / "model.safetensors").unlink()
    shutil.rmtree(asking.root / "hub")
    with pytest.raises(DataError, match=r"owner/tiny: the repository has no config\.json with safetensors beside it"):
        bring(spec, asking.root)


def test_what_is_no_model_is_refused(asking: Asking, models: Path) -> None:
    with pytest.raises(DataError, match=r"captioning model \./models/tiny is not ready"):
        asking.run(**LOCAL)
    shutil.copytree(models / "blip", asking.root / "models/tiny")
    weights = asking.root / "models/tiny/model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(DataError, match=r"\./models/tiny: is no model that describes pictures, or not whole"):
        asking.run(**LOCAL)
    assert not (asking.previous / "captions.jsonl").exists()
