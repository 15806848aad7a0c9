"""The captions step: what is written, counted and said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdbuild.data.records import read_captions, read_images, write_images
from sdbuild.errors import DataError
from sdbuild.steps import captions
from sdbuild.steps.contract import Inputs, Items
from tests.data.files import write
from tests.data.test_captions import FOLDER, image
from tests.steps.test_images import Build


class Captions(Build):
    """Runs the step into a new folder and keeps the result as the last good one."""

    def step(self, **changes: Any) -> Items:
        dataset = {"path": FOLDER, "caption": {"from": "sidecar"}, "trigger": "", **changes}
        out = self.project / "out"
        out.mkdir(exist_ok=True)
        inputs = Inputs(project=self.project, images=self.project / "images.jsonl")
        items = captions.run({"datasets": [dataset]}, inputs, out, self)
        self.previous.mkdir(parents=True, exist_ok=True)
        (out / "captions.jsonl").rename(self.previous / "captions.jsonl")
        return items

    @property
    def texts(self) -> dict[str, str]:
        return {row.digest: row.text for row in read_captions(self.previous / "captions.jsonl")}


@pytest.fixture
def build(tmp_path: Path) -> Captions:
    for name in ("a", "b", "c"):
        write(tmp_path / FOLDER / f"{name}.txt", f"a {name}")
    write_images(tmp_path / "images.jsonl", [image(f"{name}.png") for name in ("a", "b", "c")])
    return Captions(tmp_path)


def test_only_changed_captions_count(build: Captions) -> None:
    assert build.step() == Items(total=3, computed=3)
    assert build.step() == Items(total=3, computed=0)
    write(build.project / FOLDER / "b.txt", "another b")
    assert build.step() == Items(total=3, computed=1)
    assert build.texts == {"a.png": "a a", "b.png": "another b", "c.png": "a c"}
    assert build.step(trigger="sks").computed == 3
    assert build.texts["c.png"] == "sks a c"
    assert build.shown[-1] == (3, 3)


def test_a_picture_that_is_gone_costs_nothing(build: Captions) -> None:
    build.step()
    write_images(build.project / "images.jsonl", read_images(build.project / "images.jsonl")[1:])
    assert build.step() == Items(total=2, computed=0)


def test_problems_are_listed_together(build: Captions) -> None:
    write(build.project / FOLDER / "a.txt", b"")
    write(build.project / FOLDER / "c.txt", b"\xe9")
    with pytest.raises(DataError, match=r"a\.txt: this caption is empty.*\n.*c\.txt:1: not UTF-8"):
        build.step()


def test_a_damaged_last_result_is_made_anew(build: Captions) -> None:
    build.step()
    (build.previous / "captions.jsonl").write_text("oops\n")
    assert build.step().computed == 3


def test_warnings_are_passed_on(build: Captions) -> None:
    write_images(build.project / "images.jsonl", [image("a.png", "b.png")])
    build.step()
    assert "different captions" in build.warnings[0]


def test_a_changed_picture_under_a_hand_written_caption_is_asked_about(build: Captions) -> None:
    build.step()
    rows = read_images(build.project / "images.jsonl")
    write_images(build.project / "images.jsonl", [replace(rows[0], digest="repainted"), *rows[1:]])
    for _ in range(2):  # again until it is answered
        build.warnings.clear()
        build.step()
        assert build.texts["repainted"] == "a a"
        (warning,) = (warning for warning in build.warnings if "hand-written" in warning)
        assert warning.startswith(f"the picture under the hand-written caption of {FOLDER}/a.png changed")
        assert f"sdbuild captions edit cat {FOLDER}/a.png" in warning
    write(build.project / FOLDER / "a.txt", "a new a")
    build.warnings.clear()
    build.step()
    assert not any("hand-written" in warning for warning in build.warnings)
    write_images(build.project / "images.jsonl", [replace(row, digest=f"new {row.path}") for row in rows])
    build.step()
    assert any("the pictures under 3 hand-written captions" in warning for warning in build.warnings)
