"""Captions by vision models: what is asked, of whom, and how the asking goes.

What a caption depends on is part of its key; `is_how` tells the rest, which may change without asking anything again.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from sdbuild.recipe.prices import price_of
from sdbuild.recipe.spec import Distinct, Some, Spec, Text, refuse

FIELDS = ("stem", "folder", "trigger", "tags", "subject")
"""What an instruction may name; a further pass also `caption`, what the pass before it said."""

_HOW = frozenset(
    {
        *("base_url", "key_variable", "parallel", "attempts", "timeout", "batch", "prices"),
        *("max_cost", "max_images", "device"),
    }
)
"""Settings that no caption depends on: they are in no step's spec."""
_HOW_ASKED = _HOW | {"max_tokens"}
"""The same of models that are asked until their answer is whole."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


def asks_model(caption: Mapping[str, Any]) -> bool:
    """Whether a captioner's spec, as a resolved recipe has it, is that of a model."""
    return "model" in caption


def own_models(spec: Mapping[str, Any]) -> list[str]:
    """Folders in the project of the models that a captions step uses, each once; hub ids are not among them."""
    captions = [dataset["caption"] for dataset in spec["datasets"]]
    local = [each["model"] for each in captions if each["from"] == "transformers" and each["model"].startswith("./")]
    return list(dict.fromkeys(PurePosixPath(model).as_posix() for model in local))


def is_how(caption: Mapping[str, Any], key: str) -> bool:
    """Whether a setting of a model captioner says how it goes about, which no caption depends on."""
    return key in (_HOW if caption["from"] == "transformers" else _HOW_ASKED)


def placeholders(template: str) -> set[str]:
    """Names in braces of a well-formed template."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def fields_used(caption: Mapping[str, Any]) -> set[str]:
    """Fields of a record that a model captioner's instructions name, by its spec."""
    passes = [caption, *(caption.get("chain") or ())]
    named: set[str] = set().union(*(placeholders(each.get("instruction") or "") for each in passes))
    return named & {"stem", "folder", "trigger", "tags"}


