"""Number formats: each trains, is exact on resuming, and takes the memory that it promises."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils.integrations import dequantize_module_weight
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from sdbuild.errors import StepError
from sdbuild.recipe.train import Train
from sdbuild.steps import train
from sdbuild.steps.contract import Inputs
from sdbuild.training import precision as module
from sdbuild.training.precision import QUANTISED, Precision, expected, quantisable
from tests.tiny import make_pipeline
from tests.training.material import Listener, make_inputs, make_spec

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    return make_inputs(folder, make_pipeline(folder / "base"), pictures=3)


def trained(folder: Path, inputs: Inputs, *, method: Mapping[str, Any] | None = None, **settings: Any) -> Any:
    """Train for a few steps; return the adapter's tensors."""
    (folder / "out").mkdir(parents=True)
    spec = make_spec(method=method, **{"steps": 3, **settings})
    train.run(spec, inputs, folder / "out", Listener(folder))
    return load_file(folder / "out" / "adapter" / "pytorch_lora_weights.safetensors")


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def far(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return how far the second factors lie apart, relative to their size."""
    names = [name for name in one if "lora_B" in name]
    apart = sum((one[name] - other[name]).square().sum() for name in names)
    size = sum(one[name].square().sum() for name in names)
    return float(torch.as_tensor(apart / size).sqrt())


@pytest.mark.parametrize("text", [False, True], ids=["unet", "text encoder too"])
def test_gradient_checkpointing_changes_no_byte(tmp_path: Path, inputs: Inputs, text: bool) -> None:
    method = {"text_encoder": text, "dropout": 0.3}
    found = [
        trained(tmp_path / str(kept), inputs, method=method, gradient_checkpointing=not kept) for kept in (True, False)
    ]
    assert same(*found)


@pytest.mark.parametrize(
    ("settings", "near"),
    [
        ({"precision": "bfloat16"}, 0.5),
        ({"precision": "bfloat16", "base_precision": "float32"}, 0.5),
        ({"precision": "float16"}, 0.5),
        ({"base_precision": "int8"}, 0.7),
        ({"precision": "bfloat16", "base_precision": "nf4"}, 1.2),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_formats_train_and_give_the_same_bytes_again(
    tmp_path: Path, inputs: Inputs, settings: dict[str, Any], near: float
) -> None:
    exact = trained(tmp_path / "exact", inputs)
    found = [trained(tmp_path / name, inputs, **settings) for name in ("one", "two")]
    assert all(tensor.dtype == torch.float32 for tensor in found[0].values())
    assert same(*found)
    assert 0 < far(exact, found[0]) < near


def test_float16_skips_steps_that_overflow_and_resumes_its_scale(
    tmp_path: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Precision.scaler
    monkeypatch.setattr(Precision, "scaler", lambda self, device: _large(real(self, device)))
    whole = trained(tmp_path / "whole", inputs, precision="float16", steps=30)
    (tmp_path / "stopped" / "out").mkdir(parents=True)
    stopped = Listener(tmp_path / "stopped", stop_at=20, error=KeyboardInterrupt())
    monkeypatch.setattr("sdbuild.training.loop.REPORT_SECONDS", 0.0)
    spec = make_spec(steps=30, precision="float16")
    with pytest.raises(KeyboardInterrupt):
        train.run(spec, inputs, tmp_path / "stopped" / "out", stopped)
    losses = [figures["loss"] for _, figures in stopped.told if figures]
    assert losses[0] == pytest.approx(losses[1], rel=0.5)  # skipped, not broken down
    stopped.stop_at = None
    train.run(spec, inputs, tmp_path / "stopped" / "out", stopped)
    assert same(whole, load_file(tmp_path / "stopped" / "out" / "adapter" / "pytorch_lora_weights.safetensors"))


def _large(scaler: Any) -> Any:
    scaler._init_scale = 2.0**40
    return scaler


def test_a_gradient_that_overflows_unscaled_is_a_breakdown() -> None:
    infinite = torch.tensor(float("inf"))
    scaler = Precision(compute="float16").scaler(CPU)
    scaler.scale(torch.zeros(1))
    assert expected(infinite, scaler) == 0
    scaler.update(0.5)
    assert expected(infinite, scaler) == infinite
    assert expected(infinite, Precision(compute="float32").scaler(CPU)) == infinite


def test_quantised_layers_are_those_of_blocks_and_compute_nearly_the_same() -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        inner = nn.ModuleDict({"up": nn.Linear(64, 256), "norm": nn.LayerNorm(256), "down": nn.Linear(256, 64)})
        return nn.ModuleDict({"blocks": nn.ModuleList([inner]), "last": nn.Linear(64, 64)}).requires_grad_(False)

    def run(net: Any, x: Tensor) -> Tensor:
        block = net["blocks"][0]
        out: Tensor = net["last"](block["down"](block["norm"](block["up"](x))))
        return out

    x = torch.randn(8, 64)
    x[:, 0] = 20  # an outlier, which int8 keeps apart
    exact = run(network(), x)
    for base, near in (("int8", 0.02), ("nf4", 0.2)):
        held = network()
        assert [path for path, _ in quantisable(held)] == ["blocks.0.up", "blocks.0.down"]
        Precision(compute="float32", base=base).settle([held], CPU)
        seen = x.clone().requires_grad_()
        found = run(held, seen)
        torch.autograd.backward(found.sum())
        assert seen.grad is not None
        assert seen.grad.isfinite().all()
        assert 0 < (found - exact).norm() / exact.norm() < near
        kinds = {path: str(layer.weight.dtype) for path, layer in quantisable(held)}
        assert set(kinds.values()) <= {"torch.int8", "torch.uint8"}


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_a_quantised_base_may_be_read_between_steps(base: str, tmp_path: Path, inputs: Inputs) -> None:
    """As DoRA does in every step, and GLoRA when an adapter on the way is written."""
    network = nn.ModuleDict({"0": nn.Linear(64, 64).requires_grad_(False)})
    Precision(compute="float32", base=base).settle([network], CPU)
    seen = torch.randn(8, 64)
    found = []
    for _ in range(3):
        weight = dequantize_module_weight(network["0"])
        assert weight.shape == (64, 64)
        found.append(network["0"](seen))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    adapter = trained(tmp_path, inputs, method={"dora": True}, base_precision=base)
    assert all(tensor.isfinite().all() for tensor in adapter.values())


def test_a_look_without_gradients_leaves_a_quantised_base_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As validation is; bitsandbytes packs weights anew there for processors with AVX512-BF16, and cannot go back."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    for base in QUANTISED:
        for into, out in ((128, 64), (24, 96), (96, 24)):
            network = nn.ModuleDict({"0": nn.Linear(into, out).requires_grad_(False)})
            Precision(compute="float32", base=base).settle([network], CPU)
            layer, seen = network["0"], torch.randn(8, into)
            weight = dequantize_module_weight(layer)
            with torch.no_grad():
                found = layer(seen)
            assert torch.equal(dequantize_module_weight(layer), weight)
            seen.requires_grad_()
            again = layer(seen)
            assert torch.equal(again, found)
            again.sum().backward()
            assert seen.grad is not None
            assert torch.allclose(seen.grad, weight.sum(0).expand_as(seen), atol=1e-2 if base == "int8" else 1e-4)


@pytest.mark.parametrize(
    ("precision", "base"), [("float32", "bfloat16"), ("bfloat16", "float16"), ("float16", "bfloat16")]
)
def test_a_base_is_not_held_in_another_half_format(precision: str, base: str) -> None:
    with pytest.raises(ValidationError, match=r"refused|rule") as caught:
        Train.model_validate({"precision": precision, "base_precision": base})
    ((_, message),) = caught.value.errors()[0]["ctx"]["broken"]
    assert message.startswith(f"{base} cannot hold a base that is computed in {precision}; set precision: {base}")


def test_what_cannot_run_here_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(layer: nn.Linear, compute: torch.dtype) -> nn.Linear:
        raise ImportError("no bitsandbytes")

    def broken(layer: nn.Linear, compute: torch.dtype) -> nn.Linear:
        raise RuntimeError("no kernel image\nand more")

    monkeypatch.setattr(module, "QUANTISED", {"int8": absent, "nf4": broken})
    with pytest.raises(StepError, match=r'int8 needs bitsandbytes.*pip install "sdbuild\[optimizers\]", or use bfl'):
        Precision(compute="bfloat16", base="int8").check(CPU)
    with pytest.raises(StepError, match=r"nf4 cannot run on this machine \(no kernel image\); use float32"):
        Precision(compute="float32", base="nf4").check(CPU)


@pytest.mark.parametrize(("capability", "crawling"), [("AVX2", {"bfloat16", "float16"}), ("AVX512", set())])
def test_half_formats_without_kernels_are_known(
    capability: str, crawling: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    formats = ("float32", "bfloat16", "float16")
    assert {name for name in formats if Precision(compute=name).crawls(CPU)} == crawling
    assert not Precision(compute="bfloat16").crawls(torch.device("cuda"))
