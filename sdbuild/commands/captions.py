"""Commands to read and edit captions."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbuild.build.project import find_project
from sdbuild.console import Console
from sdbuild.errors import DataError, Problem, UsageError
from sdbuild.storage.phrases import did_you_mean

if TYPE_CHECKING:
    from sdbuild.review.findings import Row
    from sdbuild.review.gather import Entry, Material
    from sdbuild.review.sidecars import Change

HASTY = 2.0
"""Seconds: an editor that ends sooner has perhaps only passed the file to a window."""


class _OrTable(argparse._SubParsersAction):  # type: ignore[type-arg]
    """What can be done with captions; a recipe's name in its place shows them."""

    class _Any(dict[str, argparse.ArgumentParser]):
        def __contains__(self, name: object) -> bool:
            return True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.choices = self._Any(self._name_parser_map)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        first, known = values[0], self._name_parser_map
        if first not in known and any(not value.startswith("-") for value in values[1:]):
            parser.error(f"no command {first}{did_you_mean(first, known)}; --help shows all")
        super().__call__(parser, namespace, values if first in known else ["show", *values], option_string)


def add_to(commands: Any) -> None:
    """Declare the commands to the parser."""
    captions = commands.add_parser(
        "captions",
        help="read, check and edit captions",
        description="`sdbuild captions RECIPE` shows captions and what is worth a look; the commands edit them.",
    )
    actions = captions.add_subparsers(action=_OrTable, title="commands", required=True, metavar="RECIPE | COMMAND")

    show = _action(actions, "show", "captions and what is worth a look; the same as without `show`", _show)
    show.add_argument("--problems", action="store_true", help="only pictures with a problem")
    show.add_argument("--json", action="store_true", help="for programs")

    page = _action(actions, "page", "a page in the browser to read and edit them beside their pictures", _page)
    page.add_argument("--port", type=int, default=0, help="of the local server (any that is free)")
    page.add_argument("--no-browser", action="store_true", help="only print the address")

    edit = _action(actions, "edit", "all, or those of some pictures, in $VISUAL or $EDITOR", _edit)
    edit.add_argument("pictures", nargs="*", metavar="PICTURE")
    edit.add_argument("--changed", action="store_true", help="those whose picture changed under a hand-written caption")
    edit.add_argument("--problems", action="store_true", help="those with a problem")
    edit.add_argument("--from", dest="source", type=Path, metavar="FILE", help="take a text that was kept")

    confirm = _action(actions, "confirm", "hand-written captions fit their pictures, which changed", _confirm)
    confirm.add_argument("pictures", nargs="*", metavar="PICTURE")
    confirm.add_argument("--changed", action="store_true", help="all that are asked about")

    find = _action(actions, "find", "captions that hold a text", _find)
    replace = _action(actions, "replace", "put another text in its place; tells what it would do", _replace)
    for command in (find, replace):
        command.add_argument("text", metavar="TEXT")
        command.add_argument("--regex", action="store_true", help="TEXT is a regular expression")
        command.add_argument("-i", "--ignore-case", action="store_true")
    replace.add_argument("new", metavar="NEW", help="with --regex it may hold \\1 or \\g<name>")
    replace.add_argument("--write", action="store_true", help="do it; without, it is only told")

    tags = _action(actions, "tags", "how often each tag is there", _tags)
    tags.add_argument("--separator", default=",", help="what parts tags (,)")
    tags.add_argument("--json", action="store_true", help="for programs")

    export = _action(actions, "export", "write them to a .jsonl or .csv file, or as sidecars into a folder", _export)
    export.add_argument("target", type=Path, metavar="FILE|DIR")
    export.add_argument("--trigger", action="store_true", help="with the trigger that a build puts in front")
    export.add_argument("--replace", action="store_true", help="replace files that are there already")

    read = _action(actions, "import", "make sidecars of a .jsonl or .csv file, or of a folder of sidecars", _import)
    read.add_argument("source", type=Path, metavar="FILE|DIR")
    read.add_argument("--replace", action="store_true", help="also where a hand-written caption says something else")
    read.add_argument("-n", "--dry-run", action="store_true", help="only tell what would be written")


