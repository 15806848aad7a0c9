"""Captions by models, through the commands that people type."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.build.team import Team, local_remote
from tests.captioners.server import KEY, Speaker, environment
from tests.conftest import BIN, Work
from tests.conftest import environment as tools
from tests.tiny import make_pictures

CLAUDE = {"from": "anthropic", "model": "claude-haiku-4-5", "timeout": 5}


def prepare(work: Work, count: int, **caption: Any) -> None:
    make_pictures(work.root / "datasets/cats", count, captions=False, size=16)
    recipe(work, **caption)


def recipe(work: Work, **caption: Any) -> None:
    images = {"resolution": 16, "buckets": {"step": 8, "max_aspect": 2}}
    work.recipe(datasets=[{"path": "datasets/cats", "caption": {**CLAUDE, **caption}}], images=images, sample=None)


def rows(work: Work) -> list[dict[str, Any]]:
    return [json.loads(line) for line in work.read("build/cat/captions.jsonl").splitlines()]


def plan(work: Work, env: Mapping[str, str]) -> dict[str, Any]:
    steps = json.loads(work.run(str(BIN / "sdbuild"), "plan", "--json", env=env).out)["steps"]
    return next(step for step in steps if step["name"] == "cat:captions")


def holding(work: Work, key: str) -> Iterator[Path]:
    """Files in a project that hold a key."""
    for path in work.root.rglob("*"):
        if path.is_file() and not path.is_symlink() and key.encode() in path.read_bytes():
            yield path


def start(work: Work, env: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(BIN / "doit"), "cat:captions"],
        cwd=work.root,
        env=tools(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_fifty_pictures_with_ten_faults_are_paid_for_once(empty: Work, server: Speaker) -> None:
    prepare(empty, 50, max_tokens=100)
    env = {**environment(server), "ANTHROPIC_LOG": "debug", "OPENAI_LOG": "debug"}
    planned = plan(empty, env)
    assert planned["items"] == {"total": 50, "todo": 50}
    (asks,) = planned["asks"]
    assert (asks["pictures"], asks["requests"], asks["output_tokens"]) == (50, 50, 5000)
    assert asks["cost"] == pytest.approx((asks["input_tokens"] * 1 + 5000 * 5) / 1e6)

    server.key = "another"
    failed = empty.doit("cat:captions", env=env, code=1)
    assert failed.text.count("the key in ANTHROPIC_API_KEY is refused (401: ") == 1
    assert len(server.asked) <= 8
    assert KEY not in failed.text

    server.key, server.asked = KEY, []
    chance = random.Random(0)
    faults = ["429", "429-after-0.3", "500", "529", "reset", "timeout", "trickle", "garbage", "shape", "500"]
    server.faults = [""] * 60
    for place, fault in zip(chance.sample(range(45), 10), faults, strict=True):
        server.faults[place] = fault
    done = empty.doit("cat:captions", env=env)
    assert done.ran["cat:captions"] == 50
    assert len(rows(empty)) == 50
    assert {row["origin"] for row in rows(empty)} == {"anthropic"}
    assert len(server.paid) == 50
    assert set(server.paid.values()) == {1}
    assert len(server.asked) == 60

    assert KEY not in done.text
    assert not list(holding(empty, KEY))
    assert list(holding(empty, "claude-haiku-4-5")), "the search finds what is there"


def test_variants_ask_once_and_the_plan_says_so(empty: Work, server: Speaker) -> None:
    prepare(empty, 3)
    content = empty.read("recipes/cat.yaml").decode()
    empty.write("recipes/cat.yaml", content + "matrix: {method.rank: [1, 2]}\n")
    steps = json.loads(empty.sdbuild("plan", "--json").out)["steps"]
    asks = {step["name"]: step.get("asks") for step in steps if step["name"].endswith(":captions")}
    (first,) = asks["cat@rank-1:captions"]
    assert first["requests"] == 3
    assert asks["cat@rank-2:captions"] is None
    assert not server.asked


def test_only_what_changed_is_asked_for_and_a_clone_asks_nothing(
    template: Path, tmp_path: Path, server: Speaker
) -> None:
    work = Work(template).copy(tmp_path / "project")
    prepare(work, 5)
    env = environment(server)
    work.doit("cat:captions", env=env)
    assert len(server.asked) == 5
    first = work.read("build/cat/captions.jsonl")

    picture = work.root / "datasets/cats/0002.png"
    before = picture.read_bytes()
    make_pictures(work.root / "other", 1, captions=False, size=16, seed=7)[0].replace(picture)
    assert plan(work, env)["asks"][0]["pictures"] == 1
    assert work.doit("cat:captions", env=env).ran["cat:captions"] == 1
    assert len(server.asked) == 6
    assert "recipes/cat.yaml is right" in work.sdbuild("check").out
    picture.write_bytes(before)
    work.doit("cat:captions", env=env)
    assert len(server.asked) == 6
    assert work.read("build/cat/captions.jsonl") == first

    recipe(work, instruction="Say what {stem} shows")
    assert work.doit("cat:captions", env=env).ran["cat:captions"] == 5
    assert len(server.asked) == 11
    recipe(work, parallel=2, suffix=", a photo")
    assert "asks" not in plan(work, env)
    assert work.doit("cat:captions", env=env).ran["cat:captions"] == 0, "another ending costs nothing"
    assert all(row["text"].endswith(", a photo") for row in rows(work))
    recipe(work)
    assert not work.doit("cat:captions", env=env).ran, "taken back, it is restored"
    assert len(server.asked) == 11
    assert work.read("build/cat/captions.jsonl") == first

    # A teammate has what is committed and pushed, and no key.
    team = Team(tmp_path / "team", local_remote(tmp_path / "team/store"))
    team.folder.mkdir()
    work.dvc("add", "--quiet", "datasets/cats")
    team.found(work.root).sdbuild("push")
    clone = team.join("b")
    clone.sdbuild("pull")
    no_key = {"ANTHROPIC_API_KEY": "", "ANTHROPIC_BASE_URL": server.url}
    assert not clone.doit("cat:captions", env=no_key).ran
    assert clone.read("build/cat/captions.jsonl") == first
    # There, one picture more asks once: what was said stands in the captions themselves.
    make_pictures(clone.root / "more", 1, captions=False, size=16, seed=8)[0].rename(clone.root / "datasets/cats/n.png")
    clone.doit("cat:captions", env=env)
    assert len(server.asked) == 12
    assert len(rows(clone)) == 6


def test_what_is_under_way_is_kept_when_a_build_is_stopped(empty: Work, server: Speaker) -> None:
    prepare(empty, 12, parallel=2)
    env = environment(server)
    server.latency = 1.0
    build = start(empty, env)
    while not server.asked:
        assert build.poll() is None, build.stdout and build.stdout.read()
        time.sleep(0.02)
    build.send_signal(signal.SIGINT)
    out, _ = build.communicate(timeout=60)
    assert build.returncode == 130, out
    assert "stopped in cat:captions; doit resumes there" in out
    assert "Traceback" not in out
    paid = sum(server.paid.values())
    assert 1 <= paid <= 2
    assert empty.read(".sdbuild/items/captions/said.jsonl").count(b"\n") == paid


def test_a_killed_build_asks_for_the_rest_and_two_builds_ask_once(empty: Work, server: Speaker) -> None:
    prepare(empty, 12, parallel=2)
    env = environment(server)
    server.latency = 0.5
    build = start(empty, env)
    said = empty.root / ".sdbuild/items/captions/said.jsonl"
    while not said.exists() or said.read_bytes().count(b"\n") < 4:
        assert build.poll() is None, build.stdout and build.stdout.read()
        time.sleep(0.02)
    os.killpg(build.pid, signal.SIGKILL)
    build.communicate()
    time.sleep(1.5)  # the worker goes with the build
    kept = said.read_bytes().count(b"\n")
    assert 4 <= kept < 12
    server.asked.clear()
    server.latency = 0.05
    both = [start(empty, env) for _ in range(2)]
    for each in both:
        out, _ = each.communicate(timeout=300)
        assert each.returncode == 0, out
    assert len(server.asked) == 12 - kept
    assert len(rows(empty)) == 12
    assert server.most_at_once <= 2
