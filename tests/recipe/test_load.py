from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from sdbuild.errors import RecipeError
from sdbuild.recipe.load import load_project, load_recipe, load_recipes, recipe_files
from tests.recipe.helpers import BASE, DATA, DESIGN, GOOD, complaints, put, write


def test_the_recipe_of_the_design_loads(project: Path) -> None:
    write(project, cat=DESIGN)
    recipe = load_recipe(Path("recipes/cat.yaml"), project)
    assert recipe.name == "cat"
    assert recipe.train.learning_rate == 1e-3
    assert recipe.sample is not None
    assert recipe.sample.strengths == (0.0, 1.0)
    assert load_project(project) == [recipe]


def test_recipes_are_sorted_and_helpers_are_none(project: Path) -> None:
    write(project, dog=GOOD, cat=GOOD, _common="nonsense: 1\n", **{".hidden": "x"})
    put(project, "recipes/shared/base.yaml", "nonsense: 1\n")
    put(project, "recipes/notes.md", "# notes\n")
    assert [recipe.name for recipe in load_project(project)] == ["cat", "dog"]


def test_a_project_without_recipes_has_none(tmp_path: Path) -> None:
    assert load_project(tmp_path) == []


ONE_LINE = [
    # unknown keys
    (GOOD + "trian: {}\n", "3: trian: unknown key (did you mean train?)"),
    (GOOD + "xyz: {}\n", "3: xyz: unknown key; choose from extends, base, datasets, images, method, train, sample"),
    (GOOD + "train:\n  steps: 3\n  stepz: 4\n", "5: train.stepz: unknown key (did you mean steps?)"),
    (GOOD + "train: {extends: a.yaml}\n", "3: train.extends: stands at the top of a recipe only"),
    (GOOD + "train:\n  <<: {steps: 1}\n", "4: train.<<: merge keys are not read; use extends"),
    (GOOD + "method: {kind: lora, xyzzy: 3}\n", "3: method.xyzzy: unknown key; choose from kind, targets"),
    (GOOD + "name: dog\n", "3: name: a recipe is named by its file, 'cat' here; remove this key"),
    # wrong types
    (GOOD + "train: {steps: 2.5}\n", "3: train.steps: must be a whole number, is 2.5"),
    (GOOD + "train: {steps: true}\n", "3: train.steps: must be a whole number, is true"),
    (GOOD + "train: {steps: 1_000}\n", "3: train.steps: must be a whole number, is '1_000'"),
    (GOOD + "train: {steps: '100'}\n", "3: train.steps: must be a whole number, is text; remove the quotes around 100"),
    (GOOD + "train: {steps: [1]}\n", "3: train.steps: must be a whole number, is a list"),
    (GOOD + "train: {learning_rate: .nan}\n", "3: train.learning_rate: must be a finite number, is nan"),
    (GOOD + "train: {learning_rate: .inf}\n", "3: train.learning_rate: must be a finite number, is inf"),
    (GOOD + "train: 3\n", "3: train: must be a mapping, is 3"),
    (GOOD + "train:\n", "3: train: is empty; give a mapping or leave the key out"),
    (GOOD + "images: {flip: yes}\n", "3: images.flip: must be true or false, is 'yes'"),
    (GOOD + "images: {background: #ffffff\n}\n", "3: images.background: is empty; give text (in quotes if it starts"),
    (GOOD + "sample: {prompts: a cat}\n", "3: sample.prompts: must be a list, is 'a cat'"),
    (GOOD + "sample:\n  prompts:\n  - a\n  - 7\n", '6: sample.prompts[1]: must be text, is 7; write it in quotes, "7"'),
    # values
    (GOOD + "train: {schedule: cosin}\n", "3: train.schedule: unknown value 'cosin' (did you mean cosine?)"),
    (
        GOOD + "train: {schedule: 3}\n",
        "3: train.schedule: must be one of constant, cosine, linear, polynomial, restarts, is 3",
    ),
    (GOOD + "train: {precision: half}\n", "3: train.precision: unknown value 'half'; choose from float32, bfloat16"),
    (GOOD + "train: {steps: 0}\n", "3: train.steps: must be at least 1, is 0"),
    (GOOD + "train: {learning_rate: 0}\n", "3: train.learning_rate: must be at least 1e-10, is 0"),
    (GOOD + "method: {kind: lora, dropout: 1}\n", "3: method.dropout: must be less than 1, is 1"),
    (GOOD + "images: {background: blue}\n", "3: images.background: 'blue' is not possible here (colour under"),
    (GOOD + "images: {buckets: {step: 12}}\n", "3: images.buckets.step: must be a multiple of 8, is 12"),
    (GOOD + "method: {kind: lroa}\n", "3: method.kind: unknown kind 'lroa' (did you mean lora?)"),
    (GOOD + "method: {rank: 4}\n", "3: method.kind: is missing; choose from lora"),
    (GOOD + "method: lora\n", "3: method: must be a mapping such as {kind: lora}, is 'lora'"),
    (GOOD + "method: {kind: lora, targets: attn}\n", "3: method.targets: unknown value 'attn'"),
    (GOOD + "method: {kind: lora, targets: []}\n", "3: method.targets: must have at least one entry"),
    (
        GOOD + "method: {kind: lora, targets: [a, 3]}\n",
        '3: method.targets[1]: must be text, is 3; write it in quotes, "3"',
    ),
    (GOOD + "sample: {prompts: []}\n", "3: sample.prompts: must have at least one entry"),
    (GOOD + "sample: {prompts: ['']}\n", "3: sample.prompts[0]: is empty"),
    (GOOD + "sample: {negative: x}\n", "3: sample.prompts: is missing (what is drawn, a row each)"),
    # together
    (GOOD + "sample:\n  prompts:\n  - a\n  - a\n", "6: sample.prompts[1]: 'a' is there twice; remove one"),
    (GOOD + "sample: {prompts: [a], seeds: [1, 2, 1]}\n", "3: sample.seeds[2]: 1 is there twice; remove one"),
    (GOOD + "sample: {prompts: [a], strengths: [1, 1.0]}\n", "3: sample.strengths[1]: 1.0 is there twice; remove one"),
    (
        GOOD + "images:\n  buckets: {step: 8}\n  resolution: 100\n",
        "5: images.resolution: 100 is not divisible by buckets.s",
    ),
    (
        GOOD + "train:\n  steps: 5\n  warmup: 5\n",
        "5: train.warmup: 5 is not less than steps 5; shorten it or train longer",
    ),
    (
        GOOD + "sample: {prompts: [a], refine_from: 0.5}\n",
        "3: sample.refine_from: says when base.refiner goes on, and there is none; name one, or remove it",
    ),
    ("base: {model: emoji-64, revision: x}\n" + DATA, "1: base.revision: 'emoji-64' is no hub id and has no revisions"),
    # missing
    ("base:\n  revision: null\n" + DATA, "1: base.model: is missing (name of an embedded base, a hub id"),
    (BASE + "datasets: []\n", "2: datasets: must have at least one entry"),
    (BASE + "datasets:\n", "2: datasets: is empty; give a list or leave the key out"),
    (BASE + "datasets:\n- repeats: 2\n", "3: datasets[0].path: is missing (folder of the pictures, relative to the"),
    (BASE + "datasets:\n- 3\n", "3: datasets[0]: must be a mapping, is 3"),
]


