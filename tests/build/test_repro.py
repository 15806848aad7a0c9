"""`dvc repro` beside doit: what DVC built by itself is judged by what it really read."""

from __future__ import annotations

from tests.conftest import Work


def test_a_caption_that_dvc_built_and_that_is_taken_back(built: Work) -> None:
    path = built.root / "datasets/cats/0000.txt"
    good, captions = path.read_text(), built.read("build/cat/captions.jsonl")
    path.write_text("a blue dog")
    built.dvc("repro", "--single-item", "cat-images", "cat-captions")
    assert b"blue dog" in built.read("build/cat/captions.jsonl")
    path.write_text(good)
    built.doit("cat:captions")
    assert built.read("build/cat/captions.jsonl") == captions


def test_what_dvc_built_is_fresh_for_doit(built: Work) -> None:
    (built.root / "datasets/cats/0000.txt").write_text("a blue dog")
    built.dvc("repro")
    assert built.doit().ran == {}
    assert "up to date" in built.dvc("status").out


def test_a_step_by_itself_says_no_more_than_its_own(built: Work) -> None:
    result = built.sdbuild("step", "cat:samples")
    assert result.err == ""
    assert all(line.startswith("cat:samples") for line in result.out.splitlines())
