"""The documentation: links lead somewhere, commands exist, recipes are right."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sdbuild.cli import _parser
from sdbuild.recipe.load import load_recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_LINK = re.compile(r"\[[^\]\n]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_COMMAND = re.compile(r"(?:`|^\s*\$ )sdbuild(?: --\w+)* ([a-z]+)\b", re.MULTILINE)
_FENCE = re.compile(r"^( *)```yaml\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_RECIPE = re.compile(r"# (recipes/[\w-]+\.yaml)\n")


def anchors(text: str) -> set[str]:
    """Names under which the headings of a page are linked to, as code hosts make them."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(text))
    return {heading.replace(" ", "-") for heading in plain}


def recipes() -> Iterator[tuple[str, str, str]]:
    """Page, file name and text of each recipe shown."""
    for page in PAGES:
        for _, block in _FENCE.findall(page.read_text(encoding="utf-8")):
            text = textwrap.dedent(block)
            if named := _RECIPE.match(text):
                yield page.relative_to(ROOT).as_posix(), named[1], text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_resolve(page: Path) -> None:
    broken = []
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    assert broken == []


def test_every_page_is_linked_to() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in _LINK.findall(page.read_text(encoding="utf-8"))
    }
    assert {page for page in PAGES[1:] if page not in linked} == set()


def test_commands_exist() -> None:
    parser = _parser()
    action = next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    named = {command for page in PAGES for command in _COMMAND.findall(page.read_text(encoding="utf-8"))}
    assert named <= set(action.choices)
    shown = {choice.dest for choice in action._choices_actions}
    assert named >= shown, "a command is not documented"


@pytest.mark.parametrize(("page", "name", "text"), list(recipes()))
def test_recipes_are_right(page: str, name: str, text: str, tmp_path: Path) -> None:
    for dataset in yaml.safe_load(text)["datasets"]:
        (tmp_path / dataset["path"]).mkdir(parents=True)
    file = tmp_path / name
    file.parent.mkdir()
    file.write_text(text, encoding="utf-8")
    assert load_recipe(Path(name), tmp_path).group == file.stem
