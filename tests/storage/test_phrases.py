"""Parts of messages."""

from __future__ import annotations

from sdbuild.storage.phrases import cut, did_you_mean, first_few


def test_the_nearest_name() -> None:
    assert did_you_mean("stepz", ["seed", "steps"]) == " (did you mean steps?)"
    assert did_you_mean("x", ["seed", "steps"]) == ""
    assert did_you_mean("cat", ["cat@rank-4"], cutoff=0) == " (did you mean cat@rank-4?)"
    assert did_you_mean("cat", []) == ""


def test_the_first_names() -> None:
    assert first_few(["a"]) == "a"
    assert first_few(["a", "b", "c"]) == "a, b, c"
    assert first_few(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


def test_long_texts() -> None:
    assert cut("a" * 60) == "a" * 60
    assert cut("a" * 61) == "a" * 59 + "…"
    assert len(cut("a" * 500, 10)) == 10
