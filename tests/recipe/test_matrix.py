"""`matrix:`: its variants, their names, and mistakes that are told where the value stands."""

from __future__ import annotations

import contextlib
import random
import re
import time
from pathlib import Path

import pytest
import yaml
from dvc.stage.utils import is_valid_name
from gto.constants import name_re

from sdbuild.errors import RecipeError, UsageError
from sdbuild.recipe.load import choose, load_project
from sdbuild.recipe.matrix import MOST
from sdbuild.recipe.names import LONGEST, dvc_name
from tests.recipe.helpers import DESIGN, GOOD, complaints, write


def names(project: Path, matrix: str, more: str = "") -> list[str]:
    write(project, cat=f"{GOOD}{more}matrix: {matrix}\n")
    found = [recipe.name for recipe in load_project(project)]
    for name in found:
        assert is_valid_name(dvc_name(name))
        assert name_re.search(dvc_name(name))
        assert re.fullmatch(r"cat@[A-Za-z0-9._,-]+", name)
    assert len({dvc_name(name).lower() for name in found}) == len(found)
    return found


def test_a_variant_for_each_combination(project: Path) -> None:
    write(
        project,
        cat=GOOD + "method: {kind: lora}\nmatrix: {method.rank: [4, 8], train.learning_rate: [1e-4, 1e-3, 1]}\n",
    )
    write(project, dog=GOOD)
    recipes = load_project(project)
    assert [recipe.name for recipe in recipes] == [
        *("cat@rank-4,learning_rate-0.0001", "cat@rank-4,learning_rate-0.001", "cat@rank-4,learning_rate-1"),
        *("cat@rank-8,learning_rate-0.0001", "cat@rank-8,learning_rate-0.001", "cat@rank-8,learning_rate-1"),
        "dog",
    ]
    variant = recipes[3]
    assert (variant.resolved()["method"]["rank"], variant.train.learning_rate) == (8, 1e-4)
    assert variant.varied == {"method.rank": 8, "train.learning_rate": 1e-4}
    assert (variant.group, recipes[-1].group, recipes[-1].varied) == ("cat", "dog", {})
    assert "matrix" not in variant.resolved()
    assert choose(recipes, ["cat"]) == recipes[:6]
    assert choose(recipes, ["dog", variant.name]) == [recipes[-1], variant]
    with pytest.raises(UsageError, match=r"no recipe cat@rank-4 \(did you mean cat@rank-4,learning_rate-0\.0001\?\)"):
        choose(recipes, ["cat@rank-4"])


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ("{train.schedule: [cosine, constant]}", ["cat@schedule-cosine", "cat@schedule-constant"]),
        ("{train.clip: [null, 1.0, 0.5]}", ["cat@clip-null", "cat@clip-1", "cat@clip-0.5"]),
        ("{images.flip: [false, true]}", ["cat@flip-false", "cat@flip-true"]),
        ("{train.learning_rate: [1e-5]}", ["cat@learning_rate-1e-05"]),
        ("{train.steps: [30], sample.steps: [20]}", ["cat@train.steps-30,sample.steps-20"]),
        ("{sample.scheduler: [dpm++, euler-a]}", ["cat@scheduler-dpm", "cat@scheduler-euler-a"]),
        ("{sample.strengths: [[0, 1], [-0.5, 1]]}", ["cat@strengths-0-1", "cat@strengths--0.5-1"]),
        ("{'datasets[0].caption': [{from: filename}]}", ["cat@caption-filename"]),
        ("{'datasets[0].repeats': [1, 2]}", ["cat@repeats-1", "cat@repeats-2"]),
        ("{'sample.prompts[0]': [a b, c]}", ["cat@prompts-0-a-b", "cat@prompts-0-c"]),
        ("{method: [{kind: lora, rank: 4}, {rank: 8}]}", ["cat@method-lora-4", "cat@method-8"]),
    ],
)
def test_names_tell_the_values(project: Path, matrix: str, expected: list[str]) -> None:
    assert names(project, matrix, "sample: {prompts: [a cat]}\nmethod: {kind: lora}\n") == expected


def test_names_differ_where_values_do(project: Path) -> None:
    first, second, third = names(project, "{sample.negative: [a.b, a_b, c]}", "sample: {prompts: [a]}\n")
    assert re.fullmatch(r"cat@negative-a\.b-[0-9a-f]{6}", first)
    assert re.fullmatch(r"cat@negative-a_b-[0-9a-f]{6}", second)
    assert third == "cat@negative-c"
    upper, lower = names(project, "{sample.negative: [A, a]}", "sample: {prompts: [a]}\n")
    assert upper.lower() != lower.lower(), "files may not be told apart by case"
    fox, cat, long = names(project, f"{{sample.negative: [猫, лиса, {'word ' * 20}]}}", "sample: {prompts: [a]}\n")
    assert re.fullmatch(r"cat@negative-[0-9a-f]{6}", fox)
    assert fox != cat
    assert len(long) < 60


