from __future__ import annotations

from pathlib import Path

import pytest

from sdbuild.recipe.load import load_project
from sdbuild.recipe.places import base_folder, embedded_folder, is_hub_id, overlaps
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
        ("models/file", "'models/file' is a file; name a folder in diffusers' layout"),
        ("models/sd.safetensors", "single files are not supported yet; convert it to a folder in diffusers' layout"),
        ("sd.ckpt", "pickled weights can run code and are never loaded; convert them to safetensors"),
        ("some org/name", "'some org/name' is neither an embedded base nor a hub id (org/name) nor a folder"),
        ("org/name@main", "'org/name@main' is neither an embedded base nor a hub id"),
    ],
)
def test_bad_bases(project: Path, model: str, expected: str) -> None:
    (project / "models" / "sd").mkdir(parents=True)
    put(project, "models/file")
    write(project, cat=f"base:\n  model: '{model}'\n" + DATA)
    (message,) = complaints(project)
    assert message.startswith(f"recipes/cat.yaml:2: base.model: {expected}")


@pytest.mark.parametrize("model", ["base", "./base", "models/sd", "org/name", "emoji-64"])
def test_good_bases(project: Path, model: str) -> None:
    put(project, "base/model_index.json")
    put(project, "models/sd/model_index.json")
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


def test_where_a_base_lies(project: Path) -> None:
    put(project, "models/sd/model_index.json")
    assert base_folder("emoji-64", project) == embedded_folder("emoji-64")
    assert base_folder("models/sd", project) == project / "models" / "sd"
    assert base_folder("/opt/sd", project) == Path("/opt/sd")
    assert base_folder("org/name", project) is None


def test_shapes_of_names() -> None:
    assert is_hub_id("stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert not is_hub_id("a/b/c")
    assert not is_hub_id("./b")
    assert overlaps("a/b", "a")
    assert not overlaps("a/b", "a/bc")