@pytest.mark.parametrize(("text", "expected"), ONE_LINE)
def test_a_mistake_is_named_with_its_line(project: Path, text: str, expected: str) -> None:
    write(project, cat=text)
    (message,) = complaints(project)
    assert message.startswith(f"recipes/cat.yaml:{expected}")
    assert len(message) < 250


def test_all_problems_of_all_recipes_at_once(project: Path) -> None:
    write(
        project,
        cat=BASE + "datasets:\n- path: nope\n- {path: ../x, caption: {from: sidcar}}\ntrain: {stepz: 1, batch: 0}\n",
        dog="base: {model: ./gone}\n",
        fox="a: [1, 2",
        **{"My Fox": GOOD},
    )
    assert complaints(project) == [
        "recipes/My Fox.yaml: a recipe's name has small letters, digits and dashes only; rename the file to "
        "my-fox.yaml",
        "recipes/cat.yaml:3: datasets[0].path: folder 'nope' does not exist; put pictures there, or run dvc pull if a "
        "teammate tracks it",
        "recipes/cat.yaml:4: datasets[1].path: '../x' is outside the project; move the pictures inside it",
        "recipes/cat.yaml:4: datasets[1].caption.from: unknown from 'sidcar' (did you mean sidecar?)",
        "recipes/cat.yaml:5: train.batch: must be at least 1, is 0",
        "recipes/cat.yaml:5: train.stepz: unknown key (did you mean steps?)",
        "recipes/dog.yaml: datasets: is missing (the pictures)",
        "recipes/dog.yaml:1: base.model: folder './gone' does not exist",
        "recipes/fox.yaml:2: is not valid YAML while parsing a flow sequence: did not find expected ',' or ']'",
    ]


