"""The colour of noise, against the formulas in numpy."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sdbuild.training import noise
from sdbuild.training.noise import Colour
from sdbuild.training.randomness import generator

WHITE = torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(0))


def enlarged(layer: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Bilinear interpolation between pixel centres, an axis at a time."""
    for axis, size in ((1, height), (2, width)):
        have = layer.shape[axis]
        place = np.clip((np.arange(size) + 0.5) * have / size - 0.5, 0, have - 1)
        low = np.floor(place).astype(int)
        share = (place - low).reshape([-1 if axis == each else 1 for each in range(3)])
        high = np.minimum(low + 1, have - 1)
        layer = np.take(layer, low, axis) * (1 - share) + np.take(layer, high, axis) * share
    return layer


def test_offset_moves_whole_channels() -> None:
    moved = noise.offset(WHITE, torch.tensor([1.0, -2.0, 0.0, 3.0]), 0.1) - WHITE
    assert moved.mean(dim=(1, 2)).tolist() == pytest.approx([0.1, -0.2, 0, 0.3], abs=1e-6)
    assert float(moved.std(dim=(1, 2)).max()) < 1e-6


def test_pyramid_adds_enlarged_layers_and_keeps_the_variance() -> None:
    chance = torch.Generator().manual_seed(1)
    layers = [torch.randn(4, *size, generator=chance) for size in ((9, 6), (4, 2), (1, 1))]
    total = WHITE.double().numpy().copy()
    for number, layer in enumerate(layers):
        total += enlarged(layer.double().numpy(), 9, 6) * 0.3**number
    expected = total / total.std(ddof=1)
    assert noise.pyramid(WHITE, layers, 0.3).numpy() == pytest.approx(expected, abs=1e-5)


def test_layers_get_coarser_down_to_a_pixel() -> None:
    colour = Colour(pyramid=0.5, pyramid_levels=10)
    for seed in range(20):
        sizes = [layer.shape[1:] for layer in colour._layers(WHITE.shape, torch.Generator().manual_seed(seed))]
        assert sizes[0] == (9, 6)
        assert 9 / 4 - 1 <= sizes[1][0] <= 9 / 2
        assert 1 in sizes[-1]
        assert all(1 not in size for size in sizes[:-1])
    assert len(Colour(pyramid=0.5, pyramid_levels=2)._layers(torch.Size((4, 64, 64)), torch.Generator())) == 2


def test_perturbation_is_seen_and_not_asked_for() -> None:
    chance = partial(generator, 0, 3, "a")
    colour = Colour(perturbation=0.1)
    assert torch.equal(colour.target(WHITE, chance), WHITE)
    extra = torch.randn(WHITE.shape, generator=generator(0, 3, "a", "perturbation"))
    assert torch.allclose(colour.shown(WHITE, chance), WHITE + 0.1 * extra)


def test_colours_are_functions_of_seed_step_and_record() -> None:
    for colour in (Colour(offset=0.1), Colour(pyramid=0.4, pyramid_levels=6)):
        first, again, other = (colour.target(WHITE, partial(generator, 0, step, "a")) for step in (5, 5, 6))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert not torch.equal(first, WHITE)
    assert noise.WHITE.target(WHITE, partial(generator, 0, 5, "a")) is WHITE


def test_offset_grows_the_variance_of_means_alone() -> None:
    colour = Colour(offset=0.5)
    means = []
    for step in range(500):
        plain = torch.randn(4, 8, 8, generator=generator(0, step, "a", "white"))
        means.append(colour.target(plain, partial(generator, 0, step, "a")).mean(dim=(1, 2)))
    assert float(torch.stack(means).var()) == pytest.approx(0.5**2 + 1 / 64, rel=0.1)
