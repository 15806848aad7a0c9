"""What a training sees of its data: which records make a step's batch, and their tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from sdbuild.data.sampler import derive
from sdbuild.training.noise import WHITE, Chance, Colour
from sdbuild.training.randomness import Draw, draw, generator, uniform

CACHE_BYTES = 1_000_000_000
"""Items are kept in memory up to this; the others are read when they are needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One record as it is trained on."""

    key: str
    """Names the record in random draws."""
    digest: str
    """Of its pixels."""
    dataset: int
    """Index in the recipe's list of datasets."""
    text: str
    """Its first caption."""
    texts: tuple[str, ...]
    """What it may be seen with, each as likely as the others."""
    latents: tuple[str, ...]
    """Keys of its latent and of the latent's variants."""
    shape: tuple[int, ...]
    """Of the latent, [C, h, w]; a batch holds one shape."""
    repeats: int = 1
    mask_minimum: float = 0.0
    """Weight of what its mask leaves out."""
    weight: float = 1.0
    """Of its loss: that of pictures that only keep what the base knows (DreamBooth, Ruiz et al. 2023, eq. 2)."""
    kept: bool = False
    """What is to be predicted is what the base predicts."""

    def called(self, place: str | None) -> str:
        """What to call it in a message: by its caption and where its picture lies, or else by the digest."""
        return f"{self.text!r} ({place or self.digest[:12]})"

    def text_at(self, seed: int, step: int, key: str) -> str:
        """Return what it is seen with in a step, as the record `key` of its batch."""
        if len(self.texts) == 1:
            return self.texts[0]
        return self.texts[derive(seed, step, key, "caption") * len(self.texts) >> 64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Inputs that are computed at once, on the device that trains."""

    x: Tensor
    """Scaled latents, float32 [B, C, h, w]."""
    noise: Tensor
    """Like `x`; what the denoiser has to find."""
    shown: Tensor
    """Like `x`; the noise in what the denoiser sees."""
    timesteps: Tensor
    """int64 [B]."""
    condition: Mapping[str, Tensor]
    """Each [B, …]."""
    weights: Tensor | None = None
    """Of the records' losses, [B]; all 1 without."""
    mask: Tensor | None = None
    """Weight of each place of the latent in the loss, float32 [B, 1, h, w] in [0, 1]; None where all of it counts."""
    base_condition: Mapping[str, Tensor] | None = None
    """Condition for the base, whose prediction is the target then."""


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


@dataclass(frozen=True, slots=True)
class EmptyAsZeros:
    """The conditions of a base whose pipeline has zeros in place of the empty prompt, which guidance leads away from.

    What is trained without a caption is then what the grid draws with (`force_zeros_for_empty_prompt` of SDXL).
    """

    given: Conditions

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the conditions, all numbers of an empty text zero."""
        found = self.given(texts)
        if "" not in texts:
            return found
        empty = torch.tensor([text == "" for text in texts])
        return {
            name: tensor.masked_fill(empty.to(tensor.device).view(-1, *[1] * (tensor.ndim - 1)), 0)
            for name, tensor in found.items()
        }


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
    """Makes a step's batches, as a function of seed and step."""

    choose: Callable[[int], Sequence[Example]]
    """The records of a step."""
    size: int
    """Records in a batch, at most."""
    latent: Callable[[str], Mapping[str, Tensor]]
    """Reads the latent item of a key."""
    scale: Callable[[Tensor], Tensor]
    """From stored latents to what the denoiser works on."""
    conditions: Conditions
    seed: int
    timesteps: int
    caption_dropout: float
    device: torch.device
    timestep_of: Callable[[float], int] | None = None
    """Timestep that a uniform number stands for; without it all are as likely."""
    colour: Colour = WHITE
    share: Callable[[int], tuple[int, int]] | None = None
    """Start and end, of so many records, of those that this process computes; all of them without it."""
    base_conditions: Conditions | None = None
    """As the base has them, for records whose target is its prediction."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Where pictures lie, by digest, for messages."""

    def __call__(self, step: int) -> Iterator[Batch]:
        """Yield this process's share of the step's records, `size` of one kind at a time, in the order chosen."""
        examples = self.choose(step)
        pairs = list(zip(distinct(example.key for example in examples), examples, strict=True))
        first, end = self.share(len(pairs)) if self.share else (0, len(pairs))
        for _, alike in groupby(pairs[first:end], key=lambda pair: (pair[1].shape, pair[1].kept)):
            run = list(alike)
            for start in range(0, len(run), self.size):
                part = run[start : start + self.size]
                yield self._batch(step, [key for key, _ in part], [example for _, example in part])

    def _batch(self, step: int, keys: Sequence[str], examples: Sequence[Example]) -> Batch:
        """Assemble a batch on the CPU and send it to the device."""
        draws = [
            draw(
                self.seed,
                step,
                key,
                shape=example.shape,
                timesteps=self.timesteps,
                caption_dropout=self.caption_dropout,
            )
            for key, example in zip(keys, examples, strict=True)
        ]
        pairs = list(zip(examples, draws, strict=True))
        items = [self.latent(example.latents[int(drawn.variant * len(example.latents))]) for example, drawn in pairs]
        chances = [partial(generator, self.seed, step, key) for key in keys]
        noise = [self.colour.target(drawn.noise, chance) for drawn, chance in zip(draws, chances, strict=True)]
        shown = [self.colour.shown(target, chance) for target, chance in zip(noise, chances, strict=True)]
        mean, logvar = (torch.stack([item[name] for item in items]) for name in ("mean", "logvar"))
        # Kingma and Welling 2014, section 2.4: z = mean + sigma * noise. Diffusers clamps the log-variance alike.
        x = mean + (0.5 * logvar.clamp(-30.0, 20.0)).exp() * torch.stack([drawn.latent for drawn in draws])
        texts = [
            "" if drawn.without_caption else example.text_at(self.seed, step, key)
            for key, (example, drawn) in zip(keys, pairs, strict=True)
        ]
        seen = geometry(items, self.device)
        kept = self.base_conditions if examples[0].kept else None
        send = partial(Tensor.to, device=self.device, non_blocking=True)
        sent = send(torch.stack(noise))
        return Batch(
            x=send(self.scale(x)),
            noise=sent,
            shown=send(torch.stack(shown)) if self.colour.perturbation else sent,
            timesteps=send(torch.tensor(self._timesteps(draws, chances))),
            condition=self.conditions(texts) | seen,
            weights=_weights(examples, self.device),
            mask=masks(examples, items, self.device),
            base_condition=None if kept is None else kept(texts) | seen,
        )

    def _timesteps(self, draws: Sequence[Draw], chances: Sequence[Chance]) -> list[int]:
        if self.timestep_of is None:
            return [drawn.timestep for drawn in draws]
        return [self.timestep_of(uniform(chance("timestep"))) for chance in chances]

    def names(self, step: int) -> list[str]:
        """Return what to call a step's records in a message."""
        return [example.called(self.places.get(example.digest)) for example in self.choose(step)]


def _weights(examples: Sequence[Example], device: torch.device) -> Tensor | None:
    weights = [example.weight for example in examples]
    return None if all(weight == 1 for weight in weights) else torch.tensor(weights).to(device)


def masks(examples: Sequence[Example], items: Sequence[Mapping[str, Tensor]], device: torch.device) -> Tensor | None:
    """Stack the masks [1, h, w] of latent items; one without weighs all places alike."""
    if not any("mask" in item for item in items):
        return None
    found = [
        example.mask_minimum + (1 - example.mask_minimum) * item["mask"]
        if "mask" in item
        else torch.ones_like(item["mean"][:1])
        for example, item in zip(examples, items, strict=True)
    ]
    return torch.stack(found).to(device)


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
