"""A campaign of a hundred kills over whole builds: each goes on and ends with the undisturbed build's bytes."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.build.killing import TELLING, VICTIMS, Timeline
from tests.build.test_kill import half_files
from tests.conftest import Work
from tests.tiny import make_pictures

TEXT_SIDE: dict[str, Any] = {
    "method": {"text_encoder": True, "dropout": 0.1},
    "train": {"steps": 16, "accumulate": 2, "ema": {"decay": 0.9}, "schedule": "cosine", "warmup": 2},
}
MANY_VIEWS: dict[str, Any] = {
    "datasets": [
        {"path": "datasets/cats", "trigger": "sks", "holdout": 1, "repeats": 2},
        {"path": "datasets/dogs", "tags": {"dropout": 0.3, "variants": 3}},
    ],
    "images": {"flip": True, "crop": "random", "crops": 2},
    "train": {"steps": 30, "optimizer": "adamw-8bit", "caption_dropout": 0.2, "weighting": {"kind": "min-snr"}},
}
RECIPES: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (34, {"train": {"steps": 40}}),
    "text-side": (33, TEXT_SIDE),
    "many-views": (33, MANY_VIEWS),
}
"""Kills and recipe of each part of the campaign."""
CHAIN = 5
"""Kills of one build, at most."""


def prepared(empty: Work, recipe: dict[str, Any]) -> Work:
    """A project that tells its phases; nothing is built."""
    make_pictures(empty.root / "datasets" / "cats", 4, size=32)
    if "datasets" in recipe:
        for path in make_pictures(empty.root / "datasets" / "dogs", 4, size=(48, 40), seed=1):
            path.with_suffix(".txt").write_text(f"a dog, brown, wet, number {path.stem}\n", encoding="utf-8")
    empty.recipe(**recipe)
    empty.write("dodo.py", TELLING)
    return empty


def state(work: Work) -> dict[str, Any]:
    """All that a build leaves, but for the seconds that its training took."""
    found: dict[str, Any] = {}
    for path in sorted((work.root / "build").rglob("*")):
        if path.is_file():
            found[str(path.relative_to(work.root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    metrics = json.loads(work.read("build/cat/metrics.json"))
    assert metrics.pop("seconds") >= 0
    assert metrics.pop("memory") > 0
    lock = work.read("dvc.lock").decode().splitlines()
    start = next(number for number, line in enumerate(lock) if line.strip() == "- path: build/cat/metrics.json")
    return {**found, "build/cat/metrics.json": metrics, "dvc.lock": lock[:start] + lock[start + 4 :]}


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", RECIPES)
def test_killed_builds_go_on_to_the_same_bytes(name: str, empty: Work, tmp_path: Path) -> None:
    kills, recipe = RECIPES[name]
    fresh, chance = prepared(empty, recipe), random.Random(name)
    undisturbed = fresh.copy(tmp_path / "undisturbed")
    timeline = Timeline.of(undisturbed)
    expected, phases = state(undisturbed), list(timeline.seconds)
    timeline = Timeline(seconds={**timeline.seconds, "restore": 0.5})
    hits: Counter[str] = Counter()
    victims: Counter[str] = Counter()

    def strike(work: Work, phase: str) -> bool:
        whom = VICTIMS[sum(hits.values()) % len(VICTIMS)]
        hit = timeline.kill(work, phase, chance.random(), whom)
        if hit is not None:
            hits[hit] += 1
            victims[whom] += 1
        return hit is not None

    for number in range(kills):
        if sum(hits.values()) == kills:
            break
        work = fresh.copy(tmp_path / f"round-{number}")
        waiting = [phase for phase in phases if not hits[phase]] or phases  # first each once
        chosen = chance.sample(waiting, min(CHAIN, len(waiting), kills - sum(hits.values())))
        for phase in sorted(chosen, key=phases.index):
            if not strike(work, phase):
                break
        work.doit()
        assert state(work) == expected, hits
        assert half_files(work) == []
        shutil.rmtree(work.root / "build")  # the cache must have all of it
        if sum(hits.values()) < kills:
            strike(work, "restore")
        assert work.doit().ran == {}
        assert state(work) == expected, hits
        shutil.rmtree(work.root)
    print(f"\n{name}: {sum(hits.values())} kills, of {dict(victims)}: {dict(hits)}")
    assert sum(hits.values()) == kills
    kinds = {"images", "captions", "latents", "train", "samples"} | ({"text"} if name != "text-side" else set())
    struck = {word for phase in hits for word in phase.split(" ")}
    assert kinds | {"save", "restore", "under"} <= struck  # writing the lock takes a millisecond, which chance may miss
