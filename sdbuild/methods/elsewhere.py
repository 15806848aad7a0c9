"""Adapters from files of any program, in kohya's and LyCORIS' names: what is in a file says all there is to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sdbuild.families.contract import Component, KeyMap
from sdbuild.methods.glora.maths import of_weight
from sdbuild.methods.ia3.maths import scaled
from sdbuild.methods.layered import Place
from sdbuild.methods.layers import Layer, LayersAdapter, along, base_weight
from sdbuild.methods.loha.maths import cored, product, product_of_cores
from sdbuild.methods.lokr.maths import kronecker
from sdbuild.methods.lora.dora import halves_exchanged
from sdbuild.methods.oft.maths import cayley, turn
from sdbuild.methods.spec import Layered, Size
from sdbuild.methods.targets import all_layers

Part = Mapping[str, Tensor]
"""What a file has of one layer, by the ends of names."""
Parts = Mapping[Place, Part]
COMMON = frozenset({"alpha", "diff_b", "dora_scale"})
"""Ends of names that stand beside those of any kind of change."""
DOWN, UP = "lora_down.weight", "lora_up.weight"
TEXT_ROOT = "text_model."
"""Begins paths in text encoders as key maps have them; networks may be without."""


def parts_of(file: Mapping[str, Tensor], modules: Mapping[Component, nn.Module], key_map: KeyMap) -> Parts | None:
    """Sort a file's tensors by the layers of networks; None where some are of no layer, or named in another way."""
    layers = {
        (component, path.removeprefix(TEXT_ROOT)): (component, path)
        for component, paths in all_layers(modules).items()
        for path in paths
    }
    try:
        found = _split(file, key_map)
        return {layers[component, path.removeprefix(TEXT_ROOT)]: part for (component, path), part in found.items()}
    except (ValueError, KeyError):
        return None


def _split(file: Mapping[str, Tensor], key_map: KeyMap) -> dict[Place, dict[str, Tensor]]:
    found: dict[Place, dict[str, Tensor]] = {}
    if {key.partition(".")[2] for key in file} <= {
        DOWN,
        UP,
        "alpha",
    }:  # the one kind that stands for layers side by side
        state, alphas = key_map.from_kohya(file)
        ends = {"lora_A.weight": DOWN, "lora_B.weight": UP}
        for module, alpha in alphas.items():
            component, _, path = module.partition(".")
            part = {ends[end]: state[f"{module}.{end}"] for end in ends}
            found[component, path] = part | {"alpha": torch.tensor(alpha)}  # type: ignore[index]
        return found
    for key, tensor in file.items():
        name, _, end = key.partition(".")
        place = key_map.path(name)
        exchanged = end == UP and key_map.authors(*place) == (name, True)
        found.setdefault(place, {})[end] = halves_exchanged(tensor) if exchanged else tensor
    return found


def add(parts: Parts, modules: Mapping[Component, nn.Module]) -> LayersAdapter:
    """Wrap the layers that a file changes.

    Raises:
        ValueError: it changes them in a way that is not known, or layers of other sizes.
    """
    layers: dict[Place, Layer] = {}
    for (component, path), part in parts.items():
        parent, _, name = path.rpartition(".")
        owner = modules[component].get_submodule(parent)
        layers[component, path] = FileLayer(getattr(owner, name), part, path)
    for (component, path), layer in layers.items():
        parent, _, name = path.rpartition(".")
        setattr(modules[component].get_submodule(parent), name, layer)
    return LayersAdapter(layers, {})


class FileLayer(Layer):
    """A layer with what a file adds to its weight, and perhaps its bias."""

    def __init__(self, base: nn.Module, part: Part, path: str) -> None:
        super().__init__(base, Layered(kind="file"), path=path, size=Size(rank=1, alpha=1.0))
        self._single = {end: tensor.cpu() for end, tensor in part.items() if not tensor.dim()}
        self._ends = {end: f"filed_{end.replace('.', '_')}" for end in part.keys() - self._single.keys()}
        for end, name in self._ends.items():
            self.register_buffer(name, part[end].to(self.weight.device, torch.float32), persistent=False)
        ends = part.keys() - COMMON
        self._read: Callable[[Part, Layer], Tensor] | None
        self._read = next((read for known, read in READERS if ends <= known), None)
        if self._read is None:
            raise ValueError(f"{path} has {', '.join(sorted(part))}, which is nothing that is read")
        try:
            shape = self.change()[0].shape
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{path} is of another size or lacks a part") from error
        if tuple(shape) != self.shape:
            raise ValueError(f"{path} is of another size")

    def start(self, chance: torch.Generator) -> None:
        """Leave it: nothing of it is trained."""

    @property
    def part(self) -> Part:
        """What the file has of it."""
        return {**self._single, **{end: getattr(self, name) for end, name in self._ends.items()}}

    def adapted(self, x: Tensor, strength: Tensor | float) -> Tensor:
        """Add what the change of weight and bias gives."""
        weight, bias = self.change()
        added = self.applied(x, weight)
        if bias is not None:
            added = added + along(bias, added, self.axis)
        base: Tensor = self.base_layer(x)
        return base + strength * added.to(base.dtype)

    def change(self) -> tuple[Tensor, Tensor | None]:
        """Return it, as readers of the field compute it."""
        part = self.part
        assert self._read is not None
        change = self._read(part, self)
        if "dora_scale" in part:
            base = base_weight(self)
            change = _directed(base + change, part["dora_scale"]) - base
        return change, part.get("diff_b")


