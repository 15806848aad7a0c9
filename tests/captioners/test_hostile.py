"""Servers that mean ill: where pictures and keys go, and what of an answer arrives."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from sdbuild.captioners import api_keys, http_client
from sdbuild.captioners.contract import PATIENCE, AskError
from sdbuild.errors import DataError, StepError
from tests.captioners.conftest import CLAUDE, GPT, Asking
from tests.captioners.server import KEY, Speaker, completion, message, serving
from tests.conftest import Work

BOTH = pytest.mark.parametrize("model", [CLAUDE, GPT], ids=["anthropic", "openai"])


@BOTH
def test_redirects_are_not_followed(asking: Asking, server: Speaker, model: dict[str, Any]) -> None:
    with serving(Speaker()) as other:
        server.elsewhere = f"{other.url}/v1/{'messages' if model is CLAUDE else 'chat/completions'}"
        server.faults = ["redirect"] * 9
        with pytest.raises(StepError, match=r"redirects to http://127\.0\.0\.1.*\(307\); redirects are not followed"):
            asking.run(**model)
        assert not other.asked
        assert len(server.asked) <= 8


@BOTH
def test_bodies_are_bounded(asking: Asking, server: Speaker, model: dict[str, Any]) -> None:
    for fault in ("endless", "endless-error"):
        server.faults = ["", fault]
        tracemalloc.start()
        with pytest.raises(StepError) as caught:
            asking.run(**model, parallel=1, attempts=1, style="short" if fault == "endless" else "tags")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert "png: the server's answer has more than 4 MiB" in str(caught.value)
        assert "3 of 4 captions arrived and are kept" in str(caught.value)
        assert peak < 6 * http_client.MOST, peak
    server.faults = ["gzip"]
    with pytest.raises(StepError, match="sends compressed answers, though it was asked not to"):
        asking.run(**model, parallel=1)


@BOTH
def test_bodies_arrive_in_time(asking: Asking, server: Speaker, model: dict[str, Any]) -> None:
    server.faults = ["", "trickle-error"]
    started = time.monotonic()
    with pytest.raises(StepError, match="no whole answer within 2 s"):
        asking.run(**model, parallel=1, attempts=1, timeout=2)
    assert time.monotonic() - started < 20


@BOTH
def test_no_batch_waits_for_ever(
    asking: Asking, server: Speaker, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdbuild.captioners import batches

    slept: list[float] = []
    waits = iter([float("inf"), 1e12])
    patiently = batches.Batches._patiently

    def asked_to_wait(self: Any, do: Callable[[], Any]) -> Any:
        def busy() -> Any:
            if (wait := next(waits, None)) is not None:
                raise AskError("the server has too much to do", "again", wait=wait)
            return do()

        return patiently(self, busy)

    monkeypatch.setattr(batches.Batches, "_patiently", asked_to_wait)
    monkeypatch.setattr("sdbuild.captioners.batches.time.sleep", slept.append)
    assert asking.run(**model, batch=True).computed == 4
    assert slept[:2] == [PATIENCE, PATIENCE]


@BOTH
def test_an_answer_of_any_kind_is_taken_or_told_of_its_picture(
    asking: Asking, server: Speaker, model: dict[str, Any]
) -> None:
    usage: Any
    written = message if model is CLAUDE else completion
    said = json.loads(json.dumps(written("a cat", "")))

    def with_text(text: Any) -> bytes:
        changed = json.loads(json.dumps(said))
        if model is CLAUDE:
            changed["content"] = [{"type": "text", "text": text}]
        else:
            changed["choices"][0]["message"]["content"] = text
        return json.dumps(changed).encode()

    taken = [
        "a\0cat\x1b[2J\u202e",
        "half \ud800 a cat \udcff",
        "<script>alert(1)</script>",
        "[red]cat[/red]",
        "é" * 4000,
    ]
    refused: list[bytes] = [
        with_text(text) for text in (None, "", 5, {"a": 1}, [], ["a"], True, "x" * 3_000_000, "a" * 60_000)
    ]
    refused += [
        b"",
        b"<html></html>",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"\xff\xfe\x00",
        b"NaN",
        b"1" * 9000,
    ]
    for usage in ("many", float("nan"), float("inf"), [], -5, 10**400, {"a": 1}):
        changed = json.loads(json.dumps(said))
        changed["usage"] = dict.fromkeys(changed["usage"], usage)
        try:
            refused.append(json.dumps(changed).encode())
        except ValueError:
            continue
    for at, text in enumerate(taken):
        server.faults, server.bodies = ["", "body"], [with_text(text)]
        assert asking.run(**model, parallel=1, attempts=1, max_words=None, subject=f"{at}").computed == 4
        assert all(each.isprintable() for each in asking.texts)
    for at, body in enumerate(refused):
        server.faults, server.bodies = ["", *["body"] * 3], [body] * 3
        try:
            asking.run(**model, parallel=1, attempts=1, subject=f"r{at}")
        except StepError as error:
            lines = str(error).splitlines()
            assert ".png: " in lines[0], (body[:99], lines)
            assert len(lines[0]) < 400
            assert "captions arrived and are kept" in lines[-1]
            assert not lines[-1].startswith("0 of")
        server.faults = []


@pytest.mark.parametrize("model", [CLAUDE, GPT], ids=["anthropic", "openai"])
def test_a_row_of_a_batch_that_is_none_takes_no_answer_from_the_others(
    asking: Asking, server: Speaker, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdbuild.captioners import batches

    monkeypatch.setattr(batches, "FIRST_LOOK", 0.01)
    odd: Any = ["no", 1]
    server.say = lambda asked: "a cat" if len(server.paid) % 2 else odd
    with pytest.raises(StepError, match="captions arrived and are kept"):
        asking.run(**model, batch=True)
    server.say = lambda asked: "a cat"
    assert 0 < asking.run(**model, batch=True).computed < 4


def test_openai_keys_go_nowhere_that_only_a_recipe_names(
    asking: Asking, server: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws-secret")
    seen: list[str] = []
    refused = server._refused

    def watch(request: Any, error: Any) -> Any:
        seen.append(json.dumps(dict(request.headers)))
        return refused(request, error)

    monkeypatch.setattr(server, "_refused", watch)
    there = f"{server.url}/v1"
    server.key = "none"
    assert asking.run(**GPT, base_url=there).computed == 4
    assert not any("secret" in headers or KEY in headers for headers in seen)
    with pytest.raises(
        DataError, match=r"AWS_SECRET_ACCESS_KEY may not be sent to http://127\.0\.0\.1:.* export SDBUILD_KEYS"
    ):
        asking.run(**GPT, base_url=there, key_variable="AWS_SECRET_ACCESS_KEY", style="short")
    with pytest.raises(DataError, match=r"AWS_SECRET_ACCESS_KEY may not be sent to https://api\.openai\.com, since"):
        asking.run(**GPT, key_variable="AWS_SECRET_ACCESS_KEY", style="short")
    for wrong in (f"OPENAI_API_KEY=http://127.0.0.1:1 X={server.url}", f"OPENAI_API_KEY={server.url}0"):
        monkeypatch.setenv("SDBUILD_KEYS", wrong)
        assert not api_keys.is_sent({"base_url": there, "key_variable": "OPENAI_API_KEY"})
    monkeypatch.setenv("SDBUILD_KEYS", f"OPENAI_API_KEY={server.url}/whatever")
    server.key = KEY
    assert asking.run(**GPT, base_url=there, style="tags").computed == 4
    monkeypatch.setenv("SDBUILD_KEYS", f"sk-secret-by-mistake MY={server.url}")
    with pytest.raises(DataError, match="is not followed by =https://host"):
        api_keys.is_sent({"base_url": there, "key_variable": "MY"})


def test_origins_are_compared_as_servers_are_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def sent(address: str | None, variable: str = "MY_KEY") -> bool:
        try:
            return api_keys.is_sent({"base_url": address, "key_variable": variable})
        except DataError:
            return False

    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("SDBUILD_KEYS", "MY_KEY=https://Host.example,OTHER=http://[::1]:8000")
    assert sent("https://host.example:443/v1")
    assert sent("http://[::1]:8000/v1", "OTHER")
    for other in (
        "http://host.example",
        "https://host.example.evil.org",
        "https://host.example:8443",
        "https://evil.org/host.example",
        None,
    ):
        assert not sent(other), other
    assert sent(None, "OPENAI_API_KEY")
    assert sent("https://api.openai.com/v1", "OPENAI_API_KEY")
    for other in (
        "http://api.openai.com/v1",
        "https://api.openai.com.evil.org/v1",
        "https://evil.org",
        "http://localhost:11434/v1",
    ):
        assert not sent(other, "OPENAI_API_KEY"), other
    monkeypatch.setenv("OPENAI_BASE_URL", "https://proxy.example/v1")
    assert sent(None, "OPENAI_API_KEY")
    assert sent("https://proxy.example/v2", "OPENAI_API_KEY")
    assert not sent(None)


def test_check_tells_what_is_not_sent(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    for picture in (work.root / "datasets/cats").glob("*.txt"):
        picture.unlink()
    there = {"from": "openai", "model": "m", "base_url": "https://models.example/v1"}
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    work.recipe(datasets=[{"path": "datasets/cats", "caption": there}])
    done = work.sdbuild("check")
    assert "OPENAI_API_KEY is not sent to https://models.example, which is asked without a key" in done.text
    work.recipe(datasets=[{"path": "datasets/cats", "caption": {**there, "key_variable": "AWS_SECRET_ACCESS_KEY"}}])
    done = work.sdbuild("check", code=2)
    assert "datasets[0].caption.key_variable: AWS_SECRET_ACCESS_KEY may not be sent to" in done.err
    assert 'export SDBUILD_KEYS="AWS_SECRET_ACCESS_KEY=https://models.example"' in done.err
    monkeypatch.setenv("SDBUILD_KEYS", "AWS_SECRET_ACCESS_KEY=https://models.example")
    assert "is right" in work.sdbuild("check").out
