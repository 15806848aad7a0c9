"""Pivotal tuning (after Roich et al. 2022): new words are found first, then a LoRA is trained around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from sdbuild.families.contract import KeyMap
from sdbuild.methods.contract import Adapter, Networks, Strength
from sdbuild.methods.lora.adapter import METHOD as LORA
from sdbuild.methods.pivotal.spec import Pivotal
from sdbuild.methods.precision_loss import PrecisionLoss, precision_loss_of
from sdbuild.methods.state import take_over, without
from sdbuild.methods.tokens import NewTokens, file_of


class PivotalAdapter:
    """New words and a LoRA; see `contract.Adapter`."""

    def __init__(self, tokens: NewTokens, adapter: Adapter, spec: Pivotal) -> None:
        self._tokens = tokens
        self._lora = adapter
        self._spec = spec

    def parameters(self) -> Sequence[tuple[str, Parameter]]:
        """Return the words' vectors, then the LoRA's factors."""
        return [*self._tokens.parameters(), *self._lora.parameters()]

    def state(self) -> dict[str, Tensor]:
        """Return both, by their names."""
        return {name: parameter.detach() for name, parameter in self.parameters()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over both."""
        take_over(self.state(), state)

    def export(self, key_map: KeyMap, name: str) -> dict[str, dict[str, Tensor]]:
        """Return the LoRA's files, the words bundled in the first, and an embedding file a word."""
        files = self._lora.export(key_map, name)
        main = f"{name}.safetensors"
        words = {file_of(each): self._tokens.file(each) for each in self._tokens.tokens}
        return {**files, main: {**files[main], **self._tokens.bundle()}, **words}

    @property
    def precision_loss(self) -> PrecisionLoss | None:
        """Return what the LoRA's file lost."""
        return precision_loss_of(self._lora)

    def summary(self) -> dict[str, str]:
        """Return what the LoRA says, and the words."""
        return {**self._lora.summary(), "ss_tag_strings": ", ".join(each.token for each in self._tokens.tokens)}

    def train(self, mode: bool) -> None:
        """Switch the LoRA's dropout."""
        self._lora.train(mode)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Without the LoRA, and with the words as they started."""
        with without(self._tokens), self._lora.disabled():
            yield

    def set_strength(self, strength: float) -> None:
        """Scale both."""
        self._tokens.set_strength(strength)
        self._lora.set_strength(strength)

    def merge(self) -> None:
        """Merge the LoRA."""
        self._lora.merge()

    def begin(self, step: int, steps: int) -> None:
        """Let either wait outside its part of the steps."""
        self._tokens.train(step < self._spec.tokens_until * steps)
        for _, parameter in self._lora.parameters():
            parameter.requires_grad_(step >= self._spec.lora_from * steps)

    def stepped(self) -> None:
        """Keep the words' lengths while they are trained."""
        if self._tokens.trains:
            self._tokens.retract()


class PivotalMethod:
    """Adds words and a LoRA."""

    def inject(self, base: Networks, spec: Pivotal, *, seed: int) -> PivotalAdapter:
        """Add both, fresh."""
        tokens, networks = _parts(base, spec)
        return PivotalAdapter(tokens, LORA.inject(networks, spec.lora, seed=seed), spec)

    def apply(
        self, pipeline: Any, base: Networks, spec: Pivotal, folder: Path, *, key_map: KeyMap, name: str
    ) -> Strength:
        """Add both from their files."""
        tokens, networks = _parts(base, spec)
        take_over(dict(tokens.parameters()), tokens.read([folder / file_of(each) for each in spec.tokens]))
        return Both(tokens, LORA.apply(pipeline, networks, spec.lora, folder, key_map=key_map, name=name))


class Both:
    """Several things with one strength."""

    def __init__(self, *parts: Strength) -> None:
        self._parts = parts

    def set_strength(self, strength: float) -> None:
        """Set it for all."""
        for part in self._parts:
            part.set_strength(strength)


def _parts(base: Networks, spec: Pivotal) -> tuple[NewTokens, Networks]:
    """Add the words; return them and the networks that the LoRA is for."""
    assert base.text is not None
    modules = {
        name: module for name, module in base.modules.items() if spec.lora.text_encoder or name not in base.text.modules
    }
    return NewTokens(base.text, spec.tokens, spec.norm), Networks(modules=modules)


METHOD = PivotalMethod()
