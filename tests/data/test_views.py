"""Views change with what a step reads, and with nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from sdbuild.data import views
from sdbuild.data.buckets import Fit
from sdbuild.data.records import CaptionRecord
from sdbuild.data.views import read_otherwise
from sdbuild.storage.text_cleaning import clean
from tests.data.files import write
from tests.data.test_records import image


def test_pictures_leave_captions_out() -> None:
    listing = {"b.png": "2", "a.JPG": "1", "a.txt": "3", ".hidden/c.png": "4", "captions.jsonl": "5"}
    assert views.pictures(listing) == {"a.JPG": "1", "b.png": "2"}


def test_pixels_know_no_paths() -> None:
    one, other = image("x/a.png", digest="1"), image("x/b.png", digest="2")
    view = views.pixels([one, other])
    assert view == [["1", [72, 56], [72, 58], [0, 1]], ["2", [72, 56], [72, 58], [0, 1]]]
    renamed = [replace(other, path="x/z.png", split="holdout"), one, replace(one, dataset=1)]
    assert views.pixels(renamed) == view
    assert views.pixels([replace(one, crop=(0, 2)), other]) != view


def test_pixels_know_datasets_where_they_see_differently() -> None:
    large = Fit(bucket=(96, 64), resize=(96, 77), crop=(0, 6))
    one, other = image(digest="1", further=(large,)), image(digest="1", dataset=1)
    usual = ["1", [72, 56], [72, 58], [0, 1]]
    assert views.pixels([one, replace(one, dataset=1)]) == [usual, ["1", [96, 64], [96, 77], [0, 6]]]
    assert views.pixels([one, other]) == [usual, ["1", [96, 64], [96, 77], [0, 6], [0]]]


def test_texts_come_once() -> None:
    rows = [
        CaptionRecord(digest=str(n), dataset=0, text=t, origin="sidecar", split="train") for n, t in enumerate("bab")
    ]
    assert views.texts(rows, {"empty": True}) == ["a", "b"]


def test_texts_of_pictures_are_the_captions(tmp_path: Path) -> None:
    spec = {"datasets": [{"path": "datasets/x", "caption": {"from": "sidecar"}, "trigger": "sks"}]}
    write(tmp_path / "datasets/x/a.txt", "a cat")
    assert views.texts_of([image(digest="1")], spec, tmp_path) == {"0:1": ["sks a cat", "sidecar", "train"]}
    write(tmp_path / "datasets/x/notes.txt", "unrelated")
    write(tmp_path / "datasets/x/a.txt", "a cat\n\n")
    assert views.texts_of([image(digest="1")], spec, tmp_path) == {"0:1": ["sks a cat", "sidecar", "train"]}


def test_several_texts_and_variants_are_seen() -> None:
    row = CaptionRecord(digest="1", dataset=0, text="a, b", origin="sidecar", split="train", others=("c",))
    assert views.records([row]) == {"0:1": ["a, b", "train", "c"]}
    tags = {"separator": ",", "keep": 0, "shuffle": True, "dropout": 0, "variants": 20}
    assert views.texts([row], {"datasets": [{"tags": tags}]}) == ["a, b", "b, a", "c"]


def test_mistakes_make_a_view_of_their_own(tmp_path: Path) -> None:
    spec = {"datasets": [{"path": "datasets/x", "caption": {"from": "sidecar"}, "trigger": ""}]}
    (tmp_path / "datasets/x").mkdir(parents=True)
    view = views.texts_of([image()], spec, tmp_path)
    assert list(view) == ["problems"]
    assert "no caption" in view["problems"][0]


def test_digests_are_canonical() -> None:
    assert views.digest_of({"a": 1, "b": [1, "é"]}) == views.digest_of({"b": [1, "é"], "a": 1})
    assert views.digest_of([1]) != views.digest_of([2])
    assert len(views.digest_of({"\udcff": 1})) == 64


def test_what_planning_imports_is_light() -> None:
    script = """
import sys
import sdbuild.data.views, sdbuild.data.items, sdbuild.data.pixelcache, sdbuild.data.buckets, sdbuild.data.placing
heavy = {"torch", "numpy", "PIL", "diffusers", "dvc"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_captions_of_an_older_rule_are_looked_at_again(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    assert not read_otherwise(path), "not there"
    for text, wanted in (
        *(("a cat", False), ("猫 👩‍🚀 می‌خواهم", False), ("C:\\cats", False), ("a\nb", False)),
        *(("saber \\(fate\\)", True), ("red\u200bcat", True), ("s\u00adks", True), ("\u202ea", True)),
    ):
        path.write_text(json.dumps({"text": text}, ensure_ascii=False))
        assert read_otherwise(path) is wanted, text
        path.write_text(json.dumps({"text": clean(text)}, ensure_ascii=False))
        assert not read_otherwise(path)
