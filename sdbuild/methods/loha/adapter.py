"""LoHa in layers of a base, with LyCORIS' names and start."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from sdbuild.methods.layers import LayersMethod, WeightLayer, normal
from sdbuild.methods.loha.maths import product, product_of_cores
from sdbuild.methods.loha.spec import Loha
from sdbuild.methods.spec import Size


class LohaLayer(WeightLayer):
    """A layer to whose weight a Hadamard product is added."""

    def __init__(self, base: nn.Module, spec: Loha, *, path: str, size: Size) -> None:
        super().__init__(base, spec, path=path, size=size)
        out, into, *kernel = self.shape
        rank = size.rank
        self.core = spec.decompose_convolutions and any(side > 1 for side in kernel)
        if self.core:
            left, right = (rank, out), (rank, into)
        else:
            left, right = (out, rank), (rank, into * prod(kernel))
        for number in (1, 2):
            self.add(f"hada_w{number}_a", *left)
            self.add(f"hada_w{number}_b", *right)
            if self.core:
                self.add(f"hada_t{number}", rank, rank, *kernel)
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(size.scale, device=self.weight.device), persistent=False)

    def start(self, chance: torch.Generator) -> None:
        """Let one factor be zero."""
        deviations = {"hada_w1_a": 0.1, "hada_w1_b": 1.0, "hada_w2_b": 1.0, "hada_t1": 0.1, "hada_t2": 0.1}
        for name, parameter in self.own.items():
            normal(parameter, deviations.get(name, 0.0), chance)

    def product(self) -> Tensor:
        """Return the Hadamard product."""
        own, scale = self.own, self.scale
        w1_a, w1_b, w2_a, w2_b = (own[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
        if self.core:
            return product_of_cores(own["hada_t1"], w1_a, w1_b, own["hada_t2"], w2_a, w2_b, scale)
        return product(w1_a, w1_b, w2_a, w2_b, scale).view(self.shape)


METHOD: LayersMethod[Loha] = LayersMethod(
    LohaLayer,
    lambda spec: {
        "algo": "loha",
        "use_tucker": spec.decompose_convolutions,
        "rs_lora": spec.rank_stabilised,
    },
)
