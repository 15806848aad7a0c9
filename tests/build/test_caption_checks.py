"""What `check` says of captions for the base that learns from them, and that builds agree."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdbuild import cli
from sdbuild.families.tokens import token_counter
from tests.tiny import make_pictures

Said = tuple[int, str]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "dodo.py").touch()
    (tmp_path / ".dvc").mkdir()
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    make_pictures(tmp_path / "datasets/cats", 4, size=64)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(project: Path, capfd: pytest.CaptureFixture[str], dataset: Any = None, **sections: Any) -> Said:
    content = {
        "base": {"model": "emoji-64"},
        "datasets": [{"path": "datasets/cats", **(dataset or {})}],
        "images": {"resolution": 64, "buckets": {"step": 8}},
        **sections,
    }
    (project / "recipes/cat.yaml").write_text(yaml.safe_dump(content))
    code = cli.main(["check", "cat"])
    out = " ".join("".join(capfd.readouterr()).split())
    return code, out


def captions(project: Path, *texts: str) -> None:
    for path, text in zip(sorted((project / "datasets/cats").glob("*.png")), texts, strict=True):
        path.with_suffix(".txt").write_text(text)


def words(*tokens: str) -> dict[str, Any]:
    return {"kind": "textual_inversion", "tokens": [{"token": each, "vectors": 3, "start": "cat"} for each in tokens]}


def test_new_words_are_said_by_captions(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    captions(project, "a cat", "a dog", "a <toy>", "a house")
    code, said = check(project, capfd, method=words("<Toy>"))
    assert (code, "no caption has" in said) == (0, False)
    captions(project, "a cat", "a dog", "a toy", "a house")
    code, said = check(project, capfd, method=words("<Toy>"))
    assert code == 2
    assert "method.tokens: no caption has '<Toy>'; add it to a caption, e.g. as a trigger" in said
    assert check(project, capfd, {"trigger": "<toy>"}, method=words("<Toy>"))[0] == 0
    code, said = check(project, capfd, {"trigger": "<toy> <Toy>"}, method=words("<Toy>", "<toy>"))
    assert code == 2
    assert "method.tokens[1].token: '<toy>' is '<Toy>' again, as capitals and small letters read alike" in said
    vocabulary = token_counter(Path(cli.__file__).parent / "bases/emoji-64").tokenizers[0].get_vocab()
    known = max((word for word in vocabulary if word.isalpha()), key=len).title()
    code, said = check(project, capfd, {"trigger": known}, method=words(known))
    assert code == 2
    assert f"method.tokens[0].token: the base's tokenizer knows {known!r}; choose another, e.g. in <>" in said


def test_captions_that_are_too_long_are_told(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    captions(project, "a cat", "a dog", "a " + "very " * 40 + "long caption", "<toy> " * 11)
    code, said = check(project, capfd)
    assert code == 0
    assert "2 captions are longer than the 32 tokens that the text encoder takes; the rest is cut off" in said
    code, said = check(project, capfd, method=words("<Toy>"))
    assert "2 captions are longer than" in said, "33 vectors are too many"
    captions(project, "a cat", "a dog", "a house", "<toy> " * 10)
    assert "longer than" not in check(project, capfd, method=words("<Toy>"))[1]


def test_captions_that_are_missing_are_one_line(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path in (project / "datasets/cats").iterdir():
        path.unlink()
    make_pictures(project / "datasets/cats", 12, size=64)
    for number, path in enumerate(sorted((project / "datasets/cats").glob("*.png"))):
        path.with_suffix(".txt").unlink(missing_ok=True)
        path.rename(path.with_name(f"IMG_{2041 + number}.png"))
    code, said = check(project, capfd)
    assert code == 2
    assert said.count("no caption") == 1
    assert "IMG_2041.png: no caption: write one into a .txt file" in said or "IMG_" in said
    assert "(and 11 more: IMG_" in said
    assert "filename" not in said
    code, said = check(project, capfd, {"caption": {"from": "filename"}})
    assert code == 0
    assert "12 pictures are captioned by a name that a camera or program gave" in said
