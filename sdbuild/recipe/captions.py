"""Where captions come from: one spec a captioner, told apart by `from`.

In all of them a sidecar beside a picture wins, because a person wrote it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sdbuild.recipe.captioners import Anthropic, OpenAI, Transformers, template
from sdbuild.recipe.spec import Spec, Text, refuse

PLACEHOLDERS = ("stem", "folder", "trigger")
"""What a template may name: the file name without its ending in words, the folder's name, the dataset's trigger."""


def _template(text: str) -> str:
    return template(text, PLACEHOLDERS)


def _file_name(name: str) -> str:
    if name in {"", ".", ".."} or "/" in name or "\\" in name:
        raise refuse(f"{name!r} is not the name of a file in the dataset's folder; leave folders out")
    return name


class Sidecar(Spec):
    """The text file beside each picture: `cat.txt` or `cat.caption` for `cat.png`."""

    source: Literal["sidecar"] = Field(default="sidecar", alias="from")


class Filename(Spec):
    """The picture's file name in words: `red_fox-01.png` is captioned "red fox"."""

    source: Literal["filename"] = Field(default="filename", alias="from")


class Template(Spec):
    """One sentence for all pictures, with placeholders."""

    source: Literal["template"] = Field(default="template", alias="from")
    text: Annotated[Text, AfterValidator(_template)]
    """The sentence; {stem}, {folder} and {trigger} are filled in for each picture."""


class Jsonl(Spec):
    """A file with one JSON object a line, as the Hugging Face image folders have it."""

    source: Literal["jsonl"] = Field(default="jsonl", alias="from")
    file: Annotated[Text, AfterValidator(_file_name)] = "metadata.jsonl"
    """Name of the file in the dataset's folder."""
    name_key: Text = "file_name"
    """Key of the picture's path, relative to the dataset's folder."""
    text_key: Text = "text"
    """Key of the caption."""


CaptionSpec = Annotated[
    Sidecar | Filename | Template | Jsonl | Anthropic | OpenAI | Transformers, Field(discriminator="source")
]
"""To add a captioner: its model above, and its name here."""
