"""What can go wrong between here and a model: each fault is provoked at a server that speaks the real protocols."""

from __future__ import annotations

import email.utils
import re
import threading
import time
from typing import Any

import pytest

from sdbuild.captioners import desk, hosted
from sdbuild.errors import StepError
from sdbuild.steps.contract import Items
from tests.captioners.conftest import CLAUDE, GPT, Asking
from tests.captioners.server import KEY, Speaker
from tests.tiny import make_pictures

BOTH = pytest.mark.parametrize("model", [CLAUDE, GPT], ids=["anthropic", "openai"])
PASSING = ["429", "429-after-0.2", "500", "529", "reset", "timeout", "trickle", "garbage", "shape"]


@BOTH
@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_tried_again(asking: Asking, server: Speaker, model: dict[str, Any], fault: str) -> None:
    server.faults = [fault]
    timeout = 5 if fault in ("timeout", "trickle") else 60
    assert asking.run(**model, timeout=timeout, parallel=2) == Items(total=4, computed=4)
    assert len(server.asked) == 5
    assert set(server.paid.values()) == {1}
    assert len(server.paid) == 4
    assert all(text.startswith("sks a picture of ") for text in asking.texts)


def test_all_wait_as_long_as_a_busy_server_asks(asking: Asking, server: Speaker) -> None:
    server.faults = ["429-after-0.7"]
    started = time.monotonic()
    asking.run(**CLAUDE, parallel=1)
    assert time.monotonic() - started > 0.7


def test_how_long_a_server_asks_to_wait() -> None:
    asked = hosted._wait
    assert asked({"retry-after": "2.5"}) == 2.5
    assert asked({"retry-after-ms": "250", "retry-after": "1"}) == 0.25
    later = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert asked({"retry-after": later}) == pytest.approx(60, abs=5)
    years = (f"Mon, 01 Jan {year} 00:00:00 GMT" for year in (99_999_999_999, -(10**20), 10**20))
    for nothing in ("", "0", "-1", "nan", "soon", "Wed, 21 Oct 2015 07:28:00 GMT", *years):
        assert asked({"retry-after": nothing}) is None, nothing


def test_a_busy_server_is_waited_for_as_long_as_it_answers_others(asking: Asking, server: Speaker) -> None:
    make_pictures(asking.root / "datasets/cats", 12, captions=False, size=32)
    server.faults = ["", "429-after-0.05"] * 30
    assert asking.run(**CLAUDE, parallel=6, attempts=3).computed == 12
    assert len(server.paid) == 12


def test_a_server_that_asks_to_wait_for_long_ends_the_build(asking: Asking, server: Speaker) -> None:
    server.faults = ["", "429-after-3600"]
    with pytest.raises(StepError, match=r"wait 3600 s: run doit again later\n1 of 4 captions arrived and are kept"):
        asking.run(**CLAUDE, parallel=1)


@BOTH
def test_a_server_that_stays_broken_fails_one_picture_by_name(
    asking: Asking, server: Speaker, model: dict[str, Any]
) -> None:
    server.faults = ["", "500", "500", "", ""]
    with pytest.raises(StepError) as error:
        asking.run(**model, parallel=1, attempts=2)
    assert "png: the server failed (500: internal server error) (2 tries)" in str(error.value)
    assert "3 of 4 captions arrived and are kept" in str(error.value)
    assert asking.run(**model) == Items(total=4, computed=1)
    assert len(server.asked) == 6


def test_one_failure_after_the_other_ends_the_build(
    asking: Asking, server: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "MOST_IN_A_ROW", 2)
    server.faults = ["500"] * 9
    with pytest.raises(StepError, match=r"2 pictures one after the other got no caption"):
        asking.run(**CLAUDE, parallel=1, attempts=1)
    assert len(server.asked) == 2


