from __future__ import annotations

import pytest
from doit.doit_cmd import DoitMain

from sdbuild.plan.model import STEP_KINDS
from sdbuild.recipe.names import RESERVED, STEPS, wrong_name


@pytest.mark.parametrize("name", ["cat", "7", "emoji-3d", "a-b-c", "training", "cat-trains", "textual"])
def test_good_names(name: str) -> None:
    assert wrong_name(name) is None


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("my cat", "rename the file to my-cat.yaml"),
        ("Cat", "rename the file to cat.yaml"),
        ("cat_dog", "rename the file to cat-dog.yaml"),
        ("-cat", "rename the file to cat.yaml"),
        ("cat.v2", "rename the file to cat-v2.yaml"),
        ("猫", "rename the file to my-recipe.yaml"),
        ("list", "'list' is a command of doit; rename the file, for instance to my-list.yaml"),
        ("cat-train", "cannot end in the step name 'train'; rename the file, for instance to cat.yaml"),
        ("samples", "cannot end in the step name 'samples'; rename the file, for instance to my-recipe.yaml"),
    ],
)
def test_bad_names(name: str, remedy: str) -> None:
    message = wrong_name(name)
    assert message is not None
    assert remedy in message


def test_all_commands_of_doit_are_reserved() -> None:
    assert {command.get_name() for command in DoitMain.DOIT_CMDS} <= RESERVED


def test_all_step_kinds_are_known() -> None:
    assert set(STEP_KINDS) <= set(STEPS)
