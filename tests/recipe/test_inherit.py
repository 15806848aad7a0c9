from __future__ import annotations

from pathlib import Path

import pytest

from sdbuild.recipe.load import load_project, load_recipe
from tests.recipe.helpers import BASE, DATA, GOOD, complaints, put, write


def test_mappings_merge_key_by_key_and_lists_replace(project: Path) -> None:
    write(
        project,
        _common=GOOD + "train: {steps: 5, batch: 2}\nsample: {prompts: [a, b], seeds: [1, 2]}\n",
        cat="extends: _common.yaml\ntrain: {steps: 7}\nsample: {prompts: [c]}\n",
    )
    (recipe,) = load_project(project)
    assert recipe.name == "cat"
    assert (recipe.train.steps, recipe.train.batch) == (7, 2)
    assert recipe.sample is not None
    assert (recipe.sample.prompts, recipe.sample.seeds) == (("c",), (1, 2))


def test_null_switches_off_what_is_inherited(project: Path) -> None:
    write(project, _common=GOOD + "sample: {prompts: [a]}\n", cat="extends: _common.yaml\nsample: null\n")
    assert load_project(project)[0].sample is None


def test_a_chain_is_looked_up_from_each_file(project: Path) -> None:
    put(project, "recipes/shared/base.yaml", BASE + "train: {steps: 5}\n")
    put(project, "recipes/shared/data.yaml", "extends: base.yaml\n" + DATA)
    write(project, cat="extends: shared/data.yaml\n", dog="extends: cat.yaml\ntrain: {batch: 1}\n")
    cat, dog = load_project(project)
    assert (cat.train.steps, dog.train.steps, dog.train.batch) == (5, 5, 1)


def test_the_same_whether_inherited_or_written(project: Path) -> None:
    write(project, _common=GOOD, cat="extends: _common.yaml\n")
    inherited = load_project(project)[0].resolved()
    write(project, cat=GOOD)
    assert load_project(project)[0].resolved() == inherited


@pytest.mark.parametrize(
    ("parent", "child", "expected"),
    [
        (GOOD + "train:\n  stepz: 5\n", "extends: _common.yaml\n", "recipes/_common.yaml:4: train.stepz: unknown key"),
        (
            GOOD + "train:\n  steps: 5\n",
            "extends: _common.yaml\ntrain: {steps: x}\n",
            "recipes/cat.yaml:2: train.steps",
        ),
        (GOOD + "train:\n  steps: x\n", "extends: _common.yaml\ntrain: {batch: 2}\n", "recipes/_common.yaml:4: train"),
        (
            BASE,
            "extends: _common.yaml\ndatasets:\n- path: nope\n",
            "recipes/cat.yaml:3: datasets[0].path: folder 'nope'",
        ),
        (
            GOOD,
            "extends: _common.yaml\nname: x\n",
            "recipes/cat.yaml:2: name: a recipe is named by its file, 'cat' here",
        ),
        (
            GOOD,
            "extends: _comon.yaml\n",
            "recipes/cat.yaml:1: extends: file 'recipes/_comon.yaml' does not exist (did you",
        ),
        (GOOD, "extends: [a]\n", "recipes/cat.yaml:1: extends: must be the name of one file, such as _common.yaml"),
        (GOOD, "extends: ../../x.yaml\n", "recipes/cat.yaml:1: extends: '../../x.yaml' is outside the project"),
        (GOOD, "extends: /etc/passwd\n", "recipes/cat.yaml:1: extends: '/etc/passwd' is outside the project"),
        ("a: [\n", "extends: _common.yaml\n", "recipes/_common.yaml:2: is not valid YAML"),
        ("", "extends: _common.yaml\n", "recipes/_common.yaml: is empty"),
        (
            "extends: cat.yaml\n",
            "extends: _common.yaml\n",
            "recipes/_common.yaml:1: extends: goes in a circle: recipes/cat.yaml -> recipes/_common.yaml",
        ),
    ],
)
def test_each_problem_names_the_file_it_stands_in(project: Path, parent: str, child: str, expected: str) -> None:
    write(project, _common=parent, cat=child)
    (message,) = complaints(project)
    assert message.startswith(expected)


def test_a_problem_in_a_shared_parent_is_told_once(project: Path) -> None:
    write(project, _common=GOOD + "trian: {}\n", cat="extends: _common.yaml\n", dog="extends: _common.yaml\n")
    assert complaints(project) == ["recipes/_common.yaml:3: trian: unknown key (did you mean train?)"]


def test_a_recipe_without_its_parent_is_still_checked(project: Path) -> None:
    write(project, cat="extends: gone.yaml\ntrain: {stepz: 1}\n")
    first, second = complaints(project)
    assert first.startswith("recipes/cat.yaml:1: extends: file 'recipes/gone.yaml' does not exist")
    assert second == "recipes/cat.yaml:2: train.stepz: unknown key (did you mean steps?)"


def test_a_link_out_of_the_project_is_refused(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "x.yaml"
    outside.write_text(GOOD)
    (project / "recipes" / "_x.yaml").symlink_to(outside)
    write(project, cat="extends: _x.yaml\n")
    assert "leads out of the project by a link" in complaints(project)[0]


def test_a_recipe_in_a_lower_folder_can_be_loaded_by_name(project: Path) -> None:
    put(project, "recipes/trials/fox.yaml", GOOD)
    assert load_project(project) == []
    assert load_recipe(project / "recipes" / "trials" / "fox.yaml", project).name == "fox"
