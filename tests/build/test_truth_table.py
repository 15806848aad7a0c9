"""The truth table of the design: what the user does, and which steps run on how many items."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import Work
from tests.tiny import make_pictures

CATS = "datasets/cats"


def ran(work: Work) -> dict[str, int]:
    """Build; steps of the recipe `cat` that ran, without the recipe's name."""
    return {name.removeprefix("cat:"): items for name, items in work.doit().ran.items()}


def repaint(path: Path, colour: tuple[int, int, int] = (1, 2, 3)) -> None:
    picture = Image.open(path).convert("RGB")
    picture.paste(colour, (0, 0, 16, 16))
    picture.save(path)


def add_picture(work: Work, caption: str = "a green hat") -> Path:
    [path] = make_pictures(work.root / "new", 1, seed=99, size=32)
    path.with_suffix(".txt").write_text(caption)
    target = work.root / CATS / "9999.png"
    path.rename(target)
    path.with_suffix(".txt").rename(target.with_suffix(".txt"))
    (work.root / "new").rmdir()
    return target


def shared(work: Work, folder: Path) -> Work:
    """A teammate's clone of a project that was pushed to a remote; nothing is pulled yet."""
    work.dvc("remote", "add", "--default", "store", str(folder / "store"))
    work.dvc("push")
    work.git("add", ".")
    work.git("commit", "--quiet", "-m", "Remote")
    clone = Work(folder / "clone")
    work.git("clone", "--quiet", str(work.root), str(clone.root))
    shutil.copytree(work.root / "base", clone.root / "base")  # no part of the repository
    return clone


def test_first_build_runs_everything(built: Work) -> None:
    plan = built.plan()
    assert [name.removeprefix("cat:") for name in plan] == ["images", "captions", "latents", "text", "train", "samples"]
    assert all(step["state"] == "fresh" and step["action"] == "none" for step in plan.values())


@pytest.mark.row("nothing; touch files; reformat or comment a recipe; move the project folder")
@pytest.mark.row("nothing; touch files; comment a recipe; move the project")
def test_nothing(built: Work) -> None:
    result = built.doit()
    assert result.ran == {}
    assert "everything is up to date" in result.out


@pytest.mark.row("nothing; touch files; reformat or comment a recipe; move the project folder")
def test_touched_files(built: Work) -> None:
    for path in built.root.rglob("*.*"):
        if ".git" not in path.parts and ".dvc" not in path.parts:
            os.utime(path)
    assert ran(built) == {}


@pytest.mark.row("nothing; touch files; reformat or comment a recipe; move the project folder")
def test_reformatted_and_commented_recipe(built: Work) -> None:
    path = built.root / "recipes/cat.yaml"
    path.write_text("# a comment\n\n" + path.read_text().replace("rank: 2", "rank:   2   # small"))
    assert ran(built) == {}


