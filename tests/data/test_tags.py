"""Variants of captions are functions of the caption and the settings."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from sdbuild.data.records import CaptionRecord
from sdbuild.data.tags import distinct_texts, texts_of, variant

TAGS: dict[str, Any] = {"separator": ",", "keep": 1, "shuffle": True, "dropout": 0.0, "variants": 8}


def record(text: str, *others: str, **changes: Any) -> CaptionRecord:
    fields: dict[str, Any] = {"digest": "d", "dataset": 0, "origin": "sidecar", "split": "train", "others": others}
    return CaptionRecord(text=text, **{**fields, **changes})


def test_kept_tags_stay_and_the_others_come_in_any_order() -> None:
    variants = [variant("sks a, b,c , d", index, {**TAGS, "keep": 2}) for index in range(200)]
    assert Counter(variants).keys() == {"sks a, b, c, d", "sks a, b, d, c"}
    orders = Counter(variant("x, 1, 2, 3", index, TAGS) for index in range(1200))
    assert len(orders) == 6
    assert min(orders.values()) > 150


def test_dropped_tags() -> None:
    settings = {**TAGS, "shuffle": False, "dropout": 0.25}
    variants = [variant("a, b, c, d, e", index, settings).split(", ") for index in range(2000)]
    assert all(tags[0] == "a" and tags == sorted(tags) for tags in variants)
    left = Counter(tag for tags in variants for tag in tags)
    assert left["a"] == 2000
    assert all(left[tag] == pytest.approx(1500, abs=80) for tag in "bcde")
    assert {variant("a, b", index, {**settings, "keep": 0, "dropout": 1.0}) for index in range(9)} == {""}


@pytest.mark.parametrize(
    ("text", "separator", "found"),
    [
        ("a; b", ";", "a; b"),
        ("a; b", "; ", "a; b"),
        ("a b", " ", "a b"),
        ("a, b", ";", "a, b"),
        ("a,, b,", ",", "a, b"),
        ("a", ",", "a"),
    ],
)
def test_separators(text: str, separator: str, found: str) -> None:
    assert variant(text, 0, {**TAGS, "keep": 9, "separator": separator}) == found


def test_each_caption_has_as_many_variants() -> None:
    one = record("a, b, c", "d, e, f")
    assert texts_of(one, None) == ("a, b, c", "d, e, f")
    texts = texts_of(one, TAGS)
    assert len(texts) == 16
    assert [text[0] for text in texts] == ["a"] * 8 + ["d"] * 8
    assert texts == texts_of(record("a, b, c", "d, e, f", digest="other", dataset=3), TAGS)
    assert texts_of(one, {**TAGS, "variants": 3})[:3] == texts[:3], "more variants add to fewer"


def test_what_is_held_out_is_seen_as_it_is() -> None:
    assert texts_of(record("a, b, c", "d", split="holdout"), TAGS) == ("a, b, c",)


def test_texts_to_encode() -> None:
    rows = [record("a, b"), record("c, d", dataset=1), record("e", dataset=1, split="holdout")]
    assert distinct_texts(rows, {"empty": True}) == {"a, b", "c, d", "e"}
    spec = {"datasets": [{}, {"tags": {**TAGS, "keep": 0}}]}
    assert distinct_texts(rows, spec) == {"a, b", "c, d", "d, c", "e"}


def test_the_variants_are_the_ones_of_this_version() -> None:
    """Golden: a change here encodes everyone's captions anew."""
    assert [variant("a, b, c, d, e", index, {**TAGS, "dropout": 0.3}) for index in range(3)] == GOLDEN


GOLDEN = ["a, c, b, d, e", "a, c, d, e", "a, d, b"]
