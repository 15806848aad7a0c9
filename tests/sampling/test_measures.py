"""How near samples are to what was trained on, and to each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdbuild.sampling.measures import features, figures, nearest, spread, unit


def at(*places: float) -> list[Tensor]:
    return [torch.tensor([place, 0.0]) for place in places]


def test_the_unit_is_what_lies_between_neighbours() -> None:
    assert unit(at(0, 1, 3, 10)) == 1.0  # 1, 1, 2 and 7 to the nearest; the lower of the middle two
    assert unit(at(5)) is None
    assert unit(at(5, 5)) is None


def test_copies_are_near_and_new_pictures_are_not() -> None:
    trained = at(0, 2, 4)
    assert nearest(at(2, 4), trained, 2.0) == 0
    assert nearest(at(6, 7), trained, 2.0) == pytest.approx(1.25)


def test_seeds_that_look_alike_have_no_spread() -> None:
    assert spread([at(1, 1), at(0, 4)], 2.0) == pytest.approx(1.0)
    assert spread([at(1), at(5)], 2.0) is None


def test_figures_are_told_by_strength() -> None:
    found = figures({"0": {"a": at(10, 14)}, "1": {"a": at(0, 0)}}, at(0, 2))
    assert found == {"nearest": {"0": 5.0, "1": 0.0}, "spread": {"0": 2.0, "1": 0.0}}
    assert figures({}, at(1)) is None


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 6, 10), (16, 64, 64)])
def test_latents_of_all_shapes_compare(shape: tuple[int, ...]) -> None:
    assert features(torch.full(shape, 2.0)).equal(torch.full((shape[0] * 64,), 2.0))
