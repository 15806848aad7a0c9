"""What a step's batches hold, and that one setting's draws leave those of all others as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from sdbuild.training import moments
from sdbuild.training.examples import Batch, Batches, Example
from sdbuild.training.noise import Colour
from sdbuild.training.optimizers import OPTIMIZERS
from tests.training.toy import CPU, SHAPE, latent

EXAMPLES = [
    Example(key=name, dataset=0, digest=name, text=name, texts=(name,), latents=(name,), shape=SHAPE)
    for name in map(str, range(5))
]
PLAIN = Batches(
    choose=lambda step: EXAMPLES,
    size=5,
    latent=latent,
    scale=lambda x: x,
    conditions=lambda texts: {},
    seed=0,
    timesteps=1000,
    caption_dropout=0.0,
    device=CPU,
)


def only(batches: Batches) -> Batch:
    (batch,) = batches(3)
    return batch


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ({"colour": Colour(offset=0.1)}, {"noise", "shown"}),
        ({"colour": Colour(pyramid=0.3, pyramid_levels=6)}, {"noise", "shown"}),
        ({"colour": Colour(perturbation=0.1)}, {"shown"}),
        ({"timestep_of": lambda number: int(number * 1000)}, {"timesteps"}),
        ({"caption_dropout": 0.5}, set()),
    ],
)
def test_a_setting_changes_its_own_draws_alone(setting: dict[str, Any], changed: set[str]) -> None:
    before, after = only(PLAIN), only(replace(PLAIN, **setting))
    names = ("x", "noise", "shown", "timesteps")
    assert {name for name in names if not torch.equal(getattr(before, name), getattr(after, name))} == changed


def test_parts_of_a_step_are_what_the_whole_is() -> None:
    whole, parts = only(PLAIN), list(replace(PLAIN, size=2)(3))
    assert [len(part.x) for part in parts] == [2, 2, 1]
    for name in ("x", "noise", "timesteps"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_weights_are_there_when_they_differ() -> None:
    assert only(PLAIN).weights is None
    prior = [replace(example, weight=0.5) for example in EXAMPLES[:2]]
    weights = only(replace(PLAIN, choose=lambda step: [*prior, *EXAMPLES[2:]])).weights
    assert weights is not None
    assert weights.tolist() == [0.5, 0.5, 1, 1, 1]


def test_masks_are_stacked_and_their_minimum_is_the_examples() -> None:
    mask = torch.zeros(1, 8, 8)
    mask[0, 2, 3] = 1

    def masked(key: str) -> dict[str, torch.Tensor]:
        return latent(key) | ({"mask": mask} if key == "1" else {})

    examples = [EXAMPLES[0], replace(EXAMPLES[1], mask_minimum=0.25)]
    found = only(replace(PLAIN, latent=masked, choose=lambda step: examples)).mask
    assert found is not None
    assert torch.equal(found[0], torch.ones(1, 8, 8))
    assert torch.equal(found[1], 0.25 + 0.75 * mask)


def test_paged_moments_come_back_to_paged_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: what says that it is paged is put in a buffer that the library gives out."""
    parameter = Parameter(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
    parameter.grad = torch.ones_like(parameter)
    first, second = (OPTIMIZERS["adamw-8bit-paged"]([parameter], 0.1, 0.0) for _ in range(2))
    first.step()
    state = first.state[parameter]
    state["state1"].is_paged = True
    given: list[torch.Tensor] = []

    def buffer(parameter: Parameter, dtype: torch.dtype) -> torch.Tensor:
        given.append(torch.zeros_like(parameter, dtype=dtype))
        return given[-1]

    monkeypatch.setattr(second, "get_state_buffer", buffer)
    named = [("unet.a", parameter)]
    moments.load(second, named, *moments.dump(first, named))
    assert second.state[parameter]["state1"] is given[0]
    assert torch.equal(given[0], state["state1"])
    assert len(given) == 1
    assert second.state[parameter]["step"] == 1


def test_what_an_optimizer_holds_on_the_host_stays_there() -> None:
    parameter = Parameter(torch.zeros(2, device="meta"))
    first, second = (torch.optim.SGD([parameter], lr=0.1) for _ in range(2))
    first.state[parameter] = {"step": torch.tensor(3.0), "mean": torch.zeros(2, device="meta")}
    moments.load(second, [("a", parameter)], *moments.dump(first, [("a", parameter)]))
    assert second.state[parameter]["step"].device.type == "cpu"
    assert second.state[parameter]["mean"].device.type == "meta"
