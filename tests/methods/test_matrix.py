"""What every method must do, on tiny bases of the families; a row a method and setting, a test a cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from sdbuild import methods
from sdbuild.errors import StepError
from sdbuild.families.contract import Family
from sdbuild.recipe.methods import SPECS
from sdbuild.training.precision import Precision
from sdbuild.training.state import TrainingState
from sdbuild.training.tensorfile import write_tensors
from tests.methods.bench import ROWS, Bench, Drawn, base
from tests.methods.test_weights import ROWS as WEIGHTS
from tests.methods.test_words import ROWS as WORDS

HALF = Precision(compute="bfloat16")
NF4 = Precision(compute="bfloat16", base="nf4")
ONE_FAMILY = {"test_bases_in_other_formats"}
"""Cells that do not depend on the family."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a cell all families of all rows but those that are exempt."""
    if "bench" in metafunc.fixturenames:
        cell = metafunc.function.__name__
        once = cell in ONE_FAMILY
        found = [
            pytest.param((family, name), id=f"{name}-{family}")
            for name, row in ROWS.items()
            for family in row.families[: 1 if once else None]
            if cell not in row.exempt
        ]
        metafunc.parametrize("place", found)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@pytest.fixture
def family(place: tuple[str, str], root: Path) -> Family:
    return base(place[0], root)


@pytest.fixture
def bench(family: Any, place: tuple[str, str]) -> Bench:
    """Of the row, trained; cells leave it as it is."""
    return Bench.trained(family, place[1])


def saved(bench: Bench, folder: Path) -> Path:
    """Write the files of an adapter, as the train step does."""
    for name, tensors in bench.adapter.export(bench.family.key_map, "tiny").items():
        write_tensors(folder / name, tensors, bench.adapter.summary())
    return folder


def between(part: Tensor, base: Tensor, full: Tensor) -> bool:
    whole = (full - base).norm()
    return bool(0 < (part - base).norm() < whole and 0 < (part - full).norm() < whole)


def test_every_kind_of_the_recipe_has_a_row() -> None:
    others = {row["kind"] for row in (*WEIGHTS.values(), *WORDS.values())}
    assert set(methods.METHODS) == {row.method["kind"] for row in ROWS.values()} | others
    cells = {name for name in globals() if name.startswith("test_")}
    assert all(set(row.exempt) <= cells for row in ROWS.values())


def test_starts_as_identity(bench: Bench) -> None:
    assert torch.equal(bench.started, bench.before)


def test_loss_falls_and_only_own_parameters_change(bench: Bench) -> None:
    own = {id(parameter) for _, parameter in bench.adapter.parameters()}
    trainable = [p for module in bench.model.values() for p in module.parameters() if p.requires_grad]
    assert {id(parameter) for parameter in trainable} == own
    assert bench.losses[-1] < bench.losses[0]
    assert not torch.equal(bench.full, bench.before)
    for component, module in bench.model.items():
        now = {name.replace(".base_layer", ""): tensor for name, tensor in module.state_dict().items()}
        assert all(torch.equal(now[name], tensor) for name, tensor in bench.weights[component].items())


def test_names_are_sorted_and_weights_are_float32(bench: Bench) -> None:
    names = [name for name, _ in bench.adapter.parameters()]
    assert names == sorted(names)
    assert list(bench.adapter.state()) == names
    assert all(name.partition(".")[0] in bench.modules for name in names)
    assert all(tensor.dtype == torch.float32 for tensor in bench.adapter.state().values())


def test_another_adapters_weights_are_refused(bench: Bench) -> None:
    state = bench.adapter.state()
    with pytest.raises(ValueError, match="not this adapter's weights"):
        bench.adapter.load_state(dict(list(state.items())[1:]))
    name = next(iter(state))
    with pytest.raises(ValueError, match="has shape"):
        bench.adapter.load_state({**state, name: torch.zeros(1, 1, 1)})


def test_disabled_and_strength_zero_are_the_base(bench: Bench) -> None:
    with bench.adapter.disabled():
        assert torch.equal(bench.predict(), bench.before)
    assert torch.equal(bench.predict(), bench.full)
    assert all(parameter.requires_grad for _, parameter in bench.adapter.parameters())
    bench.adapter.set_strength(0)
    assert torch.equal(bench.predict(), bench.before)
    bench.adapter.set_strength(0.5)
    assert between(bench.predict(), bench.before, bench.full)
    bench.adapter.set_strength(1)
    assert torch.equal(bench.predict(), bench.full)


