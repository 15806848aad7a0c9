"""Optimizers against their papers in numpy, and what is said where one cannot run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from numpy.typing import NDArray
from torch.nn import Parameter

from sdbuild.errors import RecipeError, StepError
from sdbuild.training import optimizers
from sdbuild.training.ema import Average
from sdbuild.training.optimizers import OPTIMIZERS, group, set_rate

Array = NDArray[np.float64]
Paper = Callable[[Array, list[Array], float, float], Iterator[Array]]
"""From start, gradients, learning rate and weight decay to the weights after each step."""

STEPS = 6
CHANCE = np.random.default_rng(0)
START = CHANCE.normal(size=(6, 5))
GRADIENTS = [CHANCE.normal(size=(6, 5)) for _ in range(STEPS)]


def adamw(p: Array, gradients: list[Array], rate: float, decay: float) -> Iterator[Array]:
    """Loshchilov and Hutter 2019, algorithm 2."""
    m = v = np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        p = p - rate * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + decay * p)
        yield p


def lion(p: Array, gradients: list[Array], rate: float, decay: float) -> Iterator[Array]:
    """Chen et al. 2023, algorithm 2."""
    m = np.zeros_like(p)
    for g in gradients:
        p = p - rate * (np.sign(0.9 * m + 0.1 * g) + decay * p)
        m = 0.99 * m + 0.01 * g
        yield p


def factored(rows: Array, columns: Array) -> Array:
    product: Array = np.outer(rows, columns) / rows.mean()
    return product


def clipped(update: Array) -> Array:
    return update / max(1.0, float(np.sqrt((update**2).mean())))


def adafactor(p: Array, gradients: list[Array], rate: float, decay: float) -> Iterator[Array]:
    """Shazeer and Stern 2018, algorithms 4 and 5, with a given learning rate."""
    rows, columns = np.zeros(6), np.zeros(5)
    for t, g in enumerate(gradients, 1):
        beta = 1 - t**-0.8
        square = g**2 + 1e-30
        rows = beta * rows + (1 - beta) * square.mean(1)
        columns = beta * columns + (1 - beta) * square.mean(0)
        p = p - rate * (clipped(g / np.sqrt(factored(rows, columns))) + decay * p)
        yield p


def came(p: Array, gradients: list[Array], rate: float, decay: float) -> Iterator[Array]:
    """Luo et al. 2023, algorithm 2."""
    m = np.zeros_like(p)
    rows, columns, res_rows, res_columns = np.zeros(6), np.zeros(5), np.zeros(6), np.zeros(5)
    for g in gradients:
        square = g**2 + 1e-30
        rows, columns = 0.999 * rows + 0.001 * square.mean(1), 0.999 * columns + 0.001 * square.mean(0)
        update = clipped(g / np.sqrt(factored(rows, columns)))
        m = 0.9 * m + 0.1 * update
        instability = (update - m) ** 2 + 1e-16
        res_rows = 0.9999 * res_rows + 0.0001 * instability.mean(1)
        res_columns = 0.9999 * res_columns + 0.0001 * instability.mean(0)
        p = p - rate * (m / np.sqrt(factored(res_rows, res_columns)) + decay * p)
        yield p


def prodigy(p: Array, gradients: list[Array], rate: float, decay: float) -> Iterator[Array]:
    """Mishchenko and Defazio 2024, algorithm 4, with the bias correction and the safeguard of the authors' code."""
    start, d, first = p.copy(), 1e-6, 1e-6
    m = v = s = np.zeros_like(p)
    r, beta = 0.0, np.sqrt(0.999)
    for t, g in enumerate(gradients, 1):
        step = d * rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        r = beta * r + d / first * step * float((g * (start - p)).sum())
        s = beta * s + d / first * d * g
        m, v = 0.9 * m + 0.1 * d * g, 0.999 * v + 0.001 * d**2 * g**2
        d = max(d, r / float(np.abs(s).sum()))
        p = p * (1 - decay * step) - step * m / (np.sqrt(v) + d * 1e-8)
        yield p


