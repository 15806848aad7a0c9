from __future__ import annotations

from pathlib import Path

import pytest

from sdbuild.recipe.load import load_project
from sdbuild.recipe.places import BASES, embedded, is_hub_id, is_single_file, overlaps, place_of
from tests.recipe.helpers import BASE, DATA, GOOD, complaints, put, write


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("../x", "'../x' is outside the project; move the pictures inside it"),
        ("datasets/../../x", "'datasets/../../x' is outside the project"),
        ("/srv/x", "'/srv/x' is absolute; name a folder inside the project, relative to it"),
        ("~/x", "'~/x' is absolute"),
        ("C:/x", "'C:/x' is absolute"),
        ("datasets\\cat", "'datasets\\\\cat' has a backslash; separate folders by /"),
        (".", "is the project itself; name a folder inside it, such as datasets/cat"),
        ("build/cat", "'build/cat' is in build/, which is not for pictures; use datasets/"),
        (".dvc/cache", "'.dvc/cache' is in .dvc/"),
        ("datasets/file", "'datasets/file' is a file; name the folder of the pictures"),
        ("datasets/cta", "folder 'datasets/cta' does not exist (did you mean datasets/cat?)"),
        ("pictures", "folder 'pictures' does not exist; put pictures there, or run dvc pull if a teammate tracks it"),
        ("datasets/${x}", "'datasets/${x}' has '${', where DVC looks for a variable; rename the folder"),
        ("a\\tb", "'a\\\\tb' has a backslash"),
    ],
)
def test_bad_dataset_folders(project: Path, path: str, expected: str) -> None:
    put(project, "datasets/file")
    write(project, cat=BASE + f"datasets:\n- path: '{path}'\n")
    (message,) = complaints(project)
    assert message.startswith(f"recipes/cat.yaml:3: datasets[0].path: {expected}")


def test_a_link_out_of_the_project(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (project / "datasets" / "far").symlink_to(tmp_path_factory.mktemp("far"))
    write(project, cat=BASE + "datasets: [{path: datasets/far}]\n")
    assert "leads out of the project by a link" in complaints(project)[0]


@pytest.mark.parametrize("tracked", ["datasets/dog.dvc", "datasets.dvc"])
def test_a_tracked_folder_may_be_absent(project: Path, tracked: str) -> None:
    put(project, tracked)
    write(project, cat=BASE + "datasets: [{path: datasets/dog}]\n")
    assert load_project(project)[0].datasets[0].path == "datasets/dog"


@pytest.mark.parametrize("path", ["datasets/cat/", "./datasets/cat", "datasets//cat", "datasets/x/../cat"])
def test_a_folder_has_one_spelling(project: Path, path: str) -> None:
    write(project, cat=BASE + f"datasets: [{{path: {path}}}]\n")
    assert load_project(project)[0].datasets[0].path == "datasets/cat"


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ("datasets/cat/", "'datasets/cat' is there twice; use repeats to give it more weight"),
        ("datasets", "'datasets' and 'datasets/cat' overlap; no picture may count twice"),
    ],
)
def test_datasets_lie_apart(project: Path, second: str, expected: str) -> None:
    write(project, cat=BASE + f"datasets:\n- path: datasets/cat\n- path: {second}\n")
    assert complaints(project) == [f"recipes/cat.yaml:4: datasets[1].path: {expected}"]


def test_names_in_any_script(project: Path) -> None:
    (project / "datasets" / "猫 и кот").mkdir()
    write(project, cat=BASE + 'datasets: [{path: "datasets/猫 и кот"}]\n')
    assert load_project(project)[0].datasets[0].path == "datasets/猫 и кот"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("emoji", "no folder and no embedded base is called 'emoji' (did you mean emoji-64?); a hub id is org/name"),
        ("sd15", "no folder and no embedded base is called 'sd15' (there is emoji-64); a hub id is org/name"),
        ("./modles/sd", "folder './modles/sd' does not exist"),
        ("models/sdx", "folder 'models/sdx' does not exist (did you mean models/sd?)"),
        ("models/a/b/c", "folder 'models/a/b/c' does not exist"),
        ("/no/where", "folder '/no/where' does not exist"),
        ("~/sd", "~ is not expanded; write the whole path"),
        ("models/sd", "'models/sd' has no model_index.json; name a folder in diffusers' layout"),
        ("models/file", "'models/file' is a file; name a folder in diffusers' layout, or a .safetensors file"),
        ("models/ds.safetensors", "file 'models/ds.safetensors' does not exist (did you mean models/sd.safetensors?)"),
        ("models/sd.ckpt", "pickled weights can run code; convert them to safetensors, or set allow_pickle: true"),
        ("some org/name", "'some org/name' is neither an embedded base nor a hub id (org/name) nor a folder"),
        ("org/na--me", "'org/na--me' is neither an embedded base nor a hub id"),
        ("org/name@main", "'org/name@main' is neither an embedded base nor a hub id"),
    ],
)
def test_bad_bases(project: Path, model: str, expected: str) -> None:
    (project / "models" / "sd").mkdir(parents=True)
    put(project, "models/file")
    put(project, "models/sd.ckpt")
    put(project, "models/sd.safetensors")
    write(project, cat=f"base:\n  model: '{model}'\n" + DATA)
    (message,) = complaints(project)
    assert message.startswith(f"recipes/cat.yaml:2: base.model: {expected}")


