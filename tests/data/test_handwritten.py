"""What is remembered of hand-written captions: which pixels lay under which text."""

from __future__ import annotations

from pathlib import Path

from sdbuild.data.handwritten import SHARED_NAME, Fit, Fits

CAT = Fit("datasets/cats", "cat.png", "text", "pixels")
REPAINTED = Fit("datasets/cats", "cat.png", "text", "other pixels")


def fits(project: Path) -> Fits:
    return Fits(project, project / ".sdbuild/items", ["datasets/cats"])


def test_what_was_seen_first_is_asked_about_until_it_is_confirmed(tmp_path: Path) -> None:
    fits(tmp_path).note([CAT])
    assert fits(tmp_path).changed([CAT]) == []
    fits(tmp_path).note([REPAINTED])  # a second build does not take it for granted
    assert fits(tmp_path).changed([REPAINTED]) == [REPAINTED]
    assert not (tmp_path / "datasets").exists(), "builds write nothing beside pictures"
    fits(tmp_path).confirm([REPAINTED])
    assert fits(tmp_path).changed([CAT, REPAINTED]) == []


def test_another_text_or_picture_is_no_change(tmp_path: Path) -> None:
    fits(tmp_path).note([CAT])
    others = [Fit("datasets/cats", "cat.png", "other text", "new"), Fit("datasets/cats", "dog.png", "text", "new")]
    assert fits(tmp_path).changed(others) == []


def test_what_is_confirmed_travels_with_the_dataset(tmp_path: Path) -> None:
    fits(tmp_path).confirm([CAT])
    clone = tmp_path / "clone"
    (clone / "datasets/cats").mkdir(parents=True)
    (clone / "datasets/cats" / SHARED_NAME).write_bytes((tmp_path / "datasets/cats" / SHARED_NAME).read_bytes())
    assert fits(clone).changed([REPAINTED]) == [REPAINTED]


def test_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "datasets/cats" / SHARED_NAME
    file.parent.mkdir(parents=True)
    file.write_bytes(b'[]\n{"picture": 1}\n\xff\n{"picture": "cat.png", "cap')  # a writer was killed
    fits(tmp_path).confirm([CAT])
    assert fits(tmp_path).changed([REPAINTED]) == [REPAINTED]