def schedule_free(p: Array, gradients: list[Array], rate: float, decay: float) -> Iterator[Array]:
    """Defazio et al. 2024, algorithm 1, y of each step; `averages` has x."""
    for y, _ in _schedule_free(p, gradients, rate, decay):
        yield y


def _schedule_free(p: Array, gradients: list[Array], rate: float, decay: float) -> Iterator[tuple[Array, Array]]:
    x, y, z, v, weights = p, p, p, np.zeros_like(p), 0.0
    for t, g in enumerate(gradients, 1):
        v = 0.999 * v + 0.001 * g**2
        z = z - rate * (g / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + decay * y)
        weights += rate**2
        x = x + rate**2 / weights * (z - x)
        y = 0.1 * z + 0.9 * x
        yield y, x


PAPERS: dict[str, tuple[Paper, float]] = {
    "adamw": (adamw, 0.01),
    "adamw-8bit": (adamw, 0.01),
    "adamw-paged": (adamw, 0.01),
    "adamw-8bit-paged": (adamw, 0.01),
    "lion-8bit": (lion, 0.01),
    "lion-8bit-paged": (lion, 0.01),
    "adafactor": (adafactor, 0.01),
    "came": (came, 0.01),
    "prodigy": (prodigy, 1.0),
    "adamw-schedule-free": (schedule_free, 0.01),
}
"""8-bit optimizers keep the moments of parameters as small as these in 32 bits."""


def taken(name: str, start: Array, gradients: list[Array], rate: float, decay: float) -> tuple[Any, list[Array]]:
    """The optimizer, and the weights after each step."""
    parameter = Parameter(torch.tensor(start, dtype=torch.float32))
    optimizer = OPTIMIZERS[name]([parameter], rate, decay)
    weights = []
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
        weights.append(parameter.detach().double().numpy().copy())
    return optimizer, weights


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", PAPERS)
def test_steps_are_those_of_the_paper(name: str, decay: float) -> None:
    paper, rate = PAPERS[name]
    _, weights = taken(name, START, GRADIENTS, rate, decay)
    for ours, expected in zip(weights, paper(START, GRADIENTS, rate, decay), strict=True):
        way = np.abs(expected - START).max()
        assert ours == pytest.approx(expected, abs=2e-4 * way + 3e-7)