def loaded(bench: Bench) -> Bench:
    """Another with the same weights, as after a load."""
    other = Bench(bench.family, bench.section, seed=1)
    if bench.section["kind"] not in ("oft", "ia3"):
        assert any(not torch.equal(other.start[name], tensor) for name, tensor in bench.start.items())
    other.adapter.load_state({name: tensor.clone() for name, tensor in bench.adapter.state().items()})
    return other


def test_saved_and_loaded_predicts_the_same(bench: Bench) -> None:
    assert torch.equal(loaded(bench).predict(), bench.full)


def test_merged_equals_unmerged(bench: Bench) -> None:
    other = loaded(bench)
    other.adapter.set_strength(0.5)
    unmerged = other.predict()
    other.adapter.merge()
    merged = other.predict()
    assert torch.allclose(merged, unmerged, atol=1e-5)
    assert torch.equal(other.predict(), merged)
    assert not torch.allclose(unmerged, bench.before, atol=1e-5)


def test_goes_on_after_a_kill_to_the_same_bytes(bench: Bench) -> None:
    chance = {"dropout": 0.3} if "dropout" in type(bench.method).model_fields else {}
    torch.rand(3)
    before = torch.random.get_rng_state()

    def begun(seed: int) -> tuple[Bench, TrainingState]:
        bench_ = Bench(bench.family, {**bench.section, **chance}, seed=seed)
        bench_.adapter.train(True)
        optimizer = torch.optim.AdamW([parameter for _, parameter in bench_.adapter.parameters()], lr=1e-2)
        return bench_, TrainingState(adapter=bench_.adapter, optimizer=optimizer)

    def go(bench: Bench, state: TrainingState, until: int) -> None:
        while state.step < until:
            torch.manual_seed(state.step)
            state.optimizer.zero_grad()
            bench.loss().backward()  # type: ignore[no-untyped-call]
            state.optimizer.step()
            state.step += 1

    straight, state = begun(0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(straight.start[name], tensor) for name, tensor in bench.start.items())
    go(straight, state, 2)
    snapshot = state.snapshot()
    kept = replace(snapshot, tensors={name: tensor.clone() for name, tensor in snapshot.tensors.items()})
    go(straight, state, 3)
    resumed, other = begun(1)
    other.restore(kept)
    go(resumed, other, 3)
    first, second = (each.adapter.export(bench.family.key_map, "tiny") for each in (straight, resumed))
    for name, tensors in first.items():
        assert save(whole(tensors)) == save(whole(second[name]))


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def test_a_pipeline_with_the_file_predicts_the_same(bench: Bench, tmp_path: Path) -> None:
    drawn = Drawn(bench, saved(bench, tmp_path))
    assert torch.allclose(drawn.predict(), bench.full, atol=1e-6)
    drawn.adapter.set_strength(0)
    assert torch.equal(drawn.predict(), bench.before)
    drawn.adapter.set_strength(0.5)
    assert between(drawn.predict(), bench.before, bench.full)
    drawn.adapter.set_strength(1)
    assert torch.allclose(drawn.predict(), bench.full, atol=1e-6)


@pytest.mark.parametrize("precision", [HALF, NF4], ids=["bfloat16", "nf4"])
def test_bases_in_other_formats(bench: Bench, precision: Precision) -> None:
    other = Bench(bench.family, bench.section, precision=precision)
    assert torch.equal(other.started, other.before)
    losses = other.train(3)
    assert losses[-1] < losses[0]
    assert all(tensor.dtype == torch.float32 for tensor in other.adapter.state().values())
    with other.adapter.disabled():
        assert torch.equal(other.predict(), other.before)
    if precision is NF4:
        trained = other.predict()
        with pytest.raises(StepError, match="cannot be merged"):
            other.adapter.merge()
        assert torch.equal(other.predict(), trained)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind, spec in {spec.model_fields["kind"].default: spec for spec in SPECS}.items()
        if kind in ROWS
        for name in ("dropout", "rank_dropout", "module_dropout")
        if name in spec.model_fields
    ],
)
def test_dropout_only_while_training(kind: str, name: str, root: Path) -> None:
    bench = Bench(base("sd1", root), {**ROWS[kind].method, name: 0.5})
    bench.train(3)
    assert torch.equal(bench.predict(), bench.predict())
    bench.adapter.train(True)
    assert not torch.equal(bench.predict(), bench.predict())
    bench.adapter.train(False)
    assert torch.equal(bench.predict(), bench.predict())
