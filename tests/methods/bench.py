"""A tiny base with an adapter, and fixed inputs to look at it with; the rows of the matrix of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sdbuild import families, methods
from sdbuild.families.contract import Denoiser, Family, TextEncoder
from sdbuild.methods.contract import Adapter, Strength
from sdbuild.recipe.methods import method_of
from sdbuild.steps.model import Other, Trained, apply, networks
from sdbuild.training.precision import Precision
from tests.tiny import make_pipeline

BOTH, ALL, TWO_ENCODERS = ("sd1", "sdxl"), ("sd1", "sdxl", "sd3"), ("sdxl",)
CONVOLUTIONS = ["conv1", "conv2", "to_q"]


@dataclass(frozen=True)
class Row:
    """A method with settings, on some families."""

    method: Mapping[str, Any]
    families: tuple[str, ...] = ("sd1",)
    exempt: Mapping[str, str] = field(default_factory=dict)
    """Cells that do not hold by design: name of the test, and why."""


LORA = {"kind": "lora", "rank": 4, "alpha": 2.0}
DORA = LORA | {"dora": True, "dora_axis": "input"}
LOHA = {"kind": "loha", "rank": 2}
LOKR = {"kind": "lokr", "rank": 2, "alpha": 1.0}
GLORA = {"kind": "glora", "rank": 3, "alpha": 2.0}
OFT = {"kind": "oft"}
IA3 = {"kind": "ia3"}
EACH_TIMESTEP = {"test_merged_equals_unmerged": "ranks depend on the timestep, so no one weight is the merged one"}
START_TOO = {"test_names_are_sorted_and_weights_are_float32": "a state holds the start too, which is subtracted"}
ROWS: dict[str, Row] = {
    "lora": Row(LORA, ALL),
    "dreambooth_lora": Row(LORA | {"kind": "dreambooth_lora"}, BOTH),
    "lora attention": Row(LORA | {"targets": "attention", "alpha": 4.0}),
    "lora all-linear": Row(LORA | {"targets": "all-linear", "alpha": 1.0}),
    "lora convolutions": Row(LORA | {"targets": CONVOLUTIONS, "alpha": 3.0}),
    "lora text": Row(LORA | {"text_encoder": True}, BOTH),
    "lora text attention": Row(LORA | {"text_encoder": True, "targets": ["to_k", "v_proj", "out_proj"]}),
    "lora ranks": Row(
        LORA
        | {"text_encoder": True, "rank_stabilised": True}
        | {
            "parts": [
                {"modules": "text_encoder*", "rank": 3},
                {"modules": "attn*.to_q", "rank": 2},
                {"modules": "fc1", "rank": 2, "alpha": 1.5},
            ]
        },
        ("sd1", "sd3"),
    ),
    "lora orthogonal": Row(LORA | {"orthogonal": True}),
    "lora timesteps": Row(LORA | {"timestep_ranks": {"least": 0.25}, "orthogonal": True}, ALL, EACH_TIMESTEP),
    "lora both orthogonal": Row(
        LORA | {"orthogonal": "both", "targets": CONVOLUTIONS, "rank_stabilised": True}, exempt=START_TOO
    ),
    "t-lora timesteps": Row(
        LORA | {"timestep_ranks": {"least": 0.25}, "orthogonal": "both", "text_encoder": True},
        ALL,
        EACH_TIMESTEP | START_TOO,
    ),
    "dora": Row(DORA | {"text_encoder": True}, ALL),
    "dora convolutions": Row(DORA | {"targets": CONVOLUTIONS}),
    "dora all-linear": Row(DORA | {"targets": "all-linear", "text_encoder": True}, TWO_ENCODERS),
    "dora outputs": Row(DORA | {"dora_axis": "output", "text_encoder": True}, ALL),
    "dora outputs convolutions": Row(DORA | {"dora_axis": "output", "targets": CONVOLUTIONS}),
    "loha": Row(LOHA, ALL),
    "loha text": Row(LOHA | {"text_encoder": True, "parts": [{"modules": "text_encoder*", "rank": 1}]}, TWO_ENCODERS),
    "loha convolutions": Row(LOHA | {"targets": CONVOLUTIONS}),
    "loha cores": Row(LOHA | {"targets": CONVOLUTIONS, "decompose_convolutions": True}),
    "lokr": Row(LOKR, ALL),
    "lokr text": Row(LOKR | {"text_encoder": True, "factor": 4}, TWO_ENCODERS),
    "lokr full": Row(LOKR | {"full": True}, ALL),
    "lokr both": Row(LOKR | {"decompose_both": True, "rank": 1, "factor": 8, "rank_stabilised": True}),
    "lokr convolutions": Row(LOKR | {"targets": CONVOLUTIONS, "rank": 1}),
    "lokr cores": Row(LOKR | {"targets": CONVOLUTIONS, "rank": 1, "decompose_convolutions": True}),
    "glora": Row(GLORA, ALL),
    "glora text": Row(GLORA | {"text_encoder": True, "activations": False}, TWO_ENCODERS),
    "glora convolutions": Row(GLORA | {"targets": CONVOLUTIONS}),
    "oft": Row(OFT, ALL),
    "oft text": Row(OFT | {"text_encoder": True}, TWO_ENCODERS),
    "oft convolutions": Row(OFT | {"targets": CONVOLUTIONS}),
    "ia3": Row(IA3, ALL),
    "ia3 text": Row(IA3 | {"text_encoder": True}, TWO_ENCODERS),
    "ia3 convolutions": Row(IA3 | {"targets": CONVOLUTIONS}),
}
"""By name; the first of a kind has the kind's name."""


