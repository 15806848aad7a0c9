"""Where bases are found, and what is said when they are not; no network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

from sdbuild.errors import DataError
from sdbuild.families import load
from sdbuild.families.digest import base_digest, md5_file
from sdbuild.families.sources import bring, commits, find
from sdbuild.plan.model import Base
from sdbuild.recipe import places
from tests.tiny import make_pipeline

COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with nothing in it."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def store(hub: Path, base: Path, commit: str, *refs: str) -> Path:
    """Put a base into the cache as the hub's client does: files are links to blobs."""
    root = hub / "models--owner--tiny"
    snapshot = root / "snapshots" / commit
    for index, file in enumerate(sorted(path for path in base.rglob("*") if path.is_file())):
        blob = root / "blobs" / f"{commit}{index}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link = snapshot / file.relative_to(base)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    for ref in refs:
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / ref).write_text(commit)
    return snapshot


def locate(model: str, revision: str | None, project: Path) -> Path | None:
    return find(Base(model=model, revision=revision), project)


def fetch(model: str, revision: str | None, project: Path) -> Path:
    return bring(Base(model=model, revision=revision), project)


def test_folders_are_found_in_the_project_and_elsewhere(base: Path, project: Path, hub: Path) -> None:
    shutil.copytree(base, project / "bases/mine")
    assert locate("bases/mine", None, project) == project / "bases/mine"
    assert locate("./bases/mine", None, project) == project / "bases/mine"
    assert locate(str(base), None, project) == base
    assert fetch(str(base), None, project) == base


