"""What every method must do, on a tiny UNet and text encoder; one row a method and setting."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sdbuild import families, methods
from sdbuild.families.contract import Denoiser, Family, TextEncoder
from sdbuild.methods.contract import Adapter
from tests.adapters import inject
from tests.methods import test_weights as weights
from tests.methods.test_words import ROWS as WORDS
from tests.tiny import make_pipeline

LORA: dict[str, Any] = {
    "kind": "lora",
    "rank": 4,
    "alpha": 2.0,
    "targets": "default",
    "text_encoder": False,
    "dropout": 0.0,
}
ROWS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "lora attention": LORA | {"targets": "attention", "alpha": 4.0},
    "lora all-linear": LORA | {"targets": "all-linear", "alpha": 1.0},
    "lora convolutions": LORA | {"targets": ["conv1", "conv2", "to_q"], "alpha": 3.0},
    "lora text": LORA | {"text_encoder": True},
    "lora text attention": LORA | {"text_encoder": True, "targets": ("to_k", "v_proj", "out_proj")},
}


class Bench:
    """A base with an adapter, and fixed inputs to look at it with."""

    def __init__(self, family: Family, spec: Mapping[str, Any], seed: int = 0) -> None:
        self.family = family
        self.denoiser: Denoiser = family.load_denoiser()
        self.text: TextEncoder = family.load_text()
        self.modules: dict[Any, torch.nn.Module] = {"unet": self.denoiser.module}
        if spec.get("text_encoder"):
            self.modules |= self.text.modules
        self.before = self.predict()
        self.weights = {
            component: {name: tensor.clone() for name, tensor in module.state_dict().items()}
            for component, module in self.modules.items()
        }
        self.adapter: Adapter = inject(self.modules, spec, text=self.text, seed=seed)

    def loss(self) -> Tensor:
        return (self._predict() - 0.5).square().mean()

    def train(self, steps: int = 5) -> list[float]:
        optimizer = torch.optim.AdamW([parameter for _, parameter in self.adapter.parameters()], lr=1e-2)
        losses = []
        for _ in range(steps):
            loss = self.loss()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    @torch.no_grad()
    def predict(self) -> Tensor:
        return self._predict()

    def _predict(self) -> Tensor:
        chance = torch.Generator().manual_seed(0)
        noisy = torch.randn(2, 4, 8, 8, generator=chance)
        pair = [self.text.tokenize(text) for text in ("a cat", "")]
        tokens = {name: torch.stack([each[name] for each in pair]) for name in pair[0]}
        return self.denoiser.predict(noisy, torch.tensor([3, 700]), self.text.condition(tokens))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return families.load(make_pipeline(tmp_path_factory.mktemp("base")))


@pytest.fixture(params=ROWS)
def spec(request: pytest.FixtureRequest) -> dict[str, Any]:
    return ROWS[request.param]


@pytest.fixture
def bench(family: Family, spec: dict[str, Any]) -> Bench:
    return Bench(family, spec)


def test_every_kind_of_the_recipe_has_a_module() -> None:
    others = {spec["kind"] for spec in (*weights.ROWS.values(), *WORDS.values())}
    assert set(methods.METHODS) == {spec["kind"] for spec in ROWS.values()} | others


def test_starts_as_identity(bench: Bench) -> None:
    assert torch.equal(bench.predict(), bench.before)


def test_loss_falls_and_only_own_parameters_change(bench: Bench) -> None:
    own = {id(parameter) for _, parameter in bench.adapter.parameters()}
    trainable = [p for module in bench.modules.values() for p in module.parameters() if p.requires_grad]
    assert {id(parameter) for parameter in trainable} == own
    losses = bench.train()
    assert losses[-1] < losses[0]
    for component, module in bench.modules.items():
        now = {name.replace(".base_layer", ""): tensor for name, tensor in module.state_dict().items()}
        assert all(torch.equal(now[name], tensor) for name, tensor in bench.weights[component].items())


def test_names_are_sorted_and_weights_are_float32(bench: Bench) -> None:
    names = [name for name, _ in bench.adapter.parameters()]
    assert names == sorted(names)
    assert list(bench.adapter.state()) == names
    assert all(tensor.dtype == torch.float32 for tensor in bench.adapter.state().values())


def test_the_start_depends_on_the_seed_alone(family: Family, spec: dict[str, Any]) -> None:
    first = Bench(family, spec).adapter.state()
    torch.rand(3)
    before = torch.random.get_rng_state()
    again, other = Bench(family, spec).adapter.state(), Bench(family, spec, seed=1).adapter.state()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_saved_and_loaded_predicts_the_same(bench: Bench, spec: dict[str, Any]) -> None:
    bench.train()
    other = Bench(bench.family, spec, seed=1)
    other.adapter.load_state({name: tensor.clone() for name, tensor in bench.adapter.state().items()})
    assert torch.equal(other.predict(), bench.predict())


def test_another_adapters_weights_are_refused(bench: Bench) -> None:
    state = bench.adapter.state()
    with pytest.raises(ValueError, match="not this adapter's weights"):
        bench.adapter.load_state(dict(list(state.items())[1:]))
    name = next(iter(state))
    with pytest.raises(ValueError, match="has shape"):
        bench.adapter.load_state({**state, name: torch.zeros(1)})


def test_disabled_and_strength_zero_are_the_base(bench: Bench) -> None:
    bench.train()
    full = bench.predict()
    assert not torch.equal(full, bench.before)
    with bench.adapter.disabled():
        assert torch.equal(bench.predict(), bench.before)
    assert torch.equal(bench.predict(), full)
    assert all(parameter.requires_grad for _, parameter in bench.adapter.parameters())
    bench.adapter.set_strength(0)
    assert torch.equal(bench.predict(), bench.before)


def test_half_strength_lies_between(bench: Bench) -> None:
    bench.train()
    full = bench.predict()
    bench.adapter.set_strength(0.5)
    half = bench.predict()
    whole = (full - bench.before).norm()
    assert 0 < (half - bench.before).norm() < whole
    assert 0 < (half - full).norm() < whole
    bench.adapter.set_strength(1)
    assert torch.equal(bench.predict(), full)


def test_merged_equals_unmerged(bench: Bench) -> None:
    bench.train()
    unmerged = bench.predict()
    bench.adapter.merge()
    assert torch.allclose(bench.predict(), unmerged, atol=1e-5)


def test_dropout_only_while_training(family: Family, spec: dict[str, Any]) -> None:
    bench = Bench(family, spec | {"dropout": 0.5})
    bench.adapter.train(False)
    bench.train()
    assert torch.equal(bench.predict(), bench.predict())
    bench.adapter.train(True)
    assert not torch.equal(bench.predict(), bench.predict())


def test_kohyas_file_and_diffusers_file_hold_the_same(bench: Bench, spec: dict[str, Any]) -> None:
    bench.train()
    files = bench.adapter.export(bench.family.key_map, "tiny")
    assert list(files) == ["tiny.safetensors", "pytorch_lora_weights.safetensors"]
    state, alphas = bench.family.key_map.from_kohya(files["tiny.safetensors"])
    diffusers = files["pytorch_lora_weights.safetensors"]
    assert state.keys() == diffusers.keys()
    assert set(alphas.values()) == {spec["alpha"]}
    for name, tensor in state.items():
        scale = spec["alpha"] / spec["rank"] if "lora_B" in name else 1
        assert torch.equal(tensor * scale, diffusers[name])


@pytest.mark.parametrize("file", ["tiny.safetensors", "pytorch_lora_weights.safetensors"])
def test_diffusers_reads_the_file_and_predicts_the_same(
    bench: Bench, file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench.train()
    tensors = bench.adapter.export(bench.family.key_map, "tiny")[file]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / file)
    pipeline = bench.family.pipeline()
    caplog.clear()
    pipeline.load_lora_weights(tmp_path, weight_name=file, local_files_only=True)
    words = ("unexpected keys", "missing keys", "No LoRA keys associated to UNet")
    assert not [record for record in caplog.records if any(word in record.getMessage() for word in words)]
    loaded = sum("lora_" in name for module in (pipeline.unet, pipeline.text_encoder) for name in module.state_dict())
    assert loaded == len(bench.adapter.state())
    expected = bench.predict()
    bench.denoiser = type(bench.denoiser)(pipeline.unet)  # type: ignore[call-arg]
    bench.text = bench.family.text_of(pipeline)
    assert torch.allclose(bench.predict(), expected, atol=1e-6)
