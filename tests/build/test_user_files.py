"""Files of the user's in places that sdbuild writes to: kept under a name that nothing had, and named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from tests.conftest import Work

OWN_PIPELINE = "stages:\n  mine:\n    cmd: {}\n"


def kept(work: Work) -> dict[str, bytes]:
    found = (path for path in (work.root / "build").rglob("*") if ".kept" in str(path) and path.is_file())
    return {path.relative_to(work.root).as_posix(): path.read_bytes() for path in found}


def test_compiled_files(built: Work) -> None:
    for number, name in enumerate(("dvc.yaml.before-sdbuild", "dvc.yaml.before-sdbuild-2"), 1):
        built.write("dvc.yaml", OWN_PIPELINE.format(number))
        assert f"it is kept as {name}\n" in built.doit().out
        assert built.read(name).decode() == OWN_PIPELINE.format(number)
    assert built.read("dvc.yaml.before-sdbuild").decode() == OWN_PIPELINE.format(1)

    edited = built.read("dvc.yaml") + b"# a note of mine\n"
    built.write("dvc.yaml", edited)
    assert "kept as dvc.yaml.before-sdbuild-3" in built.doit().out
    assert built.read("dvc.yaml.before-sdbuild-3") == edited

    resolved = json.loads(built.read("build/cat/recipe.json"))
    resolved["note"] = "mine"
    built.write("build/cat/recipe.json", json.dumps(resolved))
    out = built.doit().out
    assert "it is kept as build/cat/recipe.json.before-sdbuild\n" in out
    assert json.loads(built.read("build/cat/recipe.json.before-sdbuild"))["note"] == "mine"

    stage = b"  mine:\n    cmd: echo\n    outs:\n    - path: x\n      md5: 0123456789abcdef0123456789abcdef\n"
    built.write("dvc.lock", built.read("dvc.lock") + stage)
    assert "it is kept as dvc.lock.before-sdbuild\n" in built.doit().out
    assert built.read("dvc.lock.before-sdbuild").endswith(stage)
    assert b"mine" not in built.read("dvc.lock")
    assert "kept as" not in built.doit().out


def test_what_git_has_or_sdbuild_wrote_is_no_edit(built: Work) -> None:
    built.recipe(train={"steps": 3})
    assert "kept as" not in built.doit("cat:images").out
    for path in ("dvc.yaml", "build/cat/recipe.json"):  # as a checkout leaves them
        built.git("checkout", "--quiet", "--", path)
    assert "kept as" not in built.doit("cat:images").out
    shutil.rmtree(built.root / ".sdbuild")
    built.recipe(train={"steps": 2})
    assert "kept as" not in built.doit("cat:images").out
    assert not list(built.root.rglob("*before-sdbuild*"))


def test_files_inside_outs(built: Work) -> None:
    adapter = built.adapter()
    captions = built.read("build/cat/captions.jsonl")
    built.write("build/cat/adapter/notes.txt", "mine")
    built.write("build/cat/adapter/deep/er.txt", "mine too")
    built.write("build/cat/captions.jsonl", captions.replace(b"sks", b"a toy"))
    result = built.doit()
    assert result.ran == {}
    assert "build/cat/adapter held files of yours; they are kept as build/cat/adapter.kept\n" in result.out
    assert kept(built) == {
        "build/cat/adapter.kept/notes.txt": b"mine",
        "build/cat/adapter.kept/deep/er.txt": b"mine too",
        "build/cat/captions.jsonl.kept": captions.replace(b"sks", b"a toy"),
    }
    assert built.adapter() == adapter
    assert built.git("status", "--porcelain").out == ""
    assert "up to date" in built.dvc("status").out

    # a step that runs replaces its outs too, and names are never taken twice
    built.write("build/cat/adapter/notes.txt", "second")
    shutil.rmtree(built.root / "build/cat/samples")
    built.write("build/cat/samples/only/mine.txt", "a folder")
    os.symlink("/nowhere", built.root / "build/cat/samples/link")
    shutil.rmtree(built.root / "build/cat/latents")
    built.write("build/cat/latents", "a file in place of a folder")
    built.recipe(train={"steps": 3})
    result = built.doit()
    assert set(result.ran) == {"cat:train", "cat:samples"}
    found = kept(built)
    assert found["build/cat/adapter.kept-2/notes.txt"] == b"second"
    assert found["build/cat/samples.kept/only/mine.txt"] == b"a folder"
    assert found["build/cat/latents.kept"] == b"a file in place of a folder"
    assert os.readlink(built.root / "build/cat/samples.kept/link") == "/nowhere"
    for name in ("adapter.kept-2", "samples.kept", "latents.kept"):
        assert f"kept as build/cat/{name}" in result.out
    assert built.doit().ran == {}

    # damage is no work of the user's
    path = Path(built.root / "build/cat/adapter/cat.safetensors")
    content = path.read_bytes()
    for damaged in (b"", content[:-10], bytes([content[0] ^ 255]) + content[1:]):
        path.write_bytes(damaged)
        assert "held files of yours" not in built.doit().out
        assert path.read_bytes() == content


def test_files_where_folders_have_to_be(built: Work) -> None:
    shutil.rmtree(built.root / "build")
    built.write("build", "mine")
    out = built.doit().out
    assert "kept as build.kept" in out
    assert built.read("build.kept") == b"mine"


def test_clean_leaves_what_is_nowhere_else(built: Work) -> None:
    built.write("build/cat/adapter/notes.txt", "mine")
    for arguments in (("clean", "-n", "cat"), ("clean", "cat")):
        out = built.doit(*arguments).out
        assert "build/cat/adapter is left: DVC's cache does not have build/cat/adapter/notes.txt" in out
        assert "remov" in out
    assert built.read("build/cat/adapter/notes.txt") == b"mine"
    assert not (built.root / "build/cat/samples").exists()
    built.doit()
    adapter = built.adapter()
    shutil.rmtree(built.root / ".dvc/cache")
    assert "removing" not in built.doit("clean", "cat").out
    assert built.adapter() == adapter


def test_init_keeps_what_a_folder_has(tmp_path: Path) -> None:
    work = Work(tmp_path)
    rules = b"secret\r\n\xff\xfe bytes\r\nlast"
    work.write(".gitignore", rules)
    work.write("datasets/emoji-3d/mine.png", b"no picture")
    out = work.sdbuild("init").out
    assert work.read(".gitignore").startswith(rules + b"\r\n")
    assert b"/.sdbuild/\r\n" in work.read(".gitignore")
    assert "datasets/emoji-3d is yours" in out
    assert [path.name for path in (tmp_path / "datasets").rglob("*")] == ["emoji-3d", "mine.png"]
    blocked = Work(tmp_path / "blocked")
    blocked.write("recipes", "a file")
    assert "is in the way" in blocked.sdbuild("init", code=3).err
    assert [path.name for path in blocked.root.iterdir()] == ["recipes"]