def template(text: str, known: tuple[str, ...] = FIELDS) -> str:
    """Refuse a template that names other fields than the known ones."""
    try:
        fields = [(name, format_, how) for _, name, format_, how in string.Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise refuse(f"{error}; write {{{{ and }}}} for braces that are meant as they are") from None
    for name, format_, how in fields:
        if name not in known:
            names = ", ".join(f"{{{each}}}" for each in known)
            raise refuse(f"unknown placeholder {{{name}}}; use {names}")
        if format_ or how:
            raise refuse(f"placeholder {{{name}}} takes no format; remove what follows the name")
    return text


def _of_chain(text: str) -> str:
    return template(text, (*FIELDS, "caption"))


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise refuse("is no address of a server; write one such as http://localhost:11434/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise refuse("holds more than an address; keys stand in the environment, never in a recipe")
    return url


def _variable(name: str) -> str:
    # What stands here by mistake may be a key: no message repeats it.
    if not _VARIABLE.fullmatch(name):
        raise refuse("must be the name of an environment variable, such as OPENAI_API_KEY; never write a key here")
    return name


def _json_able(extra: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(extra, allow_nan=False)
    except (TypeError, ValueError):
        raise refuse("holds something that JSON has not; use texts, numbers, lists and mappings") from None
    return extra


Side = Annotated[int, Field(ge=64, le=8192)]
Words = Annotated[int, Field(ge=1, le=1000)]


class Prices(Spec):
    """What a model costs, in US dollars a million tokens."""

    input: Annotated[float, Field(ge=0, le=1_000_000)]
    """Of what is sent, pictures included."""
    output: Annotated[float, Field(ge=0, le=1_000_000)]
    """Of what is answered."""


class Instructed(Spec):
    """What is asked about a picture."""

    style: Literal["sentence", "tags", "short"] = "sentence"
    """Kind of caption: one or two natural sentences, tags parted by commas, or a short phrase."""
    instruction: Annotated[Text, AfterValidator(template)] | None = None
    """What is asked in place of the style's words; {stem}, {folder}, {trigger}, {tags} and {subject} are filled in."""
    max_words: Words | None = 50
    """Most words of a caption, which CLIP's 75 tokens hold; longer ones are cut where a sentence or tag ends."""
    avoid: Distinct[Text] | None = None
    """Words that captions should not have; tags that have them are dropped."""


class Pass(Instructed):
    """A further pass, which refines what the one before it said."""

    instruction: Annotated[Text, AfterValidator(_of_chain)] | None = None
    """As for the first pass; {caption} is what the pass before said, which is put first where it is not named."""
    picture: bool = True
    """Whether the picture is shown again; without it only words are sent."""


class ModelCaptioner(Instructed):
    """What all vision models have in common."""

    model: Text
    """Name of the model, as the provider has it."""
    subject: str = ""
    """What all pictures show, such as `cat`: {subject} in instructions."""
    tags_file: Annotated[Text, Field(pattern=r"^\.[A-Za-z0-9_.-]+$")] = ".tags"
    """Ending of files beside the pictures that hold tags they have already: {tags} of `cat.png` are in `cat.tags`."""
    languages: Distinct[Text] | None = None
    """Languages such as `[English, German]`; a caption is made in each, of which one is seen at a time."""
    longest_side: Side = 1024
    """Pictures are scaled down to this before they are shown, in pixels."""
    chain: Some[Pass] | None = None
    """Further passes in this order, such as from tags to a sentence."""
    replace: dict[Text, str] | None = None
    """Words that are replaced in finished captions, such as `{"a photo of ": ""}`."""
    prefix: str = ""
    """What goes before each finished caption."""
    suffix: str = ""
    """What goes behind each finished caption."""
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = 512
    """Most tokens of an answer; one that is longer is asked for once more with twice as many."""
    max_images: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None
    """Most pictures of the dataset that one build may caption; with more it stops before the first."""

    def rules(self) -> Iterator[tuple[str, str]]:
        """What instructions name is there, and tags are in files of their own."""
        if self.tags_file.lower() in (".txt", ".caption"):
            yield (
                "tags_file",
                f"what is in {self.tags_file} files counts as written by hand; rename them, such as to .tags",
            )
        if self.subject:
            return
        for at, each in enumerate([self, *(self.chain or ())]):
            if "subject" in placeholders(each.instruction or ""):
                where = "instruction" if at == 0 else f"chain.{at - 1}.instruction"
                yield where, "names {subject}, which is empty; set subject"


class Hosted(ModelCaptioner):
    """Models that are asked over the network."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """How freely the model chooses its words; null leaves it to the server."""
    extra: Annotated[dict[Text, Any], AfterValidator(_json_able)] | None = None
    """Further settings of a request, sent as they are."""
    parallel: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests that are under way at once."""
    attempts: Annotated[int, Field(ge=1, le=100)] = 6
    """How often a request is tried when the server is busy or the connection breaks."""
    timeout: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """Seconds until an answer has to be there, whole."""
    batch: bool = False
    """Whether the provider's batch interface is used: half the price, and answers within a day."""
    prices: Prices | None = None
    """Prices of the model, where sdbuild does not know them or they have changed."""
    max_cost: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    """Most US dollars that one build may spend on the dataset; it stops before, what was paid for is kept."""

    def rules(self) -> Iterator[tuple[str, str]]:
        """Money is counted with prices."""
        yield from super().rules()
        if self.max_cost is not None and self.prices is None and price_of(self.model) is None:
            yield "max_cost", f"the prices of {self.model} are not known here; add prices: {{input: …, output: …}}"


class Anthropic(Hosted):
    """Claude, through Anthropic's Messages API; the key is in the environment: `ANTHROPIC_API_KEY`."""

    source: Literal["anthropic"] = Field(default="anthropic", alias="from")


class OpenAI(Hosted):
    """Any server that speaks OpenAI's Chat Completions: OpenAI, vLLM, Ollama, LM Studio and others."""

    source: Literal["openai"] = Field(default="openai", alias="from")
    base_url: Annotated[Text, AfterValidator(_address)] | None = None
    """Address of the server; null is `OPENAI_BASE_URL`, or OpenAI's own. No caption depends on where a model runs."""
    key_variable: Annotated[Text, AfterValidator(_variable)] = "OPENAI_API_KEY"
    """Environment variable that holds the key; servers with a `base_url` may do without. Others than OpenAI's, and
    other servers, are allowed by `SDBUILD_KEYS` in the environment."""
    detail: Literal["low", "high", "auto"] | None = None
    """How closely OpenAI's models look; null leaves it to the server."""


class Transformers(ModelCaptioner):
    """A model on this machine: BLIP and its like, and vision models that chat."""

    source: Literal["transformers"] = Field(default="transformers", alias="from")
    model: Text
    """Hub id of the model (`org/name`), or its folder in the project with `./` before it."""
    revision: Text | None = None
    """Commit of a hub id, 40 hex digits; it is part of what captions depend on."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 96
    """Most tokens of an answer, which ends there."""
    batch: Annotated[int, Field(ge=1, le=1024)] = 4
    """Pictures that go through the model at once."""
    device: Text | None = None
    """Where it computes, such as `cpu` or `cuda:1`; null is the GPU where there is one."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of weights and computation."""

    def rules(self) -> Iterator[tuple[str, str]]:
        """A model is pinned, or lies in the project."""
        yield from super().rules()
        if self.model.startswith("./"):
            if ".." in self.model.split("/") or self.model.strip("./") == "":
                yield "model", "must be a folder inside the project, such as ./models/blip"
            if self.revision is not None:
                yield "revision", "belongs to a hub id; remove it, what lies in a folder is known by its content"
        elif not re.fullmatch(r"[\w.-]+/[\w.-]+", self.model):
            yield "model", "is neither a hub id (org/name) nor a folder; write ./ before a folder of the project"
        elif self.revision is None or not _COMMIT.fullmatch(self.revision):
            yield "revision", "must be the commit of the model, 40 hex digits, as the history of its files shows it"
