"""Presets and patterns of targets."""

from __future__ import annotations

import pytest
from torch import nn

from sdbuild.errors import RecipeError
from sdbuild.methods.targets import matches_pattern, select


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
