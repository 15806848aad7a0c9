from __future__ import annotations

import pytest

from sdbuild.report.changes import ABSENT, Change, Picture, PictureChanges, picture_changes, value_changes, word_changes


def picture(path: str, digest: str, caption: str | None = None) -> Picture:
    return Picture(path=path, digest=digest, caption=caption)


def paths(pairs: tuple[tuple[Picture, Picture], ...]) -> list[tuple[str, str]]:
    return [(old.path, new.path) for old, new in pairs]


def test_pictures_by_path_and_pixels() -> None:
    old = [picture("a", "1"), picture("b", "2", "two"), picture("c", "3"), picture("d", "4")]
    new = [picture("a", "1"), picture("e", "2", "deux"), picture("c", "33"), picture("f", "6")]
    found = picture_changes(old, new)
    assert [each.path for each in found.added] == ["f"]
    assert [each.path for each in found.removed] == ["d"]
    assert paths(found.changed) == [("c", "c")]
    assert paths(found.renamed) == [("b", "e")]
    assert paths(found.recaptioned) == [("b", "e")]


def test_two_pictures_that_swap_names_are_renamed() -> None:
    found = picture_changes([picture("a", "1"), picture("b", "2")], [picture("a", "2"), picture("b", "1")])
    assert found == PictureChanges(
        renamed=((picture("a", "1"), picture("b", "1")), (picture("b", "2"), picture("a", "2")))
    )


def test_equal_pixels_at_several_paths_are_counted() -> None:
    found = picture_changes([picture("a", "1"), picture("b", "1")], [picture("c", "1")])
    assert paths(found.renamed) == [("a", "c")]
    assert [each.path for each in found.removed] == ["b"]


def test_an_unknown_caption_is_not_a_changed_one() -> None:
    assert not picture_changes([picture("a", "1", None)], [picture("a", "1", "cat")])
    assert not picture_changes([], [])


def test_values_by_dotted_key() -> None:
    old = {"train": {"steps": 4, "clip": None}, "datasets": [{"path": "a"}], "gone": 1, "seeds": [0]}
    new = {"train": {"steps": 5, "clip": None}, "datasets": [{"path": "a"}, {"path": "b"}], "seeds": [0, 1]}
    assert value_changes(old, new) == [
        Change(key="datasets[1].path", old=ABSENT, new="b"),
        Change(key="gone", old=1, new=ABSENT),
        Change(key="seeds", old=[0], new=[0, 1]),
        Change(key="train.steps", old=4, new=5),
    ]
    assert value_changes({}, {}) == []


@pytest.mark.parametrize(
    ("old", "new", "pieces"),
    [
        ("a red cat", "a blue cat", [("same", "a "), ("old", "red"), ("new", "blue"), ("same", " cat")]),
        ("cat", "cat, sitting", [("same", "cat"), ("new", ", sitting")]),
        ("", "cat", [("new", "cat")]),
        ("cat", "", [("old", "cat")]),
    ],
)
def test_words(old: str, new: str, pieces: list[tuple[str, str]]) -> None:
    assert list(word_changes(old, new)) == pieces