def test_embedded_bases_come_first(
    base: Path, project: Path, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(base, tmp_path / "bases/tiny-64")
    (project / "tiny-64").mkdir()
    monkeypatch.setattr(places, "BASES", tmp_path / "bases")
    assert locate("tiny-64", None, project) == tmp_path / "bases/tiny-64"
    assert locate("./tiny-64", None, project) == project / "tiny-64"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", "there is no such folder or file"),
        ("/nowhere/base", "there is no such folder or file"),
        ("a/b/c", "there is no such folder or file"),
        ("base.safetensors", "there is no such folder or file"),
        ("sd 1.5", "neither an embedded base.*, a folder nor a hub id"),
    ],
)
def test_what_is_no_base_is_refused(project: Path, hub: Path, model: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        locate(model, None, project)


def test_hub_ids_are_found_in_the_local_cache(base: Path, project: Path, hub: Path) -> None:
    assert locate("owner/tiny", None, project) is None
    new, old = store(hub, base, COMMIT, "main"), store(hub, base, OLDER, "v1")
    assert locate("owner/tiny", None, project) == new
    assert locate("owner/tiny", "main", project) == new
    assert locate("owner/tiny", "v1", project) == old
    assert locate("owner/tiny", OLDER, project) == old
    assert locate("owner/tiny", "c" * 40, project) is None
    assert locate("owner/tiny", "v2", project) is None
    assert fetch("owner/tiny", OLDER, project) == old
    assert commits(Base(model="owner/tiny", revision="v1"), project).model == OLDER


@pytest.mark.parametrize("file", ["model_index.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json"])
def test_half_downloads_do_not_count(base: Path, project: Path, hub: Path, file: str) -> None:
    (store(hub, base, COMMIT, "main") / file).unlink()
    assert locate("owner/tiny", None, project) is None


def test_the_cache_is_where_the_client_has_it(tmp_path: Path) -> None:
    code = (
        "from sdbuild.families.hub import hub_cache; from huggingface_hub.constants import HF_HUB_CACHE as own;"
        "assert str(hub_cache()) == own, (hub_cache(), own)"
    )
    for name, value in {"HF_HUB_CACHE": "$X/c", "HF_HOME": "~/h", "XDG_CACHE_HOME": "/x", "UNUSED": ""}.items():
        environment = {"HOME": str(tmp_path), "X": "/y", name: value}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_what_is_downloaded(base: Path, project: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def download(model: str, **options: Any) -> str:
        asked.append({"model": model, **options})
        return str(store(hub, base, OLDER))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert fetch("owner/tiny", OLDER, project).name == OLDER
    (options,) = asked
    assert (options["model"], options["revision"]) == ("owner/tiny", OLDER)
    files = [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "tokenizer/merges.txt",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/model.py",
        "safety_checker/model.safetensors",
        "v1-5-pruned.safetensors",
    ]
    patterns = {"allow_patterns": options["allow_patterns"], "ignore_patterns": options["ignore_patterns"]}
    assert list(filter_repo_objects(files, **patterns)) == files[:4]


@pytest.fixture
def repository(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository on the hub; the files that are asked for are copied from it."""
    folder = tmp_path / "repository"
    snapshot = hub / "models--owner--tiny/snapshots" / COMMIT

    def download(model: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / file, snapshot / file)
        (hub / "models--owner--tiny/refs").mkdir(parents=True, exist_ok=True)
        (hub / "models--owner--tiny/refs/main").write_text(COMMIT)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return folder


def present(hub: Path) -> set[str]:
    snapshot = hub / "models--owner--tiny/snapshots" / COMMIT
    return {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.safetensors")}


def test_t5_and_other_copies_are_not_downloaded(hub: Path, project: Path, repository: Path) -> None:
    make_pipeline(repository, family="sd3")
    name = "diffusion_pytorch_model"
    for component in ("transformer", "vae"):
        shutil.copy(repository / f"{component}/{name}.safetensors", repository / f"{component}/{name}.bf16.safetensors")
    weights = repository / "transformer" / f"{name}.safetensors"
    shutil.copy(weights, weights.with_name(f"{name}.fp16.safetensors"))
    said: list[str] = []
    folder = bring(Base(model="owner/tiny", variant="fp16", t5=False), project, said.append)
    assert said == ["downloading the base owner/tiny"]
    assert present(hub) == {
        f"transformer/{name}.fp16.safetensors",
        f"vae/{name}.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
    }
    load(folder).load_denoiser()
    assert find(Base(model="owner/tiny", variant="fp16", t5=False), project) == folder
    assert find(Base(model="owner/tiny"), project) is None


@pytest.mark.parametrize("place", [".", "vae"])
def test_a_vae_from_the_hub(base: Path, hub: Path, project: Path, repository: Path, place: str) -> None:
    other = make_pipeline(project / "other", seed=5)
    shutil.copytree(other / "vae", repository / place)
    shutil.copytree(base, project / "mine")
    source = Base(model="mine", vae="owner/tiny")
    assert find(source, project) is None
    folder = bring(source, project)
    assert base_digest(folder, ["vae"], md5_file) == base_digest(other, ["vae"], md5_file)
    assert commits(source, project).vae == COMMIT
    assert find(Base(model="mine", vae="owner/tiny", vae_commit=COMMIT), project) is not None


def response(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "https://huggingface.co"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda: errors.GatedRepoError("gated", response=response(403)), "licence accepted at https://huggingface.co/"),
        (lambda: errors.RepositoryNotFoundError("404", response=response(404)), "no such model, or it is private"),
        (lambda: errors.RevisionNotFoundError("404", response=response(404)), "has no revision v9; leave it out"),
        (lambda: errors.LocalEntryNotFoundError("no network"), "at revision v9: .*cannot be reached; connect"),
        (lambda: errors.OfflineModeIsEnabled("offline"), "cannot be reached"),
        (lambda: errors.HfHubHTTPError("\n500 Server Error\nmore", response=response(500)), r"\(500 Server Error\)"),
        (lambda: httpx2.ReadTimeout("slow"), r"cannot be downloaded \(slow\)"),
        (lambda: RuntimeError("Data processing error: No space"), "cannot be downloaded .*No space"),
        (lambda: errors.HFValidationError("Cannot have --"), "is no hub id; one is org/name"),
        (lambda: OSError(28, "No space left on device"), "cannot be downloaded .*No space left"),
    ],
)
def test_failed_downloads_say_why_in_a_line(
    project: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], message: str
) -> None:
    def download(model: str, **options: Any) -> str:
        raise error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(DataError, match=message) as caught:
        fetch("owner/tiny", "v9", project)
    assert str(caught.value).startswith("base owner/tiny")
    assert "\n" not in str(caught.value)


def test_repositories_without_safetensors_are_refused(
    base: Path, project: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = store(hub, base, COMMIT, "main")
    (snapshot / "unet/diffusion_pytorch_model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda model, **options: str(snapshot))
    with pytest.raises(DataError, match=r"lacks unet/….safetensors; choose .*, or name copies .* as fp16$"):
        fetch("owner/tiny", None, project)