@pytest.mark.row("nothing; touch files; reformat or comment a recipe; move the project folder")
def test_moved_project(built: Work, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    built.root.rename(moved)
    assert ran(Work(moved)) == {}


@pytest.mark.row("rename a picture with its caption; save it again without loss")
@pytest.mark.row("rename a picture; save it again without loss")
def test_renamed_picture(built: Work) -> None:
    cats = built.root / CATS
    (cats / "0001.png").rename(cats / "renamed.png")
    (cats / "0001.txt").rename(cats / "renamed.txt")
    assert [name for name, step in built.plan().items() if step["action"] == "run"] == ["cat:images"]
    assert set(ran(built)) == {"images"}
    assert ran(built) == {}
    assert "up to date" in built.dvc("status").out


@pytest.mark.row("rename a picture with its caption; save it again without loss")
@pytest.mark.row("rename a picture; save it again without loss")
def test_picture_saved_again_without_loss(built: Work) -> None:
    path = built.root / CATS / "0001.png"
    Image.open(path).save(path, compress_level=1)
    assert built.plan()["cat:train"]["perhaps"]
    assert ran(built) == {"images": 1}
    assert ran(built) == {}


@pytest.mark.row("change the pixels of one picture")
def test_changed_pixels(built: Work) -> None:
    repaint(built.root / CATS / "0001.png")
    plan = built.plan()
    assert plan["cat:images"]["items"] == {"total": 4, "todo": 1}
    assert "changed" in plan["cat:images"]["reasons"][0]
    found = ran(built)
    assert found == {"images": 1, "captions": 1, "latents": 1, "train": 4, "samples": found["samples"]}


@pytest.mark.row("add one picture")
def test_added_picture(built: Work) -> None:
    add_picture(built)
    found = ran(built)
    assert {name: found[name] for name in ("images", "captions", "latents", "text")} == {
        "images": 1,
        "captions": 1,
        "latents": 1,
        "text": 1,
    }
    assert {"train", "samples"} < set(found)


@pytest.mark.row("delete one picture")
def test_deleted_picture(built: Work) -> None:
    (built.root / CATS / "0002.png").unlink()
    (built.root / CATS / "0002.txt").unlink()
    found = ran(built)
    assert found["images"] == 0
    assert {found.get(name, 0) for name in ("captions", "latents", "text")} == {0}
    assert {"train", "samples"} < set(found)


@pytest.mark.row("edit one caption")
def test_edited_caption(built: Work) -> None:
    (built.root / CATS / "0000.txt").write_text("a blue dog")
    plan = built.plan()
    assert plan["cat:images"]["action"] == "none"
    assert plan["cat:captions"]["items"] == {"total": 4, "todo": 1}
    assert plan["cat:latents"]["action"] == "none"
    found = ran(built)
    assert found == {"captions": 1, "text": 1, "train": 4, "samples": found["samples"]}


@pytest.mark.row("change a setting under `train` or `method`")
@pytest.mark.row("change a training setting")
def test_changed_training_setting(built: Work) -> None:
    built.recipe(train={"learning_rate": 5e-4})
    plan = built.plan()
    assert plan["cat:train"]["reasons"] == ["param train.learning_rate: 0.001 -> 0.0005"]
    assert plan["cat:samples"]["state"] == "pending"
    assert set(ran(built)) == {"train", "samples"}


@pytest.mark.row("change a setting under `sample`")
@pytest.mark.row("change a sampling setting")
def test_changed_sampling_setting(built: Work) -> None:
    built.recipe(sample={"prompts": ["a dog"]})
    assert set(ran(built)) == {"samples"}


@pytest.mark.row("change `images.resolution` or `images.crop`")
@pytest.mark.row("change resolution, crop or VAE")
@pytest.mark.parametrize("change", [{"resolution": 24}, {"crop": "top"}])
def test_changed_resolution_or_crop(built: Work, change: dict[str, object]) -> None:
    if "crop" in change:  # the crop matters where there is something to cut off
        make_pictures(built.root / CATS, 4, size=(32, 40))
        built.recipe(images={"buckets": {"step": 8, "max_aspect": 1}})
        built.doit()
    built.recipe(images={**change, **({"buckets": {"step": 8, "max_aspect": 1}} if "crop" in change else {})})
    found = ran(built)
    assert found["latents"] == 4
    assert set(found) == {"images", "latents", "train", "samples"}


@pytest.mark.row("change the weights of the base's VAE")
@pytest.mark.row("change resolution, crop or VAE")
def test_changed_vae(built: Work) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = built.root / "base/vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    with torch.no_grad():
        next(iter(tensors.values())).mul_(1.5)
    save_file(tensors, path, metadata={"format": "pt"})
    found = ran(built)
    assert found["latents"] == 4
    assert set(found) == {"latents", "train", "samples"}


@pytest.mark.row("add a second recipe on the same data")
def test_second_recipe_on_the_same_data(built: Work) -> None:
    built.recipe("dog", train={"steps": 3})
    found = built.doit().ran
    assert set(found) == {f"dog:{kind}" for kind in ("images", "captions", "latents", "text", "train", "samples")}
    assert found["dog:latents"] == found["dog:text"] == found["dog:images"] == 0


@pytest.mark.row("take any of these back")
@pytest.mark.parametrize("what", ["pixels", "added", "deleted", "caption", "training", "sampling", "resolution"])
def test_taken_back(built: Work, what: str) -> None:
    before = {path: built.read(path) for path in ("build/cat/adapter/cat.safetensors", "build/cat/samples/grid.png")}
    kept = built.root.parent / "kept"
    shutil.copytree(built.root / CATS, kept)
    if what == "pixels":
        repaint(built.root / CATS / "0001.png")
    elif what == "added":
        add_picture(built)
    elif what == "deleted":
        (built.root / CATS / "0002.png").unlink()
        (built.root / CATS / "0002.txt").unlink()
    elif what == "caption":
        (built.root / CATS / "0000.txt").write_text("a blue dog")
    else:
        changes: dict[str, dict[str, Any]] = {
            "training": {"method": {"rank": 3}},
            "sampling": {"sample": {"guidance": 3}},
            "resolution": {"images": {"resolution": 24}},
        }
        built.recipe("cat", **changes[what])
    assert ran(built) != {}
    shutil.rmtree(built.root / CATS)
    kept.rename(built.root / CATS)
    built.recipe()
    result = built.doit()
    assert result.ran == {}
    assert {path: built.read(path) for path in before} == before
    assert "up to date" in built.dvc("status").out


@pytest.mark.row("clone the project, `dvc pull`, `doit`")
@pytest.mark.row("clone, `dvc pull`")
def test_clone_after_pull(built: Work, tmp_path: Path) -> None:
    clone = shared(built, tmp_path)
    clone.dvc("pull")
    assert clone.doit().ran == {}
    assert clone.adapter() == built.adapter()


def test_clone_with_a_remote_fetches_what_is_wanted(built: Work, tmp_path: Path) -> None:
    clone = shared(built, tmp_path)
    assert clone.doit().ran == {}
    assert clone.adapter() == built.adapter()
    assert not (clone.root / "build/cat/latents").exists(), "an intermediate out that nothing needed was fetched"
    clone.recipe(sample={"prompts": ["a dog"]})
    assert set(clone.doit().ran) == {"cat:samples"}
    clone.recipe(train={"learning_rate": 5e-4})
    assert set(clone.doit().ran) == {"cat:train", "cat:samples"}


@pytest.mark.row("delete `build/` or parts of it")
@pytest.mark.row("delete or damage `build/`")
def test_deleted_build_folder(built: Work) -> None:
    before = sorted(path.relative_to(built.root) for path in (built.root / "build").rglob("*") if path.is_file())
    adapter = built.adapter()
    shutil.rmtree(built.root / "build")
    assert ran(built) == {}
    assert built.adapter() == adapter
    after = sorted(path.relative_to(built.root) for path in (built.root / "build").rglob("*") if path.is_file())
    assert after == before


@pytest.mark.row("cut an out short or edit it")
@pytest.mark.row("delete or damage `build/`")
@pytest.mark.parametrize(
    "path",
    [
        "build/cat/images.jsonl",
        "build/cat/captions.jsonl",
        "build/cat/adapter/cat.safetensors",
        "build/cat/metrics.json",
        "build/cat/samples/grid.png",
    ],
)
def test_damaged_out(built: Work, path: str) -> None:
    good = built.read(path)
    (built.root / path).write_bytes(good[: len(good) // 2])
    assert ran(built) == {}
    assert built.read(path) == good


@pytest.mark.row("cut an out short or edit it")
@pytest.mark.row("delete or damage `build/`")
def test_damaged_shard(built: Work) -> None:
    shard = next((built.root / "build/cat/latents").iterdir())
    good = shard.read_bytes()
    shard.write_bytes(good + b"x")
    assert ran(built) == {}
    assert shard.read_bytes() == good


@pytest.mark.row("delete `.sdbuild/`")
def test_local_state_may_be_deleted(built: Work) -> None:
    shutil.rmtree(built.root / ".sdbuild")
    assert ran(built) == {}
