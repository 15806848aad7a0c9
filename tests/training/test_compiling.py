"""Compilation: right gradients train, wrong ones are told."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdbuild.errors import StepError
from sdbuild.training.compiling import compile_networks

CPU = torch.device("cpu")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))


def loss_of(net: nn.Module) -> Callable[[], Tensor]:
    x = torch.linspace(-1, 1, 16).view(2, 8)
    return lambda: net(x).square().mean()


@pytest.mark.campaign
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_a_compiled_network_has_the_gradients_of_the_plain_one() -> None:
    net = network()
    compile_networks([net], list(net.parameters()), loss_of(net), CPU)
    assert net._compiled_call_impl is not None
    compiled = torch.autograd.grad(loss_of(net)(), list(net.parameters()))
    plain = network()
    for one, other in zip(compiled, torch.autograd.grad(loss_of(plain)(), list(plain.parameters())), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.skipif(os.name != "posix", reason="asks for a compiler")
def test_wrong_gradients_and_failures_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    parameters = list(net.parameters())
    wrong: dict[str, Any] = {}

    def spoil(self: nn.Module) -> None:
        self.register_forward_hook(wrong["hook"])

    monkeypatch.setattr(nn.Module, "compile", spoil)
    wrong["hook"] = lambda module, inputs, out: out * 1.2
    with pytest.raises(StepError, match=r"gradients are 44% off with torch .* on this cpu; set compile: false"):
        compile_networks([net], parameters, loss_of(net), CPU)

    def fail(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        raise RuntimeError("no such backend\nand more")

    wrong["hook"] = fail
    with pytest.raises(StepError, match=r"train.compile failed \(no such backend\); set compile: false"):
        compile_networks([net], parameters, loss_of(net), CPU)


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder

    def none() -> str:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(StepError, match=r"needs a compiler \(No working C\+\+ compiler found\); install one, or set"):
        compile_networks([], [], lambda: torch.zeros(()), CPU)