@pytest.mark.parametrize(
    "model", ["base", "./base", "models/sd", "org/name", "emoji-64", "models/sd.safetensors", "my models/a--b"]
)
def test_good_bases(project: Path, model: str) -> None:
    put(project, "models/sd.safetensors")
    put(project, "base/model_index.json")
    put(project, "models/sd/model_index.json")
    put(project, "my models/a--b/model_index.json")
    write(project, cat=f"base: {{model: {model}}}\n" + DATA)
    assert load_project(project)[0].base.model == model


def test_a_tracked_base_may_be_absent(project: Path) -> None:
    put(project, "models/sd.dvc")
    write(project, cat="base: {model: models/sd}\n" + DATA)
    assert load_project(project)


def test_a_hub_id_may_have_a_revision(project: Path) -> None:
    write(project, cat="base: {model: org/name, revision: v1}\n" + DATA, dog=GOOD)
    assert load_project(project)[0].base.revision == "v1"


@pytest.mark.parametrize(
    "text", ["base: {{model: {}}}", "datasets: [{{path: {}}}]\nbase: {{model: a/b}}", "extends: {}"]
)
@pytest.mark.parametrize("name", ["x" * 5000, "./" + "x" * 300, "a/" * 3000, '"a\\0b"'])
def test_names_that_no_disk_can_hold(project: Path, text: str, name: str) -> None:
    write(project, cat=text.format(name))
    assert complaints(project)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("model: org/name, vae: nowhere.safetensors", "vae: file 'nowhere.safetensors' does not exist"),
        ("model: org/name, vae: vae.ckpt", "vae: a VAE is not read from pickled weights; convert it to safetensors"),
        ("model: org/name, vae: models", "vae: 'models' has no config.json and no vae/config.json"),
        ("model: org/name, config: models", "config: 'models' has no model_index.json; name a folder in diffusers'"),
        ("model: org/name, config: base", "config: 'org/name' is no single file and has its own configurations"),
        ("model: sd.safetensors, variant: fp16", "variant: 'sd.safetensors' is a single file and has no variants"),
        ("model: sd.safetensors, allow_pickle: true", "allow_pickle: 'sd.safetensors' is no pickle (.ckpt); remove"),
        ("model: org/name, family: sd4", "family: unknown value 'sd4' (did you mean sd3?)"),
        ("model: org/name, clip_skip: 0", "clip_skip: must be at least 1, is 0"),
    ],
)
def test_settings_that_do_not_fit_the_base(project: Path, settings: str, expected: str) -> None:
    put(project, "base/model_index.json")
    put(project, "models/file")
    put(project, "sd.safetensors")
    write(project, cat=f"base: {{{settings}}}\n" + DATA)
    (message,) = complaints(project)
    assert message.startswith(f"recipes/cat.yaml:1: base.{expected}")


def test_a_pickle_that_is_allowed(project: Path) -> None:
    put(project, "sd.ckpt")
    write(project, cat="base: {model: sd.ckpt, allow_pickle: true}\n" + DATA)
    assert load_project(project)[0].base.allow_pickle


def test_where_a_base_lies(project: Path) -> None:
    put(project, "models/sd/model_index.json")
    assert "emoji-64" in embedded()
    assert place_of("emoji-64", project) == BASES / "emoji-64"
    assert place_of("models/sd", project) == project / "models" / "sd"
    assert place_of("/opt/sd", project) == Path("/opt/sd")
    assert place_of("a/b.safetensors", project) == project / "a/b.safetensors"
    assert place_of("org/name", project) is None


def test_shapes_of_names() -> None:
    assert is_hub_id("stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert not is_hub_id("a/b/c")
    assert not is_hub_id("./b")
    assert not is_hub_id("models/sd.safetensors")
    assert is_single_file("models/sd.safetensors")
    assert not is_single_file("org/safetensors")
    assert overlaps("a/b", "a")
    assert not overlaps("a/b", "a/bc")
