"""What a training sees of its data: which records make a step's batch, and their tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from sdbuild.training.randomness import draw

CACHE_BYTES = 1_000_000_000
"""Items are kept in memory up to this; the others are read when they are needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One record as it is trained on."""

    key: str
    """Names the record in random draws."""
    digest: str
    """Of its pixels."""
    text: str
    latents: tuple[str, ...]
    """Keys of its latent and of the latent's variants."""
    shape: tuple[int, ...]
    """Of the latent, [C, h, w]; a batch holds one shape."""
    repeats: int = 1

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return f"{self.text!r} ({self.digest[:12]})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The inputs of one step, on the device that trains."""

    x: Tensor
    """Scaled latents, float32 [B, C, h, w]."""
    noise: Tensor
    """Like `x`."""
    timesteps: Tensor
    """int64 [B]."""
    condition: Mapping[str, Tensor]
    """Each [B, …]."""
    mask: Tensor | None = None
    """Weight of each place of the latent in the loss, float32 [B, 1, h, w] in [0, 1]; None where all of it counts."""


class Conditions(Protocol):
    """Gives captions as the denoiser's conditions."""

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return tensors [B, …] on the device that trains."""


@dataclass(kw_only=True, slots=True)
class Cache:
    """Items in memory, up to a bound."""

    read: Callable[[str], Mapping[str, Tensor]]
    limit: int = CACHE_BYTES
    _items: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    _bytes: int = 0

    def __call__(self, key: str) -> Mapping[str, Tensor]:
        """Return an item; the first ones read stay, which serves random access as well as any other rule."""
        item = self._items.get(key)
        if item is None:
            item = self.read(key)
            size = sum(tensor.numel() * tensor.element_size() for tensor in item.values())
            if self._bytes + size <= self.limit:
                self._items[key] = item
                self._bytes += size
        return item


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """Conditions computed beforehand, by the text step."""

    item: Callable[[str], Mapping[str, Tensor]]
    """Reads the text item of a key."""
    keys: Mapping[str, str]
    """Key of each caption's item."""
    device: torch.device

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Stack the captions' items."""
        items = [self.item(self.keys[text]) for text in texts]
        return {name: torch.stack([item[name] for item in items]).to(self.device) for name in items[0]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """Conditions computed in every step, by a text encoder that is trained."""

    tokenize: Callable[[str], Mapping[str, Tensor]]
    condition: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    device: torch.device
    _tokens: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Encode the captions, with gradients; tokens are kept."""
        for text in texts:
            if text not in self._tokens:
                self._tokens[text] = self.tokenize(text)
        chosen = [self._tokens[text] for text in texts]
        return self.condition(
            {name: torch.stack([tokens[name] for tokens in chosen]).to(self.device) for name in chosen[0]}
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Batches:
    """Makes a step's batch, as a function of seed and step."""

    choose: Callable[[int], Sequence[Example]]
    """The records of a step."""
    latent: Callable[[str], Mapping[str, Tensor]]
    """Reads the latent item of a key."""
    scale: Callable[[Tensor], Tensor]
    """From stored latents to what the denoiser works on."""
    conditions: Conditions
    seed: int
    timesteps: int
    caption_dropout: float
    device: torch.device

    def __call__(self, step: int) -> Batch:
        """Assemble the batch on the CPU and send it to the device."""
        examples = self.choose(step)
        draws = [
            draw(
                self.seed,
                step,
                key,
                shape=example.shape,
                timesteps=self.timesteps,
                caption_dropout=self.caption_dropout,
            )
            for key, example in zip(distinct(example.key for example in examples), examples, strict=True)
        ]
        pairs = list(zip(examples, draws, strict=True))
        items = [self.latent(example.latents[int(drawn.variant * len(example.latents))]) for example, drawn in pairs]
        mean, logvar = (torch.stack([item[name] for item in items]) for name in ("mean", "logvar"))
        # Kingma and Welling 2014, section 2.4: z = mean + sigma * noise. Diffusers clamps the log-variance alike.
        x = mean + (0.5 * logvar.clamp(-30.0, 20.0)).exp() * torch.stack([drawn.latent for drawn in draws])
        texts = ["" if drawn.without_caption else example.text for example, drawn in pairs]
        return Batch(
            x=self.scale(x).to(self.device, non_blocking=True),
            noise=torch.stack([drawn.noise for drawn in draws]).to(self.device, non_blocking=True),
            timesteps=torch.tensor([drawn.timestep for drawn in draws]).to(self.device, non_blocking=True),
            condition=self.conditions(texts) | geometry(items, self.device),
        )

    def names(self, step: int) -> list[str]:
        """Return what to call a step's records in a message."""
        return [example.name for example in self.choose(step)]


def geometry(items: Sequence[Mapping[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    """Stack size and crop of latent items as a condition; none for families that do not look at them."""
    if not all("geometry" in item for item in items):
        return {}
    return {"geometry": torch.stack([item["geometry"] for item in items]).to(device)}


def distinct(keys: Iterable[str]) -> list[str]:
    """Number the second and later occurrences of a key, so that a record seen twice in a batch differs in its draws."""
    seen: dict[str, int] = {}
    result = []
    for key in keys:
        seen[key] = seen.get(key, 0) + 1
        result.append(key if seen[key] == 1 else f"{key}#{seen[key]}")
    return result
