"""Recipes of captions by models: what is wrong is said at once, with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdbuild.plan.compile import plan
from sdbuild.recipe.load import load_project
from tests.recipe.helpers import complaints, put, write

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def pictures(project: Path) -> None:
    put(project, "datasets/cat/a.png")


def recipe(caption: str) -> str:
    dataset = f"datasets:\n  - path: datasets/cat\n    caption: {{{caption}}}\n"
    return f"base: {{model: emoji-64}}\n{dataset}images: {{resolution: 64, buckets: {{step: 8}}}}\n"


CLAUDE, GPT, LOCAL = "from: anthropic, model: claude-haiku-4-5", "from: openai, model: m", "from: transformers"


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("from: anthropic", "model: is missing (name of the model, as the provider has it)"),
        ("from: antropic, model: m", "from: unknown from 'antropic' (did you mean anthropic?)"),
        (f"{CLAUDE}, styl: tags", "styl: unknown key (did you mean style?)"),
        (f"{CLAUDE}, style: long", "style: unknown value 'long'"),
        (f'{CLAUDE}, instruction: "of {{name}}"', "instruction: unknown placeholder {name}; use {stem}, {folder}"),
        (f'{CLAUDE}, instruction: "{{stem.x}}"', "instruction: unknown placeholder {stem.x}"),
        (f'{CLAUDE}, instruction: "{{stem!r}}"', "instruction: placeholder {stem} takes no format"),
        (f'{CLAUDE}, instruction: "{{stem"', "write {{ and }} for braces that are meant as they are"),
        (f'{CLAUDE}, instruction: "{{caption}}"', "instruction: unknown placeholder {caption}"),
        (f'{CLAUDE}, instruction: "a {{subject}}"', "instruction: names {subject}, which is empty; set subject"),
        (f'{CLAUDE}, chain: [{{instruction: "{{subject}}"}}]', "chain[0].instruction: names {subject}, which is empty"),
        (f"{CLAUDE}, chain: []", "chain: must have at least one entry"),
        (f"{CLAUDE}, avoid: [a, a]", "avoid[1]: 'a' is there twice; remove one"),
        (f"{CLAUDE}, longest_side: 10", "longest_side: must be at least 64, is 10"),
        (f"{CLAUDE}, tags_file: tags", "tags_file: 'tags' is not possible here (ending of files beside the pictures"),
        (f"{CLAUDE}, tags_file: .txt", "tags_file: what is in .txt files counts as written by hand; rename them"),
        (f"{GPT}, max_cost: 1", "max_cost: the prices of m are not known here; add prices: {input: …, output: …}"),
        (f"{GPT}, prices: {{input: 1}}", "prices.output: is missing (of what is answered)"),
        (f'{GPT}, base_url: "localhost:1"', "base_url: is no address of a server; write one such as http://localhost"),
        (f'{GPT}, base_url: "https://u:sk-x@h/v1"', "base_url: holds more than an address; keys stand in the environm"),
        (f'{GPT}, base_url: "https://h/v1?key=sk-x"', "base_url: holds more than an address"),
        (f"{GPT}, key_variable: sk-x-1", "key_variable: must be the name of an environment variable, such as OPENAI"),
        (f"{GPT}, api_key: sk-x-1", "api_key: unknown key"),
        (f"{LOCAL}, model: blip", "model: is neither a hub id (org/name) nor a folder; write ./ before a folder"),
        (f"{LOCAL}, model: ./../blip", "model: must be a folder inside the project, such as ./models/blip"),
        (f"{LOCAL}, model: org/blip", "revision: must be the commit of the model, 40 hex digits"),
        (f"{LOCAL}, model: org/blip, revision: main", "revision: must be the commit of the model, 40 hex digits"),
        (f"{LOCAL}, model: ./m, revision: {COMMIT}", "revision: belongs to a hub id; remove it"),
        (f"{LOCAL}, model: ./m, parallel: 3", "parallel: unknown key"),
    ],
)
def test_what_is_wrong_is_said(project: Path, caption: str, message: str) -> None:
    write(project, cat=recipe(caption))
    (said,) = complaints(project)
    assert said.startswith("recipes/cat.yaml:4: datasets[0].caption."), said
    assert message in said
    assert "sk-x" not in said


def test_all_settings_and_what_captions_depend_on(project: Path) -> None:
    every = (
        f"{GPT}, style: tags, subject: cat, instruction: '{{tags}} {{subject}}', max_words: 20, avoid: [x], "
        "tags_file: .t, languages: [English], longest_side: 512, "
        "chain: [{style: short, instruction: 'of {caption}', picture: false}], "
        "replace: {size: big}, prefix: p, suffix: s, max_tokens: 9, max_images: 5, temperature: 0, extra: {size: 1}, "
        "parallel: 3, attempts: 2, timeout: 3, batch: true, prices: {input: 1, output: 2}, max_cost: 3, "
        "base_url: 'http://localhost/v1', key_variable: KEY, detail: low"
    )
    write(project, cat=recipe(every))
    (one,) = load_project(project)
    step = next(step for step in plan(one) if step.kind == "captions")
    assert step.spec["background"] == "white"
    assert step.spec["datasets"][0]["caption"] == {
        "from": "openai",
        "model": "m",
        "style": "tags",
        "instruction": "{tags} {subject}",
        "subject": "cat",
        "max_words": 20,
        "avoid": ["x"],
        "tags_file": ".t",
        "languages": ["English"],
        "longest_side": 512,
        "chain": [{"style": "short", "instruction": "of {caption}", "max_words": 50, "avoid": None, "picture": False}],
        "replace": [["size", "big"]],
        "prefix": "p",
        "suffix": "s",
        "temperature": 0,
        "extra": '{"size": 1}',
        "detail": "low",
    }
    assert step.how["datasets"][0] == {
        "parallel": 3,
        "attempts": 2,
        "timeout": 3,
        "batch": True,
        "prices": {"input": 1.0, "output": 2.0},
        "max_cost": 3,
        "max_images": 5,
        "max_tokens": 9,
        "base_url": "http://localhost/v1",
        "key_variable": "KEY",
    }


def test_recipes_without_models_are_planned_as_before(project: Path) -> None:
    write(project, cat=recipe("from: filename"))
    (one,) = load_project(project)
    step = next(step for step in plan(one) if step.kind == "captions")
    dataset = {"path": "datasets/cat", "caption": {"from": "filename"}, "trigger": ""}
    assert (step.spec, step.how) == ({"version": 1, "datasets": [dataset]}, {})
    assert step.views == ("captions",)


def test_a_model_in_the_project_is_an_input(project: Path) -> None:
    write(project, cat=recipe(f"{LOCAL}, model: ./models/blip/"))
    (one,) = load_project(project)
    step = next(step for step in plan(one) if step.kind == "captions")
    assert [dep.path for dep in step.deps] == ["build/cat/images.jsonl", "datasets/cat", "models/blip"]
    assert step.views == ("captions", "model")
    write(project, cat=recipe(f"{LOCAL}, model: org/blip, revision: {COMMIT}"))
    (one,) = load_project(project)
    step = next(step for step in plan(one) if step.kind == "captions")
    assert step.views == ("captions",)
    assert step.spec["datasets"][0]["caption"]["revision"] == COMMIT
