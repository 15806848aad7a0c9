"""Presets and patterns of targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from torch import nn

from sdbuild.errors import RecipeError
from sdbuild.families.contract import Component
from sdbuild.methods.targets import matches_pattern, select
from sdbuild.recipe.methods import method_of


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(2, 2), nn.Linear(2, 2)
        self.to_out = nn.ModuleList([nn.Linear(2, 2), nn.Dropout(0)])


def network() -> nn.Module:
    block = nn.ModuleDict({"attn1": Attention(), "proj_in": nn.Conv2d(2, 2, 1), "other": nn.Conv2d(2, 2, 3)})
    return nn.ModuleDict({"attentions": nn.ModuleList([block]), "conv1": nn.Conv2d(2, 2, 3), "time": nn.Linear(2, 2)})


ATTENTION = ["attentions.0.attn1.to_q", "attentions.0.attn1.to_k", "attentions.0.attn1.to_out.0"]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("attention", ATTENTION),
        ("default", [*ATTENTION, "attentions.0.proj_in"]),
        ("all-linear", [*ATTENTION, "time"]),
        (["to_q", "conv1"], ["attentions.0.attn1.to_q", "conv1"]),
        (["attentions.*.to_*"], ATTENTION),
    ],
)
def test_select(targets: str | list[str], expected: list[str]) -> None:
    assert sorted(select({"unet": network()}, targets)["unet"]) == sorted(expected)


def test_all_patterns_that_match_nothing_are_named_at_once() -> None:
    with pytest.raises(RecipeError) as error:
        select({"unet": network()}, ["to_qq", "to_k", "zzz"])
    first, second = str(error.value).splitlines()
    assert "method.targets: 'to_qq' matches no linear layer or convolution" in first
    assert "did you mean to_q" in first
    assert "'zzz'" in second
    assert "there are" in second


def test_a_preset_that_matches_nothing() -> None:
    with pytest.raises(RecipeError, match=r"method.targets: 'attention' matches no module of this base"):
        select({"unet": nn.ModuleDict({"conv": nn.Conv2d(1, 1, 1)})}, "attention")


def test_a_pattern_is_a_path_or_its_end() -> None:
    assert matches_pattern("a.b.to_q", "to_q")
    assert matches_pattern("a.b.to_q", "b.to_q")
    assert not matches_pattern("a.b.into_q", "to_q")


def test_text_projections_are_left_out() -> None:
    """Most programs take no adapter for them, and one that acts in training alone would mislead."""
    text = nn.ModuleDict({"self_attn": nn.ModuleDict({"q_proj": nn.Linear(2, 2)}), "text_projection": nn.Linear(2, 2)})
    modules: Mapping[Component, nn.Module] = {"unet": network(), "text_encoder_2": text}
    for targets in ("all-linear", ["*"], ["*proj*"]):
        assert select(modules, targets)["text_encoder_2"] == ["self_attn.q_proj"]
    with pytest.raises(RecipeError, match=r"method.targets: text_projection takes no adapter: A1111, InvokeAI"):
        select(modules, ["to_q", "text_projection"])


def test_only_recipes_that_took_text_projections_are_built_anew() -> None:
    def revised(**section: Any) -> Any:
        stated = method_of({"kind": "loha", **section}).stated()
        assert method_of(stated).stated() == stated
        return stated.get("revised")

    for targets in ("all-linear", ["*"], ["to_k", "text_*"]):
        assert revised(targets=targets, text_encoder=True) == ["text_projection"]
        assert revised(targets=targets) is None
    for targets in ("default", "attention", ["to_k", "*.fc1"]):
        assert revised(targets=targets, text_encoder=True) is None
    lora = {"targets": "all-linear", "text_encoder": True}
    pivotal = method_of({"kind": "pivotal", "tokens": [{"token": "<x>"}], "lora": lora}).stated()
    assert pivotal["revised"] == ["text_projection"]
    assert method_of(pivotal).stated() == pivotal