def test_mappings_merge_and_no_matrix_is_none(project: Path) -> None:
    write(project, _common=GOOD + "train: {steps: 7}\nmatrix: {train: [{batch: 1}, {batch: 2}]}\n")
    write(
        project,
        cat="extends: _common.yaml\nmatrix: {train.seed: [1]}\n".replace("train.seed", "images.flip").replace(
            "[1]", "[true]"
        ),
    )
    write(project, dog="extends: _common.yaml\nmatrix: null\n", fox="extends: _common.yaml\nmatrix: {}\n")
    recipes = load_project(project)
    assert [recipe.name for recipe in recipes[:3]] == ["cat@train-1,flip-true", "cat@train-2,flip-true", "dog"]
    assert [(recipe.train.steps, recipe.train.batch) for recipe in recipes[:2]] == [(7, 1), (7, 2)]
    assert [recipe.name for recipe in recipes[3:]] == ["fox@train-1", "fox@train-2"], "what is inherited stays"


ONE_LINE = [
    ("matrix: 3\n", "3: matrix: must be a mapping such as {method.rank: [4, 8]}, is 3"),
    ("matrix: [a]\n", "3: matrix: must be a mapping such as {method.rank: [4, 8]}, is a list"),
    ("matrix: {train.seed: 4}\n", "3: matrix.train.seed: must be a list of values such as [4, 8], is 4"),
    ("matrix:\n  train.seed:\n", "4: matrix.train.seed: is empty; give a list of values such as [4, 8]"),
    ("matrix: {train.seed: []}\n", "3: matrix.train.seed: must have at least one entry"),
    ("matrix:\n  train.seed:\n  - 1\n  - 1.0\n", "6: matrix.train.seed[1]: 1.0 is there twice; remove one"),
    # keys
    ("matrix: {trian.seed: [1]}\n", "3: matrix.trian.seed: unknown key (did you mean train.seed?)"),
    ("matrix: {train.sed: [1, 2]}\n", "3: matrix.train.sed: unknown key (did you mean train.seed?)"),
    ("matrix: {rank: [4, 8]}\n", "3: matrix.rank: unknown key (did you mean method.rank?)"),
    ("matrix: {learningrate: [4]}\n", "3: matrix.learningrate: unknown key (did you mean train.learning_rate?)"),
    ("matrix: {xyzzy: [4]}\n", "3: matrix.xyzzy: unknown key; name it in full, such as method.rank"),
    ("matrix: {train.seed.: [4]}\n", "3: matrix.train.seed.: unknown key (did you mean train.seed?)"),
    ("matrix: {'': [4]}\n", "3: matrix.: unknown key; name it in full, such as method.rank"),
    ("matrix: {'[0]': [4]}\n", "3: matrix.[0]: unknown key; name it in full, such as method.rank"),
    ("matrix: {name: [a, b]}\n", "3: matrix.name: cannot be varied"),
    ("matrix: {extends: [a, b]}\n", "3: matrix.extends: cannot be varied"),
    ("matrix: {matrix: [a, b]}\n", "3: matrix.matrix: cannot be varied"),
    ("matrix: {remote.lookup: [auto, never]}\n", "3: matrix.remote.lookup: cannot be varied"),
    (
        "matrix: {datasets: [a]}\n",
        "3: matrix.datasets: cannot be varied as a whole; name a field of one, such as",
    ),
    ("matrix: {'datasets[1].repeats': [2]}\n", "3: matrix.datasets[1].repeats: the recipe has no datasets[1]"),
    ("matrix: {train: [{seed: 1}], train.seed: [1]}\n", "3: matrix.train.seed: is varied by train already; remove one"),
    # values
    ("matrix:\n  train.batch:\n  - 2\n  - 0\n", "6: matrix.train.batch[1]: must be at least 1, is 0"),
    ("matrix: {train.steps: ['100', 3]}\n", "3: matrix.train.steps[0]: must be a whole number, is text; remove the"),
    ("matrix: {method.kind: [lroa]}\n", "3: matrix.method.kind[0]: unknown kind 'lroa' (did you mean lora?)"),
    ("matrix:\n  train:\n  - seed: 1\n  - sed: 1\n", "6: matrix.train[1].sed: unknown key (did you mean seed?)"),
    (
        "train:\n  warmup: 10\nmatrix:\n  train.steps:\n  - 5\n  - 30\n",
        "7: matrix.train.steps[0]: train.warmup: 10 is not less than steps 5; shorten it or train longer",
    ),
    (
        "matrix:\n  train.steps: [5, 30]\n  train.batch: [1, 2]\n  train.warmup: [0, 10]\n",
        "6: matrix.train.warmup[1]: 10 is not less than steps 5; shorten it or train longer",
    ),
    (
        "sample: {prompts: [a]}\nimages: {resolution: 64}\n"
        "matrix:\n  images.buckets.step: [8, 48]\n  train.seed: [0, 1]\n",
        "6: matrix.images.buckets.step[1]: images.resolution: 64 is not divisible by buckets.step 48; use 48",
    ),
    # the recipe's own
    (
        "method: {kind: lora, rank: 0}\nmatrix: {method: [{alpha: 4}, {alpha: 8}]}\n",
        "3: method.rank: must be at least 1, is 0",
    ),
    ("train: {stepz: 3}\nmatrix: {train.seed: [1, 2]}\n", "3: train.stepz: unknown key (did you mean steps?)"),
    ("train: 3\nmatrix: {train.seed: [1, 2]}\n", "3: train: must be a mapping, is 3"),
]