@BOTH
def test_a_refusal_names_the_picture_and_the_remedy(asking: Asking, server: Speaker, model: dict[str, Any]) -> None:
    server.faults = ["refusal"]
    with pytest.raises(StepError) as error:
        asking.run(**model, parallel=1)
    assert asking.told[-1][2]["k tokens"] == 4 * 1.02, "a refusal is paid for too"
    refused = re.search(r"(\d{4})\.png: the model refuses to describe it; write its caption", str(error.value))
    assert refused
    (asking.root / f"datasets/cats/{refused[1]}.txt").write_text("a cat by hand")
    assert asking.run(**model).computed == 1
    assert len(server.asked) == 4
    assert [row.origin for row in asking.rows].count("sidecar") == 1


@BOTH
def test_a_request_that_is_refused_is_not_sent_again(asking: Asking, server: Speaker, model: dict[str, Any]) -> None:
    server.faults = ["400"]
    with pytest.raises(StepError, match=r"\d{4}\.png: the request is refused \(400: the picture is not one\)"):
        asking.run(**model, parallel=1)
    assert len(server.asked) == 4


@BOTH
def test_empty_and_cut_answers_are_asked_for_once_more(asking: Asking, server: Speaker, model: dict[str, Any]) -> None:
    server.faults = ["empty", "", "cut"]
    asking.run(**model, parallel=1, max_tokens=100)
    limits = [next(asked.body[name] for name in asked.body if "max" in name) for asked in server.asked]
    assert limits == [100, 100, 100, 200, 100, 100]
    server.faults = ["empty", "empty", "cut", "cut"]
    with pytest.raises(StepError) as error:
        asking.run(**model, parallel=1, instruction="Again")
    assert "png: the model answers nothing; change the instruction" in str(error.value)
    assert "png: the answer has more than 1024 tokens; raise max_tokens" in str(error.value)


@BOTH
def test_a_wrong_key_stops_at_once_and_is_not_repeated(asking: Asking, server: Speaker, model: dict[str, Any]) -> None:
    server.key = "another"
    with pytest.raises(StepError) as error:
        asking.run(**model, parallel=1)
    message = str(error.value)
    assert "_API_KEY is refused (401: Incorrect API key provided: ***)" in message
    assert KEY not in message
    assert len(message.splitlines()) == 2
    assert len(server.asked) == 1


def test_nothing_more_is_asked_once_one_answer_stops_all(
    asking: Asking, server: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(threading.Semaphore):
        """Its next holder has it long before the last one goes on."""

        def release(self, n: int = 1) -> None:
            super().release(n)
            time.sleep(0.2)

    monkeypatch.setattr(threading, "Semaphore", Slow)
    server.faults = ["402"]
    with pytest.raises(StepError, match=r"no credit left .*\n0 of 4 captions"):
        asking.run(**CLAUDE, parallel=1)
    assert len(server.asked) == 1


@BOTH
@pytest.mark.parametrize("fault", ["quota", "402", "404"])
def test_an_account_or_model_that_is_not_there_stops(
    asking: Asking, server: Speaker, model: dict[str, Any], fault: str
) -> None:
    server.faults = ["", "", fault]
    word = "the server does not know" if fault == "404" else "the account has no credit left"
    with pytest.raises(StepError, match=rf"{word} .*\n2 of 4 captions arrived and are kept"):
        asking.run(**model, parallel=1)
    assert asking.run(**model).computed == 2
    assert len(server.asked) == 5


@BOTH
def test_a_server_that_is_not_there(asking: Asking, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]) -> None:
    for name in ("ANTHROPIC_BASE_URL", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(StepError, match=r"\d{4}\.png: the connection broke \(.*\) \(1 tries\)"):
        asking.run(**model, attempts=1)


@BOTH
@pytest.mark.parametrize("key", ["", "two words", "käse"])
def test_a_key_that_is_missing_or_none(
    asking: Asking, server: Speaker, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any], key: str
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", key)
    monkeypatch.setenv("OPENAI_API_KEY", key)
    if key or model is CLAUDE:
        with pytest.raises(StepError, match=r"_API_KEY is not set|_API_KEY holds no key"):
            asking.run(**model)
    assert not server.asked


@BOTH
def test_a_missing_client_is_explained(asking: Asking, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]) -> None:
    import sys

    monkeypatch.setitem(sys.modules, model["from"], None)
    with pytest.raises(StepError, match=r'need its client: pip install "sdbuild\[(anthropic|openai)\]"'):
        asking.run(**model)