def _scale(part: Part, rank: int) -> float:
    return float(part["alpha"]) / rank if "alpha" in part else 1.0


def _unchanged(part: Part, layer: Layer) -> Tensor:
    return torch.zeros(layer.shape, device=layer.weight.device)


def _directed(weight: Tensor, lengths: Tensor) -> Tensor:
    """DoRA: give rows, or columns, the lengths that were learned."""
    axis = 0 if lengths.shape[0] == len(weight) else 1
    own = weight.movedim(axis, 0).flatten(1).norm(dim=1)
    return scaled(weight, lengths.flatten() / own, axis)


def _lora(part: Part, layer: Layer) -> Tensor:
    down, up, middle = part[DOWN], part[UP], part.get("lora_mid.weight")
    first, second = down.flatten(1), up.flatten(1)
    found = second @ first if middle is None else cored(middle, second.mT, first)
    return _scale(part, len(down)) * found.reshape(layer.shape)


def _loha(part: Part, layer: Layer) -> Tensor:
    scale = torch.tensor(_scale(part, len(part["hada_w1_b"])), device=layer.weight.device)
    w1_a, w1_b, w2_a, w2_b = (part[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    if "hada_t1" not in part:
        return product(w1_a, w1_b, w2_a, w2_b, scale).reshape(layer.shape)
    return product_of_cores(part["hada_t1"], w1_a, w1_b, part["hada_t2"], w2_a, w2_b, scale)


def _lokr(part: Part, layer: Layer) -> Tensor:
    factors = []
    ranks = [len(part[name]) for name in ("lokr_w1_b", "lokr_w2_b") if name in part]
    for number in (1, 2):
        factor = part.get(f"lokr_w{number}")
        if factor is None:
            a, b, core = part[f"lokr_w{number}_a"], part[f"lokr_w{number}_b"], part.get(f"lokr_t{number}")
            factor = a @ b if core is None else cored(core, a, b)
        factors.append(factor)
    found = kronecker(*factors).reshape(layer.shape)
    return found * _scale(part, ranks[-1]) if ranks else found


def _glora(part: Part, layer: Layer) -> Tensor:
    a1, a2, b1, b2 = (part[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    return _scale(part, len(a2)) * of_weight(base_weight(layer), a1, a2, b1, b2)


def _oft(part: Part, layer: Layer) -> Tensor:
    blocks = part["oft_blocks"]
    free = (blocks - blocks.mT) / 2
    limit, norm = float(part.get("alpha", torch.zeros(()))) * layer.shape[0], float(free.norm()) * 2
    turned = cayley(free * (limit / norm) if 0 < limit < norm else free)
    return turn(turned - torch.eye(turned.shape[-1], device=turned.device), base_weight(layer))


def _ia3(part: Part, layer: Layer) -> Tensor:
    return scaled(base_weight(layer), part["weight"].flatten(), 1 if part["on_input"] else 0)


def _difference(part: Part, layer: Layer) -> Tensor:
    return part["diff"].reshape(layer.shape)


READERS: tuple[tuple[frozenset[str], Callable[[Part, Layer], Tensor]], ...] = (
    (frozenset(), _unchanged),
    (frozenset({DOWN, UP, "lora_mid.weight"}), _lora),
    (frozenset(f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")), _loha),
    (frozenset(f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")), _lokr),
    (frozenset(f"{name}.weight" for name in ("a1", "a2", "b1", "b2")), _glora),
    (frozenset({"oft_blocks"}), _oft),
    (frozenset({"weight", "on_input"}), _ia3),
    (frozenset({"diff"}), _difference),
)
"""Ends of names of each kind of change, and the function that reads it."""