def test_prodigy_finds_the_rate_of_a_long_way() -> None:
    """Gradients that all point to a far place: the estimate of the distance grows by orders of magnitude."""
    gradients, start = [START] * 60, np.zeros_like(START)
    optimizer, weights = taken("prodigy", start, gradients, 1.0, 0.0)
    expected = list(prodigy(start, gradients, 1.0, 0.0))
    for ours, theirs in zip(weights, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert optimizer.param_groups[0]["d"] > 1e-4


def test_schedule_free_keeps_the_average() -> None:
    optimizer, _ = taken("adamw-schedule-free", START, GRADIENTS, 0.01, 0.1)
    optimizer.eval()
    (parameter,) = optimizer.param_groups[0]["params"]
    *_, (_, x) = _schedule_free(START, GRADIENTS, 0.01, 0.1)
    assert parameter.detach().numpy() == pytest.approx(x, abs=2e-5)


@pytest.mark.parametrize(("name", "paper"), [("adamw-8bit", adamw), ("lion-8bit", lion)])
def test_moments_in_eight_bits_are_near(name: str, paper: Paper) -> None:
    start = CHANCE.normal(size=(64, 64))
    gradients = [CHANCE.normal(size=(64, 64)) for _ in range(4)]
    optimizer, weights = taken(name, start, gradients, 0.01, 0.0)
    ((_, state),) = optimizer.state.items()
    assert state["state1"].dtype == torch.uint8
    *_, expected = paper(start, gradients, 0.01, 0.0)
    assert np.abs(weights[-1] - expected).mean() < 0.05 * np.abs(expected - start).mean()


def test_sgd_decays_apart_from_the_momentum() -> None:
    optimizer, weights = taken("sgd", START, [np.zeros_like(START)] * 2, 0.1, 0.5)
    assert weights[-1] == pytest.approx(START * 0.95**2, abs=1e-6)
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_run_on_this_machine(name: str) -> None:
    optimizers.check(name, torch.device("cpu"))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_has_no_gradient_waits(name: str) -> None:
    """Of methods in stages, one group has none at first and another none in the end."""
    first, second = (Parameter(torch.ones(64, 64)) for _ in range(2))
    groups = [{"params": [first], "share": 1.0}, {"params": [second], "share": 0.5}]
    optimizer = OPTIMIZERS[name](groups, 0.01, 0.1)
    for moving, waiting in ((first, second), (second, first)):
        before = waiting.detach().clone()
        moving.grad, waiting.grad = torch.ones_like(moving), None
        optimizer.step()
        assert torch.equal(waiting, before)
        assert name == "prodigy" or not torch.equal(moving, torch.ones_like(moving)), "its first steps are too small"


@pytest.mark.parametrize("name", ["adamw-8bit", "lion-8bit-paged", "prodigy", "came", "adamw-schedule-free"])
def test_a_missing_library_brings_the_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> Any:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module.split(".")[0])

    monkeypatch.setattr(optimizers, "_load", missing)
    with pytest.raises(StepError, match=rf'optimizer {name} needs \w+: pip install "sdbuild\[optimizers\]", or use'):
        optimizers.check(name, torch.device("cpu"))


def test_missing_kernels_bring_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise NotImplementedError("no kernel\nfor this")

    monkeypatch.setattr(optimizers, "OPTIMIZERS", {"came": broken})
    with pytest.raises(StepError, match=r"came cannot run on this machine \(no kernel\); use adamw"):
        optimizers.check("came", torch.device("cpu"))


NAMED = [
    (name, Parameter(torch.zeros(1)))
    for name in ("text_encoder.a.lora_A.weight", "text_encoder.a.lora_B.weight", "unet.a.lora_A.weight")
]


def test_parts_have_their_shares_of_the_rate() -> None:
    groups = group(NAMED, learning_rate=1e-3, denoiser=None, text_encoder=5e-4, second_factor=16)
    optimizer = OPTIMIZERS["adamw"](groups, 1e-3, 0.0)
    set_rate(optimizer, 1e-4)
    rates = [each["lr"] for each in optimizer.param_groups]
    assert rates == pytest.approx([0.5e-4, 8e-4, 1e-4])
    assert [each["params"] for each in optimizer.param_groups] == [[parameter] for _, parameter in NAMED]


def test_one_rate_is_one_group() -> None:
    groups = group(NAMED, learning_rate=1e-3, denoiser=None, text_encoder=None, second_factor=1)
    assert [each["params"] for each in groups] == [[parameter for _, parameter in NAMED]]


def test_a_ratio_needs_second_factors() -> None:
    with pytest.raises(RecipeError, match=r"train.lora_plus_ratio: this method has no second factor; remove it"):
        group(NAMED[::2], learning_rate=1e-3, denoiser=None, text_encoder=None, second_factor=16)


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_is_that_of_diffusers(decay: float) -> None:
    parameter = Parameter(torch.tensor(START))
    theirs = EMAModel([parameter], decay=decay)
    ours = Average({"a": parameter}, decay)
    for step, gradient in enumerate(GRADIENTS * 5):
        with torch.no_grad():
            parameter.add_(torch.tensor(gradient))
        theirs.step([parameter])
        ours.update({"a": parameter.detach()}, step)
        assert torch.allclose(ours.weights["a"], theirs.shadow_params[0])