def _action(actions: Any, name: str, words: str, run: Any) -> Any:
    parser = actions.add_parser(name, help=words)
    parser.add_argument("recipe", metavar="RECIPE")
    parser.set_defaults(run=run)
    return parser


def _gather(options: argparse.Namespace) -> Material:
    from sdbuild.review.gather import gather

    return gather(find_project(), options.recipe)


def _show(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.review.findings import Inspector, counts

    material = _gather(options)
    inspector = Inspector(material)
    rows = inspector.rows(material.entries)
    shown = [row for row in rows if row.is_problem] if options.problems else rows
    limit = inspector.counter.limit if inspector.counter else None
    if options.json:
        found = {
            "recipe": material.recipe.name,
            "limit": limit,
            "counts": counts(rows),
            "pictures": [row.as_json() for row in shown],
            "troubles": material.troubles,
        }
        console.json(found)
        return 0
    console.table(("picture", "caption", "origin", "tokens", "worth a look"), map(_cells, shown))
    if inspector.why_not:
        console.warn(inspector.why_not)
    for trouble in material.troubles:
        console.warn(trouble)
    console.say(_summary(rows, limit))
    return 0


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    entry = row.entry
    tokens = "" if row.tokens is None or not entry.bare else str(row.tokens)
    return (
        entry.path,
        " | ".join(entry.texts),
        _origin(entry),
        tokens,
        "; ".join(each.words for each in row.findings if each.is_problem),
    )


def _origin(entry: Entry) -> str:
    from sdbuild.review.gather import HAND

    return "by hand" if entry.origin == HAND else entry.origin or "-"


_WORDS = {
    "caption": "without a caption",
    "changed": "changed under a hand-written caption",
    "long": "with a caption that is too long",
    "duplicate": "with another picture's caption",
    "alike": "that look like another",
    "trigger": "that get the trigger in front",
}


def _summary(rows: Sequence[Row], limit: int | None) -> str:
    from sdbuild.review.findings import counts

    by_hand = sum(_origin(row.entry) == "by hand" for row in rows)
    words = [f"{_pictures(len(rows))}, {by_hand} captioned by hand"]
    words += [f"{count} {_WORDS[kind]}" for kind, count in counts(rows).items()]
    if limit is not None:
        words.append(f"the text encoder takes {limit} tokens")
    return "; ".join(words)


def _page(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.review.server import serve

    if not 0 <= options.port < 65536:
        raise UsageError(f"--port {options.port}: a port is a number from 0 to 65535")
    browser = console.is_terminal and not options.no_browser
    serve(find_project(), options.recipe, console, port=options.port, browser=browser)
    return 0


def _edit(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.review import editing
    from sdbuild.review.findings import Inspector

    material = _gather(options)
    name = material.recipe.name
    path = options.source
    if path is None:
        rows = Inspector(material).rows(material.entries)
        text = editing.as_text(material, _chosen(options, material, rows))
        started = time.monotonic()
        path = editing.edit(material.project, name, text)
        if editing.read_text(path) == text:
            console.say("nothing was changed")
            if time.monotonic() - started > HASTY:
                path.unlink()
            else:
                console.say(f"if the editor is still open, save there: {editing.again(name, path)}")
            return 0
    try:
        _write(material, editing.changes_of(material, path), console)
    except DataError as error:
        kept = Problem(message=f"your text is kept: {editing.again(name, path)}")
        raise DataError([*error.problems, kept]) from None
    if options.source is None:
        path.unlink()
    return 0


def _chosen(options: argparse.Namespace, material: Material, rows: Sequence[Row]) -> list[Row]:
    from sdbuild.review.gather import select

    keys = {entry.key for entry in select(material, options.pictures)}
    chosen = [
        row
        for row in rows
        if row.entry.key in keys
        or (options.changed and row.entry.changed)
        or (options.problems and row.is_problem)
        or not (options.pictures or options.changed or options.problems)
    ]
    if not chosen:
        raise UsageError(f"no caption is like that; `sdbuild captions {material.recipe.name}` shows all")
    stuck = next((row.entry for row in chosen if row.entry.blocked), None)
    if stuck is not None and options.pictures:
        raise UsageError(f"{stuck.path}: {stuck.trouble}")
    return [row for row in chosen if not row.entry.blocked]


def _confirm(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.review.gather import HAND, select
    from sdbuild.review.sidecars import confirm

    material = _gather(options)
    entries = select(material, options.pictures)
    if not entries and not options.changed:
        raise UsageError("say which pictures, or --changed for all that are asked about")
    if options.changed:
        entries += [entry for entry in material.entries if entry.changed and entry not in entries]
    for entry in entries:
        if entry.origin != HAND:
            raise UsageError(f"{entry.path} has no hand-written caption")
    confirm(material, entries)
    console.say(f"{_pictures(len(entries))} confirmed")
    return 0


def _find(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.review.rewriting import matching, pattern_of

    pattern = pattern_of(options.text, regex=options.regex, ignore_case=options.ignore_case)
    material = _gather(options)
    found = matching(material.entries, pattern)
    for entry in found:
        pieces = [(f"{entry.path}  ", "faint")]
        for text in entry.bare:
            at = 0
            for match in pattern.finditer(text):
                pieces += [(text[at : match.start()], ""), (match[0], "strong")]
                at = match.end()
            pieces.append((f"{text[at:]}  ", ""))
        console.styled(pieces)
    console.say(f"{len(found)} of {_pictures(len(material.entries))}")
    return 0


def _replace(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.review.rewriting import pattern_of, replacements

    pattern = pattern_of(options.text, regex=options.regex, ignore_case=options.ignore_case)
    material = _gather(options)
    changes = replacements(material.entries, pattern, options.new, regex=options.regex)
    _tell(changes, console)
    if options.write:
        _write(material, changes, console)
    else:
        console.say(f"{_captions(len(changes))} would change; --write does it")
    return 0


def _tags(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.review.rewriting import tag_statistics

    if not options.separator:
        raise UsageError("--separator must not be empty")
    material = _gather(options)
    tags = tag_statistics(material.entries, options.separator)
    captioned = sum(bool(entry.bare) for entry in material.entries)
    if options.json:
        rows = [{"tag": tag.name, "pictures": tag.pictures, "alike": tag.spellings} for tag in tags]
        console.json({"pictures": captioned, "tags": rows})
        return 0
    cells = ((tag.name, str(tag.pictures), f"{tag.pictures / captioned:.0%}", ", ".join(tag.spellings)) for tag in tags)
    console.table(("tag", "pictures", "share", "spelled alike"), cells)
    console.say(
        f"{len(tags)} tags in the captions of {_pictures(captioned)}; {sum(t.pictures == 1 for t in tags)} once"
    )
    return 0


def _export(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.review.transfer import export

    count = export(_gather(options), options.target, trigger=options.trigger, replace=options.replace)
    console.say(f"{options.target}: {_captions(count)}")
    return 0


def _import(options: argparse.Namespace, console: Console) -> int:
    from sdbuild.review.transfer import read

    material = _gather(options)
    found = read(material, options.source, replace=options.replace)
    if options.dry_run:
        _tell(found.changes, console)
        console.say(f"{_captions(len(found.changes))} would be written")
    else:
        _write(material, found.changes, console)
    if found.same:
        console.say(f"{_captions(found.same)} said the same already")
    if found.kept:
        what = f"{_captions(len(found.kept))} written by hand were left as they are ({found.kept[0].path})"
        console.warn(f"{what}; --replace takes those of {options.source}")
    return 0


def _tell(changes: Iterable[Change], console: Console) -> None:
    """What would be written, before and after."""
    for change in changes:
        console.styled([(f"{change.entry.path}", "faint")])
        console.styled([(f"  - {' | '.join(change.entry.bare)}", "old")])
        console.styled([(f"  + {' | '.join(change.texts)}", "new")])


def _write(material: Material, changes: Sequence[Change], console: Console) -> None:
    """Write sidecars, and say which.

    Raises:
        DataError: some were not written.
    """
    from sdbuild.review.sidecars import write

    written = write(material, changes)
    for file in written.files[:10]:
        console.say(file)
    more = f", {len(written.files) - 10} more than shown" if len(written.files) > 10 else ""
    console.say(f"{_captions(len(changes) - len(written.refused))} written{more}")
    if written.refused:
        raise DataError(written.refused)


def _captions(count: int) -> str:
    return "1 caption" if count == 1 else f"{count} captions"


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"
