"""The text step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sdbuild.data.items import ShardReader
from sdbuild.families import load, sd1
from sdbuild.steps import text
from tests.steps.stage import Stage, write_texts
from tests.tiny import make_pipeline

SPEC = {"version": 1, "empty": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("base"))


@pytest.fixture
def stage(tmp_path: Path, base: Path) -> Stage:
    return Stage(tmp_path, base)


def encoded(out: Path) -> dict[str, torch.Tensor]:
    reader = ShardReader(out / "text")
    rows = [json.loads(line) for line in (out / "text/index.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == sorted(row["text"] for row in rows)
    return {row["text"]: reader.read(row["key"])["hidden"] for row in rows}


def test_each_caption_is_encoded_once(stage: Stage) -> None:
    captions = write_texts(stage.project, ["a cat", "a dog", "a cat", "猫"])
    items, out = stage.run(text, SPEC, captions=captions)
    assert (items.total, items.computed) == (3, 3)
    assert stage.told == [(done, 3, "captions") for done in range(4)]
    found, encoder = encoded(out), load(stage.base).load_text()
    assert set(found) == {"a cat", "a dog", "猫"}
    for caption, hidden in found.items():
        assert torch.equal(hidden, encoder.encode(caption)["hidden"])


def test_only_new_captions_are_encoded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.run(text, SPEC, captions=write_texts(stage.project, ["a cat", "a dog"]))
    items, _ = stage.run(text, SPEC, captions=write_texts(stage.project, ["a cat", "a fish"]))
    assert (items.total, items.computed) == (2, 1)
    monkeypatch.setattr(sd1, "family", None)
    items, out = stage.run(text, SPEC, captions=write_texts(stage.project, ["a dog"]))
    assert (items.total, items.computed) == (1, 0)
    assert set(encoded(out)) == {"a dog"}


def test_the_empty_caption_comes_when_asked_for(stage: Stage) -> None:
    captions = write_texts(stage.project, ["a cat"])
    stage.run(text, SPEC, captions=captions)
    items, out = stage.run(text, {**SPEC, "empty": True}, captions=captions)
    assert (items.total, items.computed) == (2, 1)
    assert set(encoded(out)) == {"", "a cat"}


def test_another_encoder_is_another_item(stage: Stage, tmp_path: Path) -> None:
    captions = write_texts(stage.project, ["a cat"])
    stage.run(text, SPEC, captions=captions)
    other = make_pipeline(tmp_path / "other", seed=1)
    assert stage.run(text, SPEC, captions=captions, base=other)[0].computed == 1


def test_long_captions_are_told_once_with_their_number(stage: Stage) -> None:
    stage.run(text, SPEC, captions=write_texts(stage.project, ["a cat", "b " * 75]))
    assert stage.warnings == []
    stage.run(text, SPEC, captions=write_texts(stage.project, ["a cat", "c " * 76, "d " * 100]))
    (warning,) = stage.warnings
    assert warning.startswith("2 captions are longer than the 77 tokens that the encoder takes; the rest is cut off")
    assert "78 tokens: 'c c c" in warning
    assert warning.endswith("…'")
