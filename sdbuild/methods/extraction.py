"""From trained weights and those of their base to a LoRA: the nearest one of a rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sdbuild.families.contract import Component, KeyMap
from sdbuild.methods.lora.files import DIFFUSERS_FILE, named
from sdbuild.methods.spec import UNREAD


@dataclass(frozen=True, kw_only=True, slots=True)
class Factors:
    """Two factors whose product is near a difference."""

    down: Tensor
    """[R, in], of a convolution [R, in, height, width]."""
    up: Tensor
    """[out, R], of a convolution [out, R, 1, 1]."""
    energy: float
    """Sum of the difference's squares."""
    kept: float
    """How much of it the product has."""


def factorise(difference: Tensor, rank: int) -> Factors:
    """Return the product of at most that rank that is nearest to a difference (Eckart and Young 1936).

    Args:
        difference: of a linear layer's weights, [out, in], or of a convolution's, [out, in, height, width].
        rank: of the factors; less where the layer has less.
    """
    left, values, right = torch.linalg.svd(difference.float().flatten(1), full_matrices=False)
    rank = min(rank, len(values))
    root = values[:rank].sqrt()
    down = (root[:, None] * right[:rank]).reshape(rank, *difference.shape[1:])
    up = (left[:, :rank] * root).reshape(len(difference), rank, *[1] * (difference.ndim - 2))
    energies = values.double().square()
    return Factors(down=down, up=up, energy=float(energies.sum()), kept=float(energies[:rank].sum()))


@dataclass(kw_only=True, slots=True)
class Extracted:
    """A LoRA of several networks, by PEFT's names: ``unet.<path>.lora_A.weight`` and so on."""

    state: dict[str, Tensor] = field(default_factory=dict)
    energy: float = 0.0
    """Of the difference in all layers that a LoRA can adapt."""
    kept: float = 0.0
    """How much of it the LoRA has."""
    outside: float = 0.0
    """Energy of the difference in all else: norms, biases, embeddings, text projections."""
    least: tuple[str, float] = ("", 1.0)
    """The layer of which the smallest share is kept, and that share."""

    @property
    def layers(self) -> int:
        """How many layers it adapts."""
        return len(self.state) // 2

    def add(self, path: str, factors: Factors) -> None:
        """Add a layer."""
        down, up = (tensor.cpu().contiguous() for tensor in (factors.down, factors.up))
        self.state |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
        self.energy += factors.energy
        self.kept += factors.kept
        share = factors.kept / factors.energy
        if share < self.least[1]:
            self.least = path, share

    def figures(self) -> dict[str, object]:
        """What there is to say of it, as JSON."""
        path, share = self.least
        return {
            "layers": self.layers,
            "kept": self.kept / self.energy,
            "outside": self.outside / (self.energy + self.outside),
            **({"least": {"layer": path, "kept": share}} if path else {}),
        }

    def files(self, key_map: KeyMap, name: str) -> dict[str, dict[str, Tensor]]:
        """Return kohya's file and diffusers'; alpha is the rank in both."""
        ranks = {
            key.removesuffix(".lora_A.weight"): float(len(tensor))
            for key, tensor in self.state.items()
            if key.endswith(".lora_A.weight")
        }
        diffusers: dict[str, Tensor] = {}
        for module in ranks:
            component, _, path = module.partition(".")
            own = named((component, path), key_map)  # type: ignore[arg-type]
            diffusers |= {
                f"{own}.lora_{factor}.weight": self.state[f"{module}.lora_{factor}.weight"] for factor in "AB"
            }
        kohya = key_map.to_kohya(self.state, ranks)
        return {f"{name}.safetensors": kohya, DIFFUSERS_FILE: diffusers}


def adaptable(network: nn.Module) -> set[str]:
    """Names of the weights that a LoRA can adapt."""
    return {
        f"{path}.weight"
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and path != UNREAD
    }


def extract(
    base: Mapping[Component, nn.Module],
    trained: Mapping[Component, Mapping[str, Tensor]],
    rank: int,
    device: torch.device,
) -> Extracted:
    """Factorise the difference of each linear layer and convolution, one after the other on the device.

    Args:
        base: networks with the base's weights.
        trained: weights of networks like them, by name.
        rank: of each layer's factors, at most.
        device: where to compute.
    """
    found = Extracted()
    for component, network in base.items():
        adapted = adaptable(network)
        for name, own in network.state_dict().items():
            other = trained[component][name]
            if torch.equal(own.to(other.dtype), other):
                continue  # it was not trained: the checkpoint holds the base's weights, rounded at most
            difference = other.to(device, torch.float32) - own.to(device, torch.float32)
            if name not in adapted:
                found.outside += float(difference.double().square().sum())
            else:
                found.add(f"{component}.{name.removesuffix('.weight')}", factorise(difference, rank))
    return found
