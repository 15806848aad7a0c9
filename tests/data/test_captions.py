"""Captions from every place, and a clear word for each that is wrong."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from sdbuild.data.captions import (
    CAPTIONERS,
    Captions,
    caption_records,
    template_problem,
    with_trigger,
)
from sdbuild.data.filenames import caption_from_name, is_given
from sdbuild.data.records import ImageRecord
from tests.data.files import write

FOLDER = "datasets/x"


def image(name: str, *duplicates: str, dataset: int = 0) -> ImageRecord:
    return ImageRecord(
        path=f"{FOLDER}/{name}",
        dataset=dataset,
        digest=name,
        width=8,
        height=8,
        bucket=(8, 8),
        resize=(8, 8),
        crop=(0, 0),
        split="train",
        duplicates=tuple(f"{FOLDER}/{duplicate}" for duplicate in duplicates),
    )


def run(project: Path, *images: ImageRecord | str, trigger: str = "", files: Any = None, **caption: Any) -> Captions:
    (project / FOLDER).mkdir(parents=True, exist_ok=True)
    for name, content in (files or {}).items():
        write(project / FOLDER / name, content)
    rows = [image(row) if isinstance(row, str) else row for row in images]
    caption.setdefault("from", "sidecar")
    return caption_records(rows, {"datasets": [{"path": FOLDER, "caption": caption, "trigger": trigger}]}, project)


def texts(captions: Captions) -> dict[str, str]:
    assert captions.problems == ()
    return {row.digest: row.text for row in captions.records}


def problem(captions: Captions) -> str:
    (only,) = captions.problems
    return str(only)


def test_sidecars(tmp_path: Path) -> None:
    files = {"a.txt": "a cat\n", "b.caption": " a dog,\n sitting\r\n", "sub/c.txt": b"\xef\xbb\xbfa fox", "d.TXT": "d"}
    captions = run(tmp_path, "a.png", "b.jpg", "sub/c.png", "d.png", files=files)
    assert texts(captions) == {"a.png": "a cat", "b.jpg": "a dog, sitting", "sub/c.png": "a fox", "d.png": "d"}
    assert {row.origin for row in captions.records} == {"sidecar"}


@pytest.mark.parametrize("source", sorted(CAPTIONERS))
def test_a_sidecar_always_wins(tmp_path: Path, source: str) -> None:
    files = {"a.txt": "by hand", "captions.jsonl": '{"file": "a.png", "caption": "other"}'}
    captions = run(tmp_path, "a.png", files=files, **{"from": source, "template": "other"})
    assert texts(captions) == {"a.png": "by hand"}
    assert captions.records[0].origin == "sidecar"


def test_a_missing_caption(tmp_path: Path) -> None:
    message = problem(run(tmp_path, "a.b.png"))
    assert message.startswith(
        f"{FOLDER}/a.b.png: no caption: write one into a .txt file of its name beside it, or set caption"
    )


def test_all_problems_at_once(tmp_path: Path) -> None:
    captions = run(tmp_path, "a.png", "b.png", "c.png", files={"b.txt": "", "c.txt": "fine"})
    assert [str(each).split(": ")[0] for each in captions.problems] == [f"{FOLDER}/a.png", f"{FOLDER}/b.txt"]
    assert [row.text for row in captions.records] == ["fine"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.txt: this caption is empty; write what the picture shows"),
        (b" \n\xef\xbb\xbf\n", r"this caption is empty"),
        (b"\xef\xbb\xbf", r"this caption is empty"),
        ("ok\ncaf\u00e9".encode("latin-1"), r"a\.txt:2: not UTF-8 \(byte 0xe9.*save it as UTF-8"),
        ("a cat".encode("utf-16"), r"a\.txt: is UTF-16; save it as UTF-8"),
    ],
)
def test_bad_sidecars(tmp_path: Path, content: bytes, message: str) -> None:
    assert re.search(message, problem(run(tmp_path, "a.png", files={"a.txt": content})))


def test_files_too_large_for_captions_are_not_read(tmp_path: Path) -> None:
    for name, options in (("a.txt", {}), ("captions.jsonl", {"from": "jsonl"})):
        path = write(tmp_path / FOLDER / name, b"")
        os.truncate(path, 1 << 40)
        said = problem(run(tmp_path, "a.png", **options))
        assert f"{name}: has 1,048,576 MiB; files of up to " in said
        path.unlink()


def test_a_broken_link_as_sidecar(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / "a.txt").symlink_to("nowhere")
    assert problem(run(tmp_path, "a.png")).endswith("a.txt: links to a file that is not there; mend or delete it")


def test_two_sidecars_must_agree(tmp_path: Path) -> None:
    captions = run(tmp_path, "a.png", files={"a.txt": "one", "a.caption": "two"})
    assert problem(captions) == f"{FOLDER}/a.txt: says another caption than a.caption beside it; keep one of the two"
    assert texts(run(tmp_path, "a.png", files={"a.caption": "one\n"})) == {"a.png": "one"}


def test_duplicates_share_a_caption(tmp_path: Path) -> None:
    captions = run(tmp_path, image("a.png", "b.png", "c.png"), files={"b.txt": "b"})
    assert texts(captions) == {"a.png": "b"}
    captions = run(tmp_path, image("a.png", "b.png", "c.png"), files={"c.txt": "c"})
    assert texts(captions) == {"a.png": "b"}
    assert captions.warnings == (
        f"1 picture occurs more than once with different captions; the first path's is used ({FOLDER}/a.png)",
        f"2 caption files belong to no picture, so nothing reads them ({FOLDER}/b.txt, …)",
    )


def test_names_across_unicode_forms(tmp_path: Path) -> None:
    name = unicodedata.normalize("NFD", "é 猫 кот.png")
    assert texts(run(tmp_path, name, files={"é 猫 кот.txt": "found"})) == {name: "found"}
    captions = run(tmp_path, unicodedata.normalize("NFD", "café.png"), **{"from": "filename"})
    assert captions.records[0].text == unicodedata.normalize("NFC", "café")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cat", "cat"),
        ("cat_face-02", "cat face"),
        ("red_fox (1)", "red fox"),
        ("red fox 1 2 [3]", "red fox"),
        ("3d_render", "3d render"),
        ("boeing747", "boeing747"),
        ("小猫_003", "小猫"),
        ("a--b__c", "a b c"),
        ("0001", ""),
        ("_-_", ""),
    ],
)
def test_words_of_a_name(name: str, words: str) -> None:
    assert caption_from_name(name) == words


def test_a_name_without_words(tmp_path: Path) -> None:
    message = problem(run(tmp_path, "0001.png", **{"from": "filename"}))
    assert message == (
        f"{FOLDER}/0001.png: its name has no words to make a caption of: rename it, or write a caption into 0001.txt"
    )
    assert texts(run(tmp_path, image("1.png", "a cat.png"), **{"from": "filename"})) == {"1.png": "a cat"}


def test_templates(tmp_path: Path) -> None:
    options = {"from": "template", "template": "{trigger}, a {name}  in {folder} {{x}}"}
    captions = run(tmp_path, "big cats/a_cat-1.png", "b.png", trigger="sks", **options)
    assert texts(captions) == {"big cats/a_cat-1.png": "sks, a a cat in big cats {x}", "b.png": "sks, a b in x {x}"}
    assert {row.origin for row in captions.records} == {"template"}
    assert texts(run(tmp_path, "b.png", **{"from": "template", "text": "a {stem}"})) == {"b.png": "a b"}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{names}", "did you mean {name}?"),
        ("{name.__class__}", "unknown field"),
        ("{name[0]}", "unknown field"),
        ("{name!r}", "unknown field"),
        ("{name:>9999999}", "unknown field"),
        ("{}", "unknown field"),
        ("{name", "not a template"),
        ("a } b", "not a template"),
    ],
)
def test_wrong_templates(tmp_path: Path, template: str, message: str) -> None:
    assert message in (template_problem(template) or "")
    captions = run(tmp_path, "a.png", "b.png", **{"from": "template", "template": template})
    assert message in problem(captions)


def test_an_empty_template(tmp_path: Path) -> None:
    message = problem(run(tmp_path, "1.png", **{"from": "template", "template": "{name}"}))
    assert "the template gives an empty caption" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", "sks a cat"),
        ("a photo of SKS cat", "a photo of SKS cat"),
        ("sks, a cat", "sks, a cat"),
        ("sksy", "sks sksy"),
    ],
)
def test_triggers(text: str, expected: str) -> None:
    assert with_trigger(text, "sks") == expected
    assert with_trigger(text, "") == text


def test_triggers_of_special_characters() -> None:
    assert with_trigger("a cat", "<s1> (x)") == "<s1> (x) a cat"
    assert with_trigger("<s1> (x) a cat", "<s1> (x)") == "<s1> (x) a cat"


def jsonl(*rows: Any) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


def test_json_lines(tmp_path: Path) -> None:
    rows = jsonl(
        {"file": "a.png", "caption": "a\ncat", "extra": 1},
        "",
        {"file_name": "./sub/b.png", "text": "a \u2028 dog"},
        {"file": unicodedata.normalize("NFD", "é.png"), "caption": "c"},
        {"file": "elsewhere.png", "caption": "not in this set"},
        {"file": "a.png", "caption": "a cat"},
    )
    captions = run(tmp_path, "a.png", "sub/b.png", "é.png", files={"captions.jsonl": rows}, **{"from": "jsonl"})
    assert texts(captions) == {"a.png": "a cat", "sub/b.png": "a dog", "é.png": "c"}
    assert {row.origin for row in captions.records} == {"jsonl"}


def test_json_lines_with_other_names(tmp_path: Path) -> None:
    files = {"meta.jsonl": jsonl({"image": "a.png", "long": "a cat"})}
    options = {"from": "jsonl", "file": "meta.jsonl", "name_key": "image", "text_key": "long"}
    assert texts(run(tmp_path, "a.png", files=files, **options)) == {"a.png": "a cat"}


def test_bad_json_lines(tmp_path: Path) -> None:
    rows = jsonl(
        {"file": "a.png", "caption": "a"},
        "{oops",
        "[1]",
        {"caption": "x"},
        {"file": "b.png", "caption": 1},
        {"file": "b.png", "caption": " "},
        {"file": "b.png", "caption": "\ud800"},
        {"file": "a.png", "caption": "b"},
        "[" * 100_000,
    )
    captions = run(tmp_path, "a.png", files={"captions.jsonl": rows}, **{"from": "jsonl"})
    lines = [each.line for each in captions.problems]
    assert lines == [2, 3, 4, 5, 6, 7, 8, 9]
    assert str(captions.problems[0]).startswith(f"{FOLDER}/captions.jsonl:2: not JSON")
    assert "`file` is missing or not a text; write {" in str(captions.problems[2])
    assert "a second caption for a.png; keep one" in str(captions.problems[6])


def test_json_lines_that_are_not_there(tmp_path: Path) -> None:
    captions = run(tmp_path, "a.png", "b.png", **{"from": "jsonl"})
    assert problem(captions) == f"{FOLDER}/captions.jsonl: there is no such file"
    files = {"captions.jsonl": jsonl({"file": "a.png", "caption": "a"})}
    assert "no caption: add a line with its name to" in problem(
        run(tmp_path, "b.png", files=files, **{"from": "jsonl"})
    )
    outside = run(tmp_path, "a.png", **{"from": "jsonl", "file": "../../secret"})
    assert "must lie inside its dataset's folder" in problem(outside)


def test_lines_of_a_sidecar_are_captions(tmp_path: Path) -> None:
    files = {"a.txt": "a cat\r\n\n sks sitting \na cat", "b.txt": "one"}
    spec = {"path": FOLDER, "caption": {"from": "sidecar"}, "trigger": "sks", "lines": True}
    for name, content in files.items():
        write(tmp_path / FOLDER / name, content)
    first, second = caption_records([image("a.png"), image("b.png")], {"datasets": [spec]}, tmp_path).records
    assert (first.text, first.others) == ("sks a cat", ("sks sitting",))
    assert (second.text, second.others) == ("sks one", ())
    del spec["lines"]
    first, _ = caption_records([image("a.png"), image("b.png")], {"datasets": [spec]}, tmp_path).records
    assert (first.text, first.others) == ("a cat sks sitting a cat", ())
    write(tmp_path / FOLDER / "b.txt", " \n\n")
    (wrong,) = caption_records([image("b.png")], {"datasets": [{**spec, "lines": True}]}, tmp_path).problems
    assert "this caption is empty" in str(wrong)


def test_lists_in_json_lines_are_captions(tmp_path: Path) -> None:
    rows = jsonl({"file": "a.png", "text": ["a  cat", "a tom"]}, {"file": "b.png", "text": ["a dog"]})
    captions = run(tmp_path, "a.png", "b.png", files={"captions.jsonl": rows}, **{"from": "jsonl"})
    assert [(row.text, row.others) for row in captions.records] == [("a cat", ("a tom",)), ("a dog", ())]
    for wrong, message in (([], "missing or not a text"), (["a", 1], "not a text"), (["a", " "], "is empty")):
        rows = jsonl({"file": "a.png", "text": wrong})
        captions = run(tmp_path, "a.png", files={"captions.jsonl": rows}, **{"from": "jsonl"})
        assert message in str(captions.problems[0])
    rows = jsonl({"file": "a.png", "text": "a"}, {"file": "a.png", "text": "b"})
    captions = run(tmp_path, "a.png", files={"captions.jsonl": rows}, **{"from": "jsonl"})
    assert "a second caption for a.png; keep one, or make a list of both" in str(captions.problems[0])


def test_control_characters_go(tmp_path: Path) -> None:
    assert texts(run(tmp_path, "a.png", files={"a.txt": b"a\x00 \x1b[1mcat\x7f"})) == {"a.png": "a [1mcat"}


def test_a_dataset_that_is_gone(tmp_path: Path) -> None:
    spec = {"datasets": [{"path": FOLDER, "caption": {"from": "sidecar"}, "trigger": ""}]}
    captions = caption_records([image("a.png")], spec, tmp_path)
    assert problem(captions) == f"{FOLDER}: this folder cannot be listed (No such file or directory)"


def test_captions_of_every_origin_are_cleaned_alike(tmp_path: Path) -> None:
    odd, wanted = "a\u200b \\(toy\\) c\u00adat", "a (toy) cat"
    line = json.dumps({"file_name": "d.png", "text": odd})
    files = {"a.txt": odd, "c.txt": "\ufeff" + odd, "metadata.jsonl": line}
    assert texts(run(tmp_path, "a.png", "c.png", files=files)) == {"a.png": wanted, "c.png": wanted}
    assert texts(run(tmp_path, "d.png", **{"from": "jsonl", "file": "metadata.jsonl"})) == {"d.png": wanted}
    assert texts(run(tmp_path, "x.png", **{"from": "template", "text": odd})) == {"x.png": wanted}
    assert texts(run(tmp_path, "a\u200b cat.png", **{"from": "filename"})) == {"a\u200b cat.png": "a cat"}
    assert "this caption is empty" in problem(run(tmp_path, "e.png", files={"e.txt": "\u200b\u2800"}))


def test_names_that_cameras_and_programs_give() -> None:
    for name in (
        *("IMG_2041", "DSC_0001", "DSC04512", "_DSC0012", "P1010023", "PXL_20230101_123456789", "20230101_123456"),
        *("Screenshot 2024-01-01 at 10.00.00", "WhatsApp Image 2023-01-01 at 10.00.00", "0001", "deadbeefcafe0123"),
        *("f47ac10b-58cc-4372-a567-0e02b2c3d479", "IMG-20230101-WA0001", "image (3)", "ComfyUI_00012_", "DJI_0042"),
        *("GOPR0123", "photo_5", "a1b2c3d4e5f6"),
    ):
        assert is_given(name), name
    for name in (
        "red_fox-01",
        "cat1",
        "3d render of a cat",
        "猫",
        "кот_1",
        "sks_01",
        "IMG_2041 my cat",
        "ox 2",
        "image of a dog",
    ):
        assert not is_given(name), name


def test_captions_from_names_that_nobody_chose_are_told(tmp_path: Path) -> None:
    found = run(tmp_path, "IMG_1.jpg", "DSC_2.jpg", "cat.jpg", **{"from": "filename"})
    (said,) = found.warnings
    assert said.startswith("2 pictures are captioned by a name that a camera or program gave (")
    assert "'IMG'" in said
    missing = run(tmp_path, "IMG_1.jpg", "red_fox.jpg").problems
    assert "{from: filename}" not in str(missing[0])
    assert "{from: template, text: …}" in str(missing[0])
    assert "{from: filename}" in str(missing[1])
