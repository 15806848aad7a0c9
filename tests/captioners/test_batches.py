"""The batch interfaces of both providers: half the price, and a batch that is under way is gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdbuild.captioners import batches
from sdbuild.errors import StepError
from sdbuild.steps.contract import Items
from tests.captioners.conftest import CLAUDE, GPT, Asking
from tests.captioners.server import Speaker

BOTH = pytest.mark.parametrize("model", [CLAUDE, GPT], ids=["anthropic", "openai"])


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "FIRST_LOOK", 0.01)


def notes(asking: Asking) -> list[Path]:
    return list((asking.items / "captions/batches").glob("*"))


@BOTH
def test_a_batch_answers_all(asking: Asking, server: Speaker, model: dict[str, Any]) -> None:
    assert asking.run(**model, batch=True) == Items(total=4, computed=4)
    assert len(server.batches) == 1
    assert len(server.paid) == 4
    assert not notes(asking)
    assert asking.told[-2][2]["$"] == pytest.approx(4 * (0.5 if model is CLAUDE else 0.075) * 1e-3, rel=0.2)
    assert asking.run(**model) == Items(total=4, computed=0), "asked one by one, the captions are the same"


@BOTH
def test_requests_of_a_batch_that_failed_are_sent_again(asking: Asking, server: Speaker, model: dict[str, Any]) -> None:
    server.batch_faults = ["", "529", "cut", "expired"]
    assert asking.run(**model, batch=True).computed == 4
    assert [len(rows) for rows in server.batches.values()] == [4, 3]
    limits = {row[name] for row in server.batches[list(server.batches)[1]].values() for name in row if "max" in name}
    assert limits == {1024}


@BOTH
def test_a_refusal_in_a_batch_names_the_picture(asking: Asking, server: Speaker, model: dict[str, Any]) -> None:
    server.batch_faults = ["refusal", "400"]
    with pytest.raises(StepError) as error:
        asking.run(**model, batch=True)
    assert "png: the model refuses to describe it" in str(error.value)
    assert "png: the request is refused (400: the picture is not one)" in str(error.value)
    assert "2 of 4 captions arrived and are kept" in str(error.value)


def begin(asking: Asking, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Send a batch and be interrupted while it is waited for."""

    def leave(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sdbuild.captioners.batches.time.sleep", leave)
        with pytest.raises(KeyboardInterrupt):
            asking.run(**model, batch=True)


@BOTH
def test_a_batch_is_gone_on_with(
    asking: Asking, server: Speaker, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(asking, model, monkeypatch)
    (note,) = notes(asking)
    assert len(json.loads(note.read_text())["keys"]) == 4
    sidecar = asking.root / "datasets/cats/0000.txt"
    sidecar.write_text("a cat by hand")
    assert asking.run(**model, batch=True).computed == 4
    assert len(server.batches) == 1
    assert any("going on with batch" in warning for warning in asking.warnings)
    assert not notes(asking)
    sidecar.unlink()
    asking.run(**model)
    assert len(server.asked) == 4, "what nobody wanted when it came is kept too"


@BOTH
@pytest.mark.parametrize("answered", [1, 4])
def test_without_batches_one_is_called_back_and_what_it_answered_is_not_asked_again(
    asking: Asking, server: Speaker, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch, answered: int
) -> None:
    begin(asking, model, monkeypatch)
    server.patience, server.before_cancel = 9, answered
    assert asking.run(**model).computed == 4
    assert server.cancelled == set(server.batches)
    assert set(server.paid.values()) == {1}
    assert len(server.asked) == len(server.paid) == 4
    assert any("calling back batch" in warning for warning in asking.warnings)
    assert not notes(asking)


@BOTH
def test_a_batch_that_has_ended_is_taken_and_not_cancelled(
    asking: Asking, server: Speaker, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(asking, model, monkeypatch)
    server.patience = 0
    assert asking.run(**model).computed == 4
    assert not server.cancelled
    assert len(server.asked) == len(server.paid) == 4


@BOTH
def test_a_batch_that_is_gone_is_asked_for_again(
    asking: Asking, server: Speaker, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(asking, model, monkeypatch)
    server.batches["another"] = server.batches.pop(next(iter(server.batches)))
    assert asking.run(**model, batch=True).computed == 4
    assert any("is not there any more; what it held is asked for again" in warning for warning in asking.warnings)
    assert not notes(asking)


def test_a_batch_that_is_refused_whole_is_told_and_forgotten(asking: Asking, server: Speaker) -> None:
    server.refuses_batches = True
    with pytest.raises(StepError, match=r"the batch is refused \(the file is too large\)"):
        asking.run(**GPT, batch=True)
    assert not notes(asking)
    server.refuses_batches = False
    assert asking.run(**GPT, batch=True).computed == 4


def test_many_pictures_are_several_batches(asking: Asking, server: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MOST_REQUESTS", 3)
    asking.run(**CLAUDE, batch=True)
    assert sorted(len(rows) for rows in server.batches.values()) == [1, 3]
    assert len(asking.texts) == 4


def test_a_wrong_key_sends_no_batch(asking: Asking, server: Speaker) -> None:
    server.key = "another"
    with pytest.raises(StepError, match=r"ANTHROPIC_API_KEY is refused \(401"):
        asking.run(**CLAUDE, batch=True)
    assert not server.batches
