"""Formulas of the methods, against the papers' definitions and against PEFT."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lokr.layer import factorization, make_kron
from torch import Tensor, nn

from sdbuild.methods.glora.maths import of_bias, of_weight
from sdbuild.methods.ia3.maths import scaled
from sdbuild.methods.loha.maths import product, product_of_cores
from sdbuild.methods.lokr.maths import factors, kronecker, through_kronecker
from sdbuild.methods.lora.ranks import ranks_at
from sdbuild.methods.oft.maths import block_size, cayley, turn


def drawn(*shape: int, seed: int = 0) -> Tensor:
    chance = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=chance, dtype=torch.float64)


def test_a_hadamard_product_has_the_square_of_the_rank() -> None:
    a, b, c, d = drawn(12, 3), drawn(3, 11), drawn(12, 3, seed=5), drawn(3, 11, seed=6)
    found = product(a, b, c, d, torch.tensor(2.0))
    assert torch.allclose(found, 2 * (a @ b) * (c @ d))
    assert torch.linalg.matrix_rank(found) == 9


def test_cores_are_multiplied_along_channels_and_have_their_own_gradients() -> None:
    t1, a1, b1 = drawn(2, 2, 3, 3), drawn(2, 5), drawn(2, 4)
    t2, a2, b2 = drawn(2, 2, 3, 3, seed=1), drawn(2, 5, seed=1), drawn(2, 4, seed=1)
    half = torch.tensor(0.5, dtype=torch.float64)
    found = product_of_cores(t1, a1, b1, t2, a2, b2, half)
    for out, into, y, x in [(0, 0, 0, 0), (4, 3, 2, 1)]:
        first = sum(t1[i, j, y, x] * a1[i, out] * b1[j, into] for i in range(2) for j in range(2))
        second = sum(t2[i, j, y, x] * a2[i, out] * b2[j, into] for i in range(2) for j in range(2))
        assert torch.isclose(found[out, into, y, x], torch.as_tensor(0.5 * first * second))
    leaves = tuple(tensor.requires_grad_() for tensor in (t1, a1, b1, t2, a2, b2))
    assert torch.autograd.gradcheck(product_of_cores, (*leaves, half))


@pytest.mark.parametrize(
    ("number", "most", "expected"),
    [
        (128, None, (8, 16)),
        (127, None, (1, 127)),
        (360, None, (18, 20)),
        (320, 8, (8, 40)),
        (8, 16, (1, 8)),
        (7, 4, (1, 7)),
    ],
)
def test_factors_multiply_to_the_number(number: int, most: int | None, expected: tuple[int, int]) -> None:
    assert factors(number, most) == expected
    if number % (most or 1) == 0:
        assert sorted(factorization(number, most or -1)) == list(expected)


def test_a_kronecker_product_is_pefts_and_need_not_be_made() -> None:
    w1, w2, x = drawn(2, 3), drawn(4, 5), drawn(6, 7, 15)
    assert torch.equal(kronecker(w1, w2), make_kron(w1, w2))
    assert torch.allclose(through_kronecker(x, w1, w2), x @ torch.kron(w1, w2).T)
    kernel = drawn(4, 5, 3, 3)
    assert torch.equal(kronecker(w1, kernel), make_kron(w1, kernel))
    assert kronecker(w1, kernel).shape == (8, 15, 3, 3)


def test_glora_is_one_weight_and_one_bias() -> None:
    weight, bias, x = drawn(5, 4), drawn(5), drawn(7, 4)
    a1, a2, b1, b2 = drawn(4, 2), drawn(2, 4, seed=1), drawn(5, 2, seed=2), drawn(2, 4, seed=3)
    c, d, e = drawn(4, seed=4), drawn(5, seed=5), drawn(5, seed=6)
    a, b = a1 @ a2, b1 @ b2
    # Equation 10 of the paper, with weights on the left.
    expected = x @ (weight + weight @ a + b).T + weight @ c + d * bias + e + bias
    found = nn.functional.linear(x, weight + of_weight(weight, a1, a2, b1, b2), bias + of_bias(weight, bias, c, d, e))
    assert torch.allclose(found, expected)


def test_glora_of_a_convolution_acts_on_channels() -> None:
    weight, x = drawn(5, 4, 3, 3), drawn(1, 4, 6, 6)
    a1, a2, b1, b2 = drawn(4, 2, 1, 1), drawn(2, 4, 1, 1, seed=1), drawn(5, 2, 1, 1), drawn(2, 4, 3, 3)
    moved = nn.functional.conv2d(nn.functional.conv2d(x, a2), a1)
    expected = nn.functional.conv2d(moved, weight) + nn.functional.conv2d(nn.functional.conv2d(x, b2), b1)
    assert torch.allclose(nn.functional.conv2d(x, of_weight(weight, a1, a2, b1, b2)), expected)
    c, none = drawn(4, seed=4), torch.zeros(5, dtype=torch.float64)
    everywhere = nn.functional.conv2d(c[None, :, None, None].expand(1, 4, 6, 6), weight)
    assert torch.allclose(everywhere[0, :, 0, 0], of_bias(weight, none, c, none, none))


def test_turns_are_orthogonal_and_keep_angles() -> None:
    turns = cayley(drawn(3, 4, 4))
    assert torch.allclose(turns @ turns.mT, torch.eye(4, dtype=torch.float64).expand(3, 4, 4))
    assert torch.allclose(torch.linalg.det(turns), torch.ones(3, dtype=torch.float64))
    assert torch.equal(cayley(torch.zeros(2, 3, 3)), torch.eye(3).expand(2, 3, 3))
    weight = drawn(12, 6)
    moved = turn(turns, weight)
    assert torch.allclose(moved, torch.block_diag(*turns).T @ weight)  # type: ignore[no-untyped-call]
    assert torch.allclose(moved.norm(dim=0), weight.norm(dim=0))


def test_blocks_are_equal() -> None:
    assert [block_size(outputs, 32) for outputs in (320, 768, 1280, 30, 7, 77)] == [16, 24, 32, 5, 1, 7]


def test_scaled_activations_are_a_scaled_weight() -> None:
    weight, x = drawn(5, 4), drawn(3, 4)
    rows, columns = drawn(5), drawn(4, seed=1)
    assert torch.allclose(x @ weight.T + scaled(x @ weight.T, rows, -1), x @ ((1 + rows)[:, None] * weight).T)
    assert torch.allclose((x + scaled(x, columns, -1)) @ weight.T, x @ (weight + scaled(weight, columns, 1)).T)


def test_ranks_fall_as_noise_grows() -> None:
    timesteps = torch.tensor([0, 1, 250, 500, 999, 1000])
    assert ranks_at(timesteps, 8, 0.5, 1.0).tolist() == [8, 7, 7, 6, 4, 4]
    assert ranks_at(timesteps, 8, 0.5, 2.0).tolist() == [8, 7, 6, 5, 4, 4]
    assert ranks_at(timesteps, 3, 0.1, 1.0).tolist() == [3, 2, 2, 2, 1, 1]
    assert ranks_at(torch.tensor([0.4, 700.0]), 10, 0.1, 1.0).tolist() == [9, 3]
