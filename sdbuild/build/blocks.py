"""`dvc.lock` and `dvc.yaml` as text: their entries cut apart without parsing what is in them.

DVC and sdbuild write both in block style, so a section is what follows a line that is not indented, and an entry what
follows a line with the section's own indentation. A thousand stages are cut in milliseconds, and text that is put
together again keeps its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

Sections = dict[str, dict[str, str]]
"""Text of the entries by section and name; a section that is one line (`schema: '2.0'`) has the entry ``""``."""

_SECTION = re.compile(r"\n([A-Za-z_]+):(.*)")
_OUTSIDE = re.compile(r"\n\S")
_INDENTED = re.compile(r"\n( *)(- |)\S")
_COMMAND = re.compile(r"^ *cmd: ['\"]?sdbuild step ([^:\s'\"]+):", re.MULTILINE)
# Beginnings of lines are looked for as line feeds, with one put before the text: that is six times as fast as `^`.


def split(text: str) -> Sections:
    """Cut a file into its entries; comments before the first section are left out.

    Raises:
        ValueError: it is not laid out as DVC and sdbuild write it.
    """
    if text and not text.endswith("\n"):
        raise ValueError("the last line is not whole")
    text = "\n" + text.removesuffix("\n")
    found = list(_SECTION.finditer(text))
    ends = [*(match.start() for match in found), len(text)]
    if any(line and not line.startswith("#") for line in text[: ends[0]].splitlines()):
        raise ValueError("text before the first section")
    sections: Sections = {}
    for match, end in zip(found, ends[1:], strict=True):
        title, rest, body = match[1], match[2].strip(), text[match.end() : end]
        if title in sections or (rest and body):
            raise ValueError(f"section {title}")
        if rest in ("{}", "[]"):
            sections[title] = {}
        else:
            sections[title] = {"": f"{match[0][1:]}\n"} if rest else dict(_entries(body))
    return sections


def join(sections: Mapping[str, Mapping[str, str]]) -> str:
    """The text of a file from its entries."""
    return "".join(_section(title, entries) for title, entries in sections.items())


def recipe_of(entry: str) -> str | None:
    """The recipe that a stage belongs to, by the text of its entry; None for a stage that is not sdbuild's."""
    match = _COMMAND.search(entry)
    return match[1] if match else None


def _section(title: str, entries: Mapping[str, str]) -> str:
    if "" in entries:
        return entries[""]
    return f"{title}:\n{''.join(entries.values())}" if entries else f"{title}: {{}}\n"


def _entries(body: str) -> Iterator[tuple[str, str]]:
    """Names and texts; `body` begins with the end of the line before, and ends before its own last."""
    first = _INDENTED.match(body)
    if first is None or (_OUTSIDE.search(body) if first[1] else not first[2]):
        raise ValueError("a section that is not indented")
    start = re.compile(rf"\n{first[1]}{first[2]}(?=[^ \n])")
    cuts = [match.start() for match in start.finditer(body)]
    names: set[str] = set()
    for begin, end in zip(cuts, [*cuts[1:], len(body)], strict=True):
        text = f"{body[begin + 1 : end]}\n"
        line = text[: text.index("\n")].strip()
        name = line if first[2] else re.split(r":(?:\s|$)", line)[0].strip("'\"")
        if name in names:
            raise ValueError(f"{name} stands there twice")
        names.add(name)
        yield name, text