@cache
def base(name: str, root: Path) -> Family:
    """The tiny base of a family, made once."""
    return families.load(make_pipeline(root / name, family=name, t5=False))


class Bench:
    """A base with a fresh adapter."""

    def __init__(
        self, family: Family, section: Mapping[str, Any], *, seed: int = 0, precision: Precision | None = None
    ) -> None:
        precision = precision or Precision(compute="float32")
        cpu = torch.device("cpu")
        self.family, self.section, self.method, self._precision = family, section, method_of(section), precision
        self.denoiser: Denoiser = precision.load(family.load_denoiser, cpu)
        self.text: TextEncoder = precision.load(family.load_text, cpu)
        model: dict[Any, nn.Module] = {self.denoiser.component: self.denoiser.module, **self.text.modules}
        precision.settle(model.values(), cpu)
        found = networks(self.method, family, model, self.text)
        self.modules = found.modules
        self.before = self.predict()
        self.weights = {
            component: {name: tensor.clone() for name, tensor in module.state_dict().items()}
            for component, module in model.items()
        }
        self.model = model
        self.adapter: Adapter = methods.load(self.method.kind).inject(found, self.method, seed=seed)

        self.started = self.predict()
        self.start = {name: tensor.clone() for name, tensor in self.adapter.state().items()}

    @classmethod
    @cache
    def trained(cls, family: Any, name: str) -> Bench:
        """One of a row, trained once for all cells, which leave it as it is."""
        bench = cls(family, ROWS[name].method)
        bench.losses = bench.train()
        bench.full = bench.predict()
        return bench

    losses: list[float]
    full: Tensor

    def loss(self) -> Tensor:
        return (self._predict().float() - 0.5).square().mean()

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
        with self._precision.autocast(torch.device("cpu")):
            condition = {
                name: tensor.to(self._precision.dtype) if tensor.is_floating_point() else tensor
                for name, tensor in self.condition().items()
            }
            return self.denoiser.predict(noisy(self.family).to(self._precision.dtype), TIMESTEPS, condition)

    def condition(self) -> dict[str, Tensor]:
        pair = [self.text.tokenize(text) for text in ("a cat", "")]
        tokens = {name: torch.stack([each[name] for each in pair]) for name in pair[0]}
        return {**self.text.condition(tokens), "geometry": torch.tensor([[64, 64, 0, 0, 64, 64]] * 2)}


TIMESTEPS = torch.tensor([3, 700])


def noisy(family: Family) -> Tensor:
    chance = torch.Generator().manual_seed(0)
    return torch.randn(2, 16 if family.name == "sd3" else 4, 8, 8, generator=chance)


class Drawn:
    """A pipeline with an adapter from its files, looked at with the same inputs."""

    def __init__(self, bench: Bench, folder: Path, others: Sequence[Other] = ()) -> None:
        self.family = bench.family
        self.pipeline = self.family.pipeline()
        self.adapter: Strength = apply(
            self.pipeline, self.family, Trained(method=bench.method, folder=folder, name="tiny"), others
        )

    @torch.no_grad()
    def predict(self) -> Tensor:
        text = self.family.text_of(self.pipeline)
        condition = Bench.condition(SimpleNamespace(text=text))  # type: ignore[arg-type]
        module = getattr(self.pipeline, self.family.denoiser)
        own = self.family.load_denoiser()
        denoiser = type(own)(module, *([own.timesteps] if hasattr(own, "timesteps") else []))  # type: ignore[call-arg]
        return denoiser.predict(noisy(self.family), TIMESTEPS, condition)
