"""Which questions cover a recipe's pictures, and their keys. Light: the planner counts with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdbuild.captioners.contract import Question
from sdbuild.captioners.prompts import compose, filled
from sdbuild.data.captions import Open
from sdbuild.data.items import item_key
from sdbuild.data.records import CaptionRecord
from sdbuild.data.views import digest_of
from sdbuild.recipe.captioners import own_models

_SAYS = ("model", "revision", "temperature", "extra", "detail", "dtype", "max_tokens")
"""Settings of a model that are part of what it says; as far as the step's spec has them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """The pictures of one dataset that a model is to caption."""

    dataset: int
    trigger: str
    spec: Mapping[str, Any]
    """What captions depend on."""
    settings: Mapping[str, Any]
    """The same, and how to go about."""
    open: tuple[Open, ...]
    content: str | None
    """Digest of a model's files that lie in the project."""

    @property
    def passes(self) -> tuple[Mapping[str, Any], ...]:
        """Settings of each pass."""
        return self.spec, *(self.spec.get("chain") or ())

    @property
    def languages(self) -> tuple[str | None, ...]:
        """Languages that are asked for; None leaves it to the model."""
        return tuple(self.spec.get("languages") or (None,))

    def question(self, each: Open, number: int, language: str | None, before: str | None) -> Question:
        """What is asked about a picture in one pass."""
        asked = self.passes[number]
        fields = {**each.fields, "subject": self.spec.get("subject", "")}
        prompt = compose(asked, fields, language=language, before=before)
        shown = asked.get("picture", True)
        parts = {name: self.spec[name] for name in _SAYS if name in self.spec}
        if shown:
            parts |= {"digest": each.image.digest, "longest_side": self.spec["longest_side"]}
        if self.content is not None:
            parts["content"] = self.content
        return Question(
            key=item_key("caption", captioner=self.spec["from"], prompt=prompt, **parts),
            image=each.image,
            prompt=prompt,
            instruction=filled(asked, fields, before),
            shown=shown,
        )

    def first(self) -> Iterator[Question]:
        """Questions of the first pass."""
        return (self.question(each, 0, language, None) for each in self.open for language in self.languages)


def sections(
    open_: Iterable[Open], spec: Mapping[str, Any], how: Mapping[str, Any], content: str | None
) -> list[Section]:
    """Cut pictures that are left to models by their datasets.

    Args:
        open_: from `caption_records`.
        spec: of the captions step.
        how: of the same step; empty where nothing is asked.
        content: digest of the models that lie in the project.
    """
    by: dict[int, list[Open]] = {}
    for each in open_:
        by.setdefault(each.image.dataset, []).append(each)
    return [
        Section(
            dataset=index,
            trigger=spec["datasets"][index]["trigger"],
            spec=(caption := spec["datasets"][index]["caption"]),
            settings={**caption, **(how["datasets"][index] if how else {})},
            open=tuple(found),
            content=content if caption["from"] == "transformers" and caption["model"].startswith("./") else None,
        )
        for index, found in sorted(by.items())
    ]


def content_of(spec: Mapping[str, Any], project: Path) -> str | None:
    """Digest of the models in the project: the oracle's, which stands in the spec, or else the same one."""
    recorded: str | None = spec.get("reads", {}).get("model")
    folders = own_models(spec)
    if recorded is not None or not folders:
        return recorded
    return digest_of({folder: _listing(project / folder) for folder in folders})


def _listing(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def said_in(rows: Iterable[CaptionRecord]) -> dict[str, str]:
    """What models said of some captions, by key."""
    return dict(pair for row in rows for pair in row.said)


def spelled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The further settings of a request, which a spec holds as one text."""
    found: dict[str, Any] = json.loads(settings["extra"]) if settings.get("extra") else {}
    return found
