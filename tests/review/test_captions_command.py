"""`sdbuild captions`: the table, editing, finding and replacing, export and import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdbuild.build.project import Project
from sdbuild.captioners.asking import sections
from sdbuild.data.captions import caption_records
from sdbuild.plan.compile import plan
from sdbuild.recipe.load import load_project
from sdbuild.review.gather import gather
from tests.conftest import Work, environment
from tests.review.conftest import FOLDER, Cats


def test_the_table_says_what_is_worth_a_look(cats: Cats) -> None:
    folder = cats.root / FOLDER
    cats.caption("0001", "sks " + "very " * 40 + "long")
    cats.caption("0002", "a house")
    cats.caption("0003", "A  house ")  # other case: another caption
    (folder / "0000.txt").unlink()
    with Image.open(folder / "0001.png") as picture:
        picture.resize((48, 48)).save(folder / "small.jpg", quality=60)
    cats.caption("small", "a house")
    rows = cats.rows()
    assert cats.kinds() == {
        "0000.png": ["caption"],
        "0001.png": ["long", "alike"],
        "0002.png": ["duplicate"],
        "0003.png": [],
        "small.jpg": ["duplicate", "alike"],
    }
    assert rows["small.jpg"]["findings"][1]["others"] == [f"{FOLDER}/0001.png"]
    assert rows["0002.png"]["captions"] == ["sks a house"]
    assert rows["0001.png"]["tokens"] > 32 > rows["0002.png"]["tokens"] > 3
    assert [each["kind"] for each in rows["0002.png"]["findings"]] == ["duplicate", "trigger"]
    assert rows["0000.png"]["origin"] is None
    table = cats.captions("cat")
    assert "by hand" in table
    assert "no caption: write one into a .txt file of its name beside it" in " ".join(table.split())
    assert "5 pictures, 4 captioned by hand; 1 without a caption; 1 with a caption that is too long" in table
    assert "0003.png" not in cats.captions("cat", "--problems")


def test_captions_are_shown_without_building_and_without_torch(cats: Cats) -> None:
    script = (
        "from sdbuild.cli import main; code = main(['captions', 'cat'])\n"
        "import sys; print(code, sorted({'torch', 'diffusers', 'transformers', 'dvc'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=cats.root, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr
    assert not (cats.root / "build").exists()


@pytest.mark.parametrize(
    "dataset", [{"caption": {"from": "filename"}}, {"caption": {"from": "template", "text": "{trigger} of {stem}"}}]
)
def test_captions_of_other_origins_are_edited_into_sidecars(cats: Cats, dataset: dict[str, Any]) -> None:
    cats.recipe(**dataset)
    (cats.root / FOLDER / "0000.txt").unlink()
    (cats.root / FOLDER / "0000.png").rename(cats.root / FOLDER / "red-cat.png")
    row = cats.rows()["red-cat.png"]
    assert row["origin"] == dataset["caption"]["from"]
    cats.editor("path.write_text(text.replace('red cat', 'a redder cat'))")
    assert "1 caption written" in cats.captions("edit", "cat", "red-cat.png")
    assert (cats.root / FOLDER / "red-cat.txt").read_text() == f"{row['captions'][0].removeprefix('sks ')}\n".replace(
        "red cat", "a redder cat"
    )
    assert cats.rows()["red-cat.png"]["origin"] == "sidecar"


def test_a_mark_that_is_no_heading_is_refused(cats: Cats) -> None:
    before = cats.state()
    cats.editor("path.write_text(text.replace('an apple', '=== two apples'))")
    assert "is no heading as it was; put it back, or write \\===" in cats.captions("edit", "cat", code=2)
    assert cats.state() == before


def test_editing_touches_what_was_changed_and_nothing_else(cats: Cats) -> None:
    cats.caption("0001", "a  rocket\non a pad")  # as a person wrote it
    cats.caption("0003", "=== a \\ house")
    before = cats.state()
    cats.editor(r"path.write_text(text.replace('an apple', '\\=== two\n\\\\ apples').replace('\n', '\r\n'))")
    assert f"{FOLDER}/0002.txt\n1 caption written" in cats.captions("edit", "cat")
    after = cats.state()
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"0002.txt", ".captions-fit.jsonl"}
    assert after["0002.txt"][0] == b"=== two \\ apples\n"
    assert not list((cats.root / ".sdbuild/captions").glob("*.txt"))


def test_an_editor_that_fails_loses_nothing(cats: Cats) -> None:
    before = cats.state()
    cats.editor("path.write_text(text.replace('an apple', 'two apples')); sys.exit(3)")
    said = cats.captions("edit", "cat", code=1)
    assert "ended with 3; nothing was written" in said
    assert cats.state() == before
    kept = said.split("--from ")[1].split("`")[0]
    assert "1 caption written" in cats.captions("edit", "cat", "--from", kept)
    assert (cats.root / FOLDER / "0002.txt").read_text() == "two apples\n"


def test_a_text_that_cannot_be_understood_is_kept_whole(cats: Cats) -> None:
    before = cats.state()
    cats.editor(
        "a, b, c = text.split('\\n=== ')[1:4]\n"
        "path.write_text(text.replace('an apple', 'two apples').replace('a red cat\\n', '')"
        " + f'\\n=== {b}\\n=== 123456789abc datasets/cats/dog.png\\na dog\\n===oops\\n')"
    )
    said = cats.captions("edit", "cat", code=2)
    assert "the caption of datasets/cats/0000.png is empty" in said
    assert "datasets/cats/0001.png is here a second time" in said
    assert "there is no picture datasets/cats/dog.png" in said
    assert "is no heading as it was" in said
    assert cats.state() == before
    kept = Path(said.split("--from ")[1].split("`")[0])
    assert "two apples" in kept.read_text()


def test_nobody_is_written_over(cats: Cats) -> None:
    cats.editor(
        f"pathlib.Path('{FOLDER}/0002.txt').write_text('a pear'); pathlib.Path('{FOLDER}/0003.txt').unlink()\n"
        "path.write_text(text.replace('an apple', 'two apples').replace('house', 'tower').replace('red', 'blue'))"
    )
    said = cats.captions("edit", "cat", code=2)
    assert "1 caption written" in said
    assert "0002.png: somebody changed this caption meanwhile (it says 'a pear' now)" in said
    assert "0003.png: somebody changed this caption meanwhile (its caption file is gone)" in said
    assert "your text is kept" in said
    assert cats.state()["0002.txt"][0] == b"a pear"
    assert "0003.txt" not in cats.state()
    assert cats.state()["0000.txt"][0] == b"a blue cat\n"


def test_pictures_that_share_a_stem_do_not_share_a_new_caption(cats: Cats) -> None:
    cats.recipe(caption={"from": "filename"})
    Image.new("RGB", (64, 64), (1, 2, 3)).save(cats.root / FOLDER / "dog.png")
    Image.new("RGB", (64, 64), (200, 2, 3)).save(cats.root / FOLDER / "dog.webp")
    cats.editor("path.write_text(text.replace('dog\\n', 'a black dog\\n'))")
    cats.captions("edit", "cat", "dog.png")
    assert cats.state()["dog.png.txt"][0] == b"a black dog\n"
    cats.caption("dog", "dogs")
    (cats.root / FOLDER / "dog.png.txt").unlink()
    said = cats.captions("replace", "cat", "dogs", "a dog", "--write", code=2)
    assert "dog.txt is the caption of dog.webp too" in said
    assert cats.state()["dog.txt"][0] == b"dogs"


def test_a_changed_picture_is_asked_about_until_it_is_confirmed(cats: Cats) -> None:
    cats.editor("path.write_text(text.replace('an apple', 'two apples'))")
    cats.captions("edit", "cat", "0002.png")
    cats.repaint("0002.png")
    assert cats.kinds()["0002.png"] == ["changed"]
    assert cats.rows()["0002.png"]["captions"] == ["sks two apples"]
    assert "0002.png: the picture changed after this caption was written" in _shown_to_editor(cats, "--changed")
    assert "1 picture confirmed" in cats.captions("confirm", "cat", "--changed")
    assert cats.kinds()["0002.png"] == []
    assert "no hand-written caption" not in cats.captions("confirm", "cat", f"{FOLDER}/0001.png")
    cats.repaint("0001.png")
    assert cats.kinds()["0001.png"][0] == "changed"
    cats.captions("replace", "cat", "rocket", "green area", "--write")  # a new text was written for what is there
    assert "changed" not in cats.kinds()["0001.png"]


def _shown_to_editor(cats: Cats, *options: str) -> str:
    cats.editor("pathlib.Path('seen').write_text(text)")
    cats.captions("edit", "cat", *options)
    return (cats.root / "seen").read_text()


def test_replacing_is_told_before_it_is_done(cats: Cats) -> None:
    before = cats.state()
    said = cats.captions("replace", "cat", "^an? (\\w+)", "one \\1", "--regex")
    assert "  - an apple\n  + one apple" in said
    assert "4 captions would change; --write does it" in said
    assert cats.state() == before
    assert "4 captions written" in cats.captions("replace", "cat", "^an? (\\w+)", "one \\1", "--regex", "--write")
    assert cats.state()["0001.txt"][0] == b"one rocket on a pad\n"
    assert "2 of 4 pictures" in cats.captions("find", "cat", "ONE R", "--ignore-case")
    assert "0 captions would change" in cats.captions("replace", "cat", "one .", "x")  # plain text, not a pattern
    assert "is no regular expression (missing )" in cats.captions("find", "cat", "(", "--regex", code=3)
    assert "cannot be put in" in cats.captions("replace", "cat", "one", "\\2", "--regex", code=3)
    said = cats.captions("replace", "cat", "one apple", "", "--write", code=2)
    assert "an empty caption" in said
    assert cats.state()["0002.txt"][0] == b"one apple\n"


@pytest.mark.parametrize("target", ["out.jsonl", "out.csv", "out"])
def test_export_and_import_are_a_round_trip(cats: Cats, target: str) -> None:
    cats.recipe(lines=True)
    cats.caption("0001", 'a rocket, "fast"\n=1+1; ünïcode 🚀\n')
    assert f"{target}: 4 captions" in cats.captions("export", "cat", target)
    before = cats.state()
    assert "4 captions said the same already" in cats.captions("import", "cat", target)
    cats.caption("0001", "something else")
    (cats.root / FOLDER / "0002.txt").unlink()
    said = cats.captions("import", "cat", target)
    assert "1 caption written" in said
    assert "1 caption written by hand were left" in said.replace("captions", "caption")
    assert cats.state()["0001.txt"][0] == b"something else"
    said = cats.captions("import", "cat", target, "--replace", "--dry-run")
    assert "  - something else\n" in said
    assert "1 caption would be written" in said
    cats.captions("import", "cat", target, "--replace")
    captions = {name: content for name, (content, _) in cats.state().items() if name.endswith(".txt")}
    assert captions == {name: content for name, (content, _) in before.items() if name.endswith(".txt")}
    cats.caption("0001", "new")
    assert "is there already; choose another name" in cats.captions("export", "cat", target, code=3)
    cats.captions("export", "cat", target, "--replace", "--trigger")
    assert "sks new" in "".join(path.read_text() for path in cats.root.rglob("out*/*1.txt")) or target != "out"


def test_what_cannot_be_imported_is_listed_and_nothing_is_written(cats: Cats) -> None:
    before = cats.state()
    cats.write(
        "in.jsonl",
        '{"file_name": "0000.png", "text": "x"}\noops\n{"file_name": "dog.png", "text": "x"}\n'
        '{"file_name": "0001.png"}\n'
        '{"file_name": "0000.png", "text": "y"}\n{"file_name": "../../etc/passwd", "text": "y"}\n',
    )
    said = cats.captions("import", "cat", "in.jsonl", "--replace", code=2)
    assert "in.jsonl:2: not an object with file_name and text" in said
    assert "in.jsonl:3: dog.png is no picture of this recipe" in said
    assert "in.jsonl:4: file_name or text is missing" in said
    assert "a second caption for datasets/cats/0000.png" in said
    assert "in.jsonl:6: ../../etc/passwd is no picture" in said
    assert cats.state() == before


def test_tables_that_are_not_quoted_lose_nothing(cats: Cats) -> None:
    before = cats.state()
    cats.write("in.csv", "file_name,text\n0000.png,a cat, red\n0001.png,a rocket\n")
    assert "in.csv:2: more values than columns; put quotation marks" in cats.captions("import", "cat", "in.csv", code=2)
    cats.write("in.csv", 'file_name,text\n0000.png,"a cat\n' + "0001.png,a rocket\n" * 9000)
    said = cats.captions("import", "cat", "in.csv", code=2)
    assert "in.csv:2: cannot be read on (field larger than field limit (131072)); is a quotation mark missing?" in said
    cats.write("in.csv", "file_name;text\n0000.png;a cat\n")
    assert "in.csv:2: file_name or text is missing" in cats.captions("import", "cat", "in.csv", code=2)
    assert cats.state() == before


def test_tags_are_counted(cats: Cats) -> None:
    for name, tags in (
        ("0000", "cat, red, sitting"),
        ("0001", "Cats, red"),
        ("0002", "red , red"),
        ("0003", "blue sky"),
    ):
        cats.caption(name, tags)
    table = [line.split() for line in cats.captions("tags", "cat").splitlines()]
    assert ["red", "3", "75%"] in table
    assert ["Cats", "1", "25%", "cat"] in table
    assert '"tag": "blue sky"' in cats.captions("tags", "cat", "--json")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("dog",), "no recipe dog"),
        (("show", "edit"), "no recipe edit"),
        (("exprot", "cat"), "no command exprot (did you mean export?)"),
        (("cat", "0001.png"), "no command cat; --help shows all"),
        (("edit", "cat", "dog.png"), "dog.png is no picture of this recipe"),
        (("confirm", "cat"), "say which pictures"),
        (("page", "cat", "--port", "99999"), "a port is a number"),
        (("find", "cat", ""), "an empty text is everywhere"),
    ],
)
def test_wrong_use_is_explained(cats: Cats, arguments: tuple[str, ...], said: str) -> None:
    assert said in cats.captions(*arguments, code=3)


def test_captions_that_cannot_be_read_are_left_to_people(cats: Cats) -> None:
    (cats.root / FOLDER / "0002.txt").write_bytes(b"caf\xe9")
    (cats.root / FOLDER / "0003.png").write_bytes(b"no picture")
    before = cats.state()
    table = " ".join(cats.captions("cat").split())
    assert "0002.txt not UTF-8" in table
    assert "warning: datasets/cats/0003.png: is text, not a picture" in table
    assert "not UTF-8" in cats.captions("edit", "cat", "0002.png", code=3)
    cats.write("in.csv", "file_name,text\n0002.png,a café\n")
    assert "it was left as it is" in cats.captions("import", "cat", "in.csv", code=2)
    assert cats.state() == before


def test_every_wrong_line_of_a_file_of_captions_is_named(cats: Cats) -> None:
    cats.recipe(caption={"from": "jsonl"})
    (cats.root / FOLDER / "0002.txt").unlink()
    cats.write(f"{FOLDER}/metadata.jsonl", 'oops\n{"file_name": "0002.png", "text": "sks apple"}\n[]\n')
    said = cats.captions("cat")
    assert f"warning: {FOLDER}/metadata.jsonl:1: not JSON" in said
    assert f"warning: {FOLDER}/metadata.jsonl:3: not a JSON object" in said
    row = cats.rows()["0002.png"]
    assert (row["captions"], row["origin"]) == (["sks apple"], "jsonl")
    assert row["findings"] == [], "a trigger of its own"


def test_what_models_said_is_shown_and_edited(cats: Cats) -> None:
    cats.recipe(
        caption={"from": "openai", "model": "local", "base_url": "http://127.0.0.1:9/v1", "languages": ["en", "de"]}
    )
    for index in (0, 1, 2):
        (cats.root / FOLDER / f"000{index}.txt").unlink()
    said = {"0000.png": ("a cat", "eine Katze"), "0001.png": ("a rocket", "")}
    (recipe,) = load_project(cats.root)
    spec = next(step.spec for step in plan(recipe) if step.kind == "captions")
    material = gather(Project(cats.root), "cat")
    assert {entry.trouble for entry in material.entries} == {"", "not captioned yet: the next build asks openai"}
    images = [entry.image for entry in material.entries]
    (section,) = sections(caption_records(images, spec, cats.root).open, spec, {}, None)
    rows = [
        {"key": question.key, "text": text}
        for each in section.open
        for question, text in zip(
            (section.question(each, 0, language, None) for language in section.languages),
            said.get(Path(each.image.path).name, ()),
            strict=False,
        )
        if text
    ]
    cats.write(".sdbuild/items/captions/said.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    shown = cats.rows()
    assert shown["0000.png"]["captions"] == ["sks a cat", "sks eine Katze"]
    assert {name: row["origin"] for name, row in shown.items()} == {
        "0000.png": "openai",
        "0001.png": None,
        "0002.png": None,
        "0003.png": "sidecar",
    }
    before = cats.state()
    cats.editor("path.write_text(text)")
    assert "nothing was changed" in cats.captions("edit", "cat")
    said_of_it = cats.captions("replace", "cat", "cat", "dog", "--write", code=2)
    assert "a sidecar holds one caption: keep one of these, or set lines: true" in said_of_it
    assert cats.state() == before
    cats.editor("path.write_text(text.replace('a cat\\neine Katze', 'a tomcat'))")
    cats.captions("edit", "cat", "0000.png")
    assert cats.rows()["0000.png"]["captions"] == ["sks a tomcat"]


def test_a_build_asks_about_changed_pictures_and_goes_on(built: Work) -> None:
    cat = built.root / "datasets/cats/0001.png"
    Image.new("RGB", (32, 32), (10, 200, 30)).save(cat)
    said = built.doit("cat:captions").out
    assert "the picture under the hand-written caption of datasets/cats/0001.png changed; your text is used" in said
    assert "`sdbuild captions confirm cat datasets/cats/0001.png`" in said
    assert "changed under a hand-written caption" in built.sdbuild("captions", "cat").out
    built.sdbuild("captions", "confirm", "cat", "datasets/cats/0001.png")
    assert "changed under" not in built.sdbuild("captions", "cat").out
    assert built.plan()["cat:captions"]["state"] == "fresh", "what is remembered is no caption"