def test_duplicates_do_not_hide_other_problems(project: Path) -> None:
    write(project, cat=GOOD + "train: {steps: 1, steps: 2, batch: x}\n")
    first, second = complaints(project)
    assert first == "recipes/cat.yaml:3: train.steps: is there twice, first in line 3; remove one"
    assert second == "recipes/cat.yaml:3: train.batch: must be a whole number, is 'x'"


def test_a_wrong_ending_is_not_passed_over(project: Path) -> None:
    put(project, "recipes/cat.yml", GOOD)
    assert complaints(project) == ["recipes/cat.yml: a recipe's file ends in .yaml; rename it"]


def test_a_link_that_leads_nowhere(project: Path) -> None:
    (project / "recipes" / "cat.yaml").symlink_to("gone.yaml")
    assert complaints(project) == ["recipes/cat.yaml: cannot be read: the link leads nowhere"]


def test_a_pipe_is_not_waited_for(project: Path) -> None:
    os.mkfifo(project / "recipes" / "cat.yaml")
    assert complaints(project) == ["recipes/cat.yaml: cannot be read: it is no regular file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_no_permission(project: Path) -> None:
    write(project, cat=GOOD)
    (project / "recipes" / "cat.yaml").chmod(0)
    assert complaints(project) == ["recipes/cat.yaml: cannot be read: permission denied"]


def test_recipes_that_is_a_file(tmp_path: Path) -> None:
    put(tmp_path, "recipes")
    with pytest.raises(RecipeError, match="recipes: cannot be read: not a directory"):
        load_project(tmp_path)


def test_one_recipe_is_not_blamed_for_another(project: Path) -> None:
    write(project, cat=GOOD, dog="a: [")
    assert load_recipe(project / "recipes" / "cat.yaml", project).name == "cat"
    with pytest.raises(RecipeError, match=r"recipes/gone.yaml: cannot be read: there is no such file"):
        load_recipes([Path("recipes/gone.yaml")], project)


PIECES = [
    *(b"\t", b"\0", b"[", b"{", b"}", b": ", b"- ", b"&a ", b"*a", b"!!x ", b"'", b'"', b"\n", b"#", b"|", b"\xff"),
    *(b"null", b"1e9", b"extends: cat.yaml\n", b"kind", b"from", b"<<", b"\xe2\x80\xa8", b"---\n", b"? ", b"%"),
]


def test_whatever_a_file_holds_it_is_a_recipe_or_has_problems(project: Path) -> None:
    draw = random.Random(0)
    for _ in range(300):
        text = bytearray(DESIGN.encode())
        for _ in range(draw.randint(1, 4)):
            start = draw.randrange(len(text))
            text[start : start + draw.choice([0, 0, 1, 5, 30])] = draw.choice(PIECES)
        write(project, cat=bytes(text))
        with contextlib.suppress(RecipeError):
            load_project(project)


def test_a_recipe_outside_the_project_is_refused(project: Path) -> None:
    put(project.parent, "cat.yaml", GOOD)
    with pytest.raises(RecipeError, match=r"^\.\./cat.yaml: is outside the project; copy it to recipes/$"):
        load_recipe(project.parent / "cat.yaml", project)


def test_170_recipes_load_not_much_slower_than_they_are_read(project: Path) -> None:
    write(project, _common=DESIGN, **{f"cat{index}": DESIGN for index in range(85)})
    write(project, **{f"dog{index}": f"extends: _common.yaml\ntrain: {{seed: {index}}}\n" for index in range(85)})
    assert len(recipe_files(project)) == 170
    load_project(project)  # imports what it needs
    began = time.process_time()
    assert len(load_project(project)) == 170
    loaded = time.process_time()
    for path in recipe_files(project):
        yaml.load(path.read_text(), yaml.SafeLoader)
    assert loaded - began < 3 * (time.process_time() - loaded)


def test_loading_imports_nothing_heavy() -> None:
    heavy = ["torch", "diffusers", "dvc", "rich", "numpy", "PIL"]
    code = f"import sys, sdbuild.recipe.load; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
