"""LoKr in layers of a base, with LyCORIS' names and start."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from sdbuild.methods.layers import LayersMethod, WeightLayer, uniform
from sdbuild.methods.loha.maths import cored
from sdbuild.methods.lokr.maths import factors, kronecker, through_kronecker
from sdbuild.methods.lokr.spec import Lokr
from sdbuild.methods.spec import Size


class LokrLayer(WeightLayer):
    """A layer to whose weight a Kronecker product is added."""

    def __init__(self, base: nn.Module, spec: Lokr, *, path: str, size: Size) -> None:
        super().__init__(base, spec, path=path, size=size)
        out, into, *kernel = self.shape
        self.kernel, rank = kernel, size.rank
        (out_1, out_2), (in_1, in_2) = factors(out, spec.factor), factors(into, spec.factor)
        first_whole = not (spec.decompose_both and rank < max(out_1, in_1) / 2)
        second_whole = spec.full or rank >= max(out_2, in_2) / 2
        if first_whole:
            self.add("lokr_w1", out_1, in_1)
        else:
            self.add("lokr_w1_a", out_1, rank)
            self.add("lokr_w1_b", rank, in_1)
        if second_whole:
            self.add("lokr_w2", out_2, in_2, *kernel)
        elif spec.decompose_convolutions and any(side > 1 for side in kernel):
            self.add("lokr_t2", rank, rank, *kernel)
            self.add("lokr_w2_a", rank, out_2)
            self.add("lokr_w2_b", rank, in_2)
        else:
            self.add("lokr_w2_a", out_2, rank)
            self.add("lokr_w2_b", rank, in_2 * prod(kernel))
        # Readers of files take a scale of 1 where no factor has a rank.
        self.scale = 1.0 if first_whole and second_whole else size.scale

    def start(self, chance: torch.Generator) -> None:
        """Let the last part of the second factor be zero."""
        own = self.own
        zero = "lokr_w2" if "lokr_w2" in own else "lokr_w2_b"
        for name, parameter in own.items():
            uniform(parameter, 0.0 if name == zero else parameter[0].numel() ** -0.5, chance)

    def factors(self) -> tuple[Tensor, Tensor]:
        """The two of the product, the scale in the first."""
        own = self.own
        first = own["lokr_w1"] if "lokr_w1" in own else own["lokr_w1_a"] @ own["lokr_w1_b"]
        if "lokr_w2" in own:
            second: Tensor = own["lokr_w2"]
        elif "lokr_t2" in own:
            second = cored(own["lokr_t2"], own["lokr_w2_a"], own["lokr_w2_b"])
        else:
            second = (own["lokr_w2_a"] @ own["lokr_w2_b"]).view(len(own["lokr_w2_a"]), -1, *self.kernel)
        return first * self.scale, second

    def filed(self) -> dict[str, Tensor]:
        """Multiply a core with the factor of inputs: readers of cores give `torch.kron` what it does not take."""
        found = super().filed()
        if "lokr_t2" in found:
            core, outputs, inputs = (found.pop(f"lokr_{name}") for name in ("t2", "w2_a", "w2_b"))
            found["lokr_w2_a"] = outputs.mT.contiguous()
            found["lokr_w2_b"] = torch.einsum("ijhw,jr->irhw", core, inputs).flatten(1)
        return found

    def take(self, filed: Mapping[str, Tensor]) -> None:
        """Read a core that was multiplied as factors without one."""
        if "lokr_t2" in self.own and "lokr_t2" not in filed:
            del self.lokr_t2, self.lokr_w2_a, self.lokr_w2_b
            for name in ("lokr_w2_a", "lokr_w2_b"):
                self.add(name, *filed[name].shape)
        super().take(filed)

    def product(self) -> Tensor:
        """Return the Kronecker product."""
        return kronecker(*self.factors())

    def applied_product(self, x: Tensor) -> Tensor:
        """Put inputs of linear layers through one factor after the other."""
        if self.kernel:
            return super().applied_product(x)
        first, second = self.factors()
        return through_kronecker(x, first.to(x.dtype), second.to(x.dtype))


METHOD: LayersMethod[Lokr] = LayersMethod(
    LokrLayer,
    lambda spec: {
        "algo": "lokr",
        "factor": spec.factor or -1,
        "full_matrix": spec.full,
        "decompose_both": spec.decompose_both,
        "use_tucker": spec.decompose_convolutions,
        "rs_lora": spec.rank_stabilised,
    },
)
