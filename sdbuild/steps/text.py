"""The text step: every distinct caption through the base's text encoder, each alone. Importing it is light."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbuild.data.items import ItemStore, export, reuse
from sdbuild.data.records import iter_captions, write_lines
from sdbuild.data.wanted import wanted_texts
from sdbuild.families.digest import read_digest
from sdbuild.steps.contract import Context, Inputs, Items

if TYPE_CHECKING:
    from torch import Tensor

    from sdbuild.families.contract import TextEncoder

COMPONENTS = ("text",)


def run(spec: Mapping[str, Any], inputs: Inputs, out: Path, context: Context) -> Items:
    """Write `text/`: item shards, and `index.jsonl` with the key of each caption."""
    assert inputs.captions is not None
    assert inputs.base is not None
    wanted = wanted_texts(iter_captions(inputs.captions), spec, read_digest(spec, inputs.base, COMPONENTS))
    store = ItemStore(context.items / "text", warn=context.warn)
    previous = reuse(context.previous / "text")
    missing = store.missing(wanted, previous)
    if missing:
        encoder = _load(inputs.base, spec.get("clip_skip", 1))
        _warn_of_long(wanted.values(), encoder, context)
        store.fill(_encode([(key, wanted[key]) for key in missing], encoder, context))
    export(wanted, out / "text", [previous, store])
    rows = ({"text": text, "key": key} for key, text in wanted.items())
    write_lines(out / "text" / "index.jsonl", sorted(rows, key=lambda row: row["text"]))
    return Items(total=len(wanted), computed=len(missing))


def _load(base: Path, clip_skip: int) -> TextEncoder:
    from accelerate import PartialState

    from sdbuild import families

    return families.load(base, clip_skip=clip_skip).load_text(device=str(PartialState().device))


def _warn_of_long(captions: Iterable[str], encoder: TextEncoder, context: Context) -> None:
    lengths = {text: encoder.count_tokens(text) for text in captions}
    long = sorted(text for text, length in lengths.items() if length > encoder.max_tokens)
    if long:
        subject = "1 caption is" if len(long) == 1 else f"{len(long)} captions are"
        context.warn(
            f"{subject} longer than the {encoder.max_tokens} tokens that the encoder takes; the rest is cut off, "
            f"e.g. {lengths[long[0]]} tokens: {_shorten(long[0])!r}"
        )


def _encode(
    chosen: Sequence[tuple[str, str]], encoder: TextEncoder, context: Context
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    context.progress(0, len(chosen), "captions")
    for done, (key, text) in enumerate(chosen, start=1):
        yield key, encoder.encode(text)
        context.progress(done, len(chosen), "captions")


def _shorten(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