@pytest.mark.parametrize(("text", "expected"), ONE_LINE)
def test_a_mistake_is_told_where_it_is_mended(project: Path, text: str, expected: str) -> None:
    write(project, cat=GOOD + text)
    (message,) = complaints(project)
    assert message.startswith(f"recipes/cat.yaml:{expected}")
    assert len(message) < 250


def test_every_value_of_another_kind_is_told(project: Path) -> None:
    write(project, _common=GOOD + "matrix:\n  train.steps:\n  - a\n  - 4\n  - b\n", cat="extends: _common.yaml\n")
    assert complaints(project) == [
        "recipes/_common.yaml:5: matrix.train.steps[0]: must be a whole number, is 'a'",
        "recipes/_common.yaml:7: matrix.train.steps[2]: must be a whole number, is 'b'",
    ]


def test_a_combination_that_is_to_blame(project: Path) -> None:
    write(project, cat=GOOD + "matrix: {images.resolution: [64, 96], images.buckets.step: [64, 96]}\n")
    assert [message.split(": ", 1)[1] for message in complaints(project)] == [
        "matrix.images.resolution[0]: 64 is not divisible by buckets.step 96; use 96",
        "matrix.images.resolution[1]: 96 is not divisible by buckets.step 64; use 128",
    ]


def test_too_many_and_too_long(project: Path) -> None:
    many = ", ".join(str(seed) for seed in range(17))
    write(project, cat=GOOD + f"matrix: {{train.seed: [{many}], sample.seeds: [{many}], train.stepz: [3]}}\n")
    first, second, *_ = complaints(project)
    assert "unknown key" in second or "unknown key" in first
    assert any(f"makes 289 variants, at most {MOST} are built; vary less" in text for text in complaints(project))
    keys = ("trigger", "repeats", "holdout", "caption.from")
    values = ", ".join(f"'datasets[0].{key}': [{'x' * 60}]" for key in keys) + ", base.model: [emoji-64]"
    values += f", sample.negative: [{'y' * 60}], images.background: [{'z' * 60}]"
    write(project, cat=GOOD + f"matrix: {{{values}}}\n")
    assert any(f"more than {LONGEST} letters" in text for text in complaints(project))


def test_whatever_a_matrix_holds_there_are_variants_or_problems(project: Path) -> None:
    draw = random.Random(0)
    text = f"{DESIGN}matrix: {{method.rank: [4, 8], 'datasets[0].caption.from': [filename], train: [{{batch: 1}}]}}\n"
    pieces = ("[", "]", "{", "}", ".", "[0]", "'", ",", ": ", "null", "matrix", "train", "&a ", "*a", "1e9", "\n", "@")
    for _ in range(300):
        start = draw.randrange(len(DESIGN), len(text))
        changed = text[:start] + draw.choice(pieces) + text[start + draw.choice([0, 1, 5]) :]
        write(project, cat=changed)
        with contextlib.suppress(RecipeError):
            assert load_project(project)


def test_256_variants_load_faster_than_as_many_files_are_read(project: Path) -> None:
    seeds = ", ".join(str(seed) for seed in range(128))
    write(project, cat=GOOD + f"matrix: {{train.seed: [{seeds}], images.flip: [true, false]}}\n")
    load_project(project)  # imports what it needs
    began = time.process_time()
    assert len(load_project(project)) == MOST
    loaded = time.process_time()
    for _ in range(MOST):
        yaml.load(DESIGN, yaml.SafeLoader)
    assert loaded - began < time.process_time() - loaded
