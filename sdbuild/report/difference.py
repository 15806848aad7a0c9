"""How a recipe's record differs between two states, with the content of its outs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sdbuild.plan.model import STEP_KINDS
from sdbuild.report.changes import ABSENT, Change, Picture, PictureChanges, picture_changes, value_changes
from sdbuild.report.objects import Objects
from sdbuild.report.states import Record

IMAGES, CAPTIONS, METRICS = "images.jsonl", "captions.jsonl", "metrics.json"
NOUNS = {IMAGES: "pictures", CAPTIONS: "captions", METRICS: "metrics"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """What changed in one recipe."""

    recipe: str
    event: Literal["added", "removed", "changed"]
    pictures: PictureChanges | None
    """None where it cannot be told: see `absent`."""
    settings: tuple[Change, ...]
    """By dotted key of the recipe; none where a state has no recipe to compare with."""
    metrics: tuple[Change, ...]
    figures: Mapping[str, Any] | None
    """All metrics of the newer state."""
    rebuilt: tuple[str, ...]
    """Kinds of the steps whose outs differ."""
    absent: tuple[str, ...]
    """What cannot be told because it is neither in the cache nor in the remote: `pictures`, `captions`, `metrics`."""

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        pictures = self.pictures
        return {
            "recipe": self.recipe,
            "event": self.event,
            "pictures": None if pictures is None else _pictures_to_json(pictures),
            "captions": None
            if pictures is None or NOUNS[CAPTIONS] in self.absent
            else [{"path": new.path, "old": old.caption, "new": new.caption} for old, new in pictures.recaptioned],
            "settings": _values_to_json(self.settings),
            "metrics": None if NOUNS[METRICS] in self.absent else _values_to_json(self.metrics),
            "rebuilt": list(self.rebuilt),
            "absent": list(self.absent),
        }


def contents(old: Record | None, new: Record | None) -> Iterator[str | None]:
    """MD5s of what `difference` reads."""
    for name in (IMAGES, CAPTIONS, METRICS):
        before, after = _out(old, name), _out(new, name)
        if before != after or name == METRICS:
            yield from (before, after)
    if _out(old, IMAGES) != _out(new, IMAGES) or _out(old, CAPTIONS) != _out(new, CAPTIONS):
        yield from (_out(record, name) for record in (old, new) for name in (IMAGES, CAPTIONS))


def difference(old: Record | None, new: Record | None, objects: Objects) -> Difference:
    """Compare two records of a recipe, of which one may be missing."""
    some = new or old
    assert some is not None
    absent: list[str] = []
    pictures = _picture_changes(old, new, objects, absent)
    figures = [_figures(record, objects, absent) for record in (old, new)]
    metrics = [] if None in figures or new is None else value_changes(figures[0] or {}, figures[1] or {})
    return Difference(
        recipe=some.recipe,
        event="added" if old is None else "removed" if new is None else "changed",
        pictures=pictures,
        settings=tuple(_settings_changes(old, new)),
        metrics=tuple(change for change in metrics if change.new is not None or change.old is not ABSENT),
        figures=figures[1],
        rebuilt=tuple(kind for kind in STEP_KINDS if new and _outs(old, kind) != _outs(new, kind)),
        absent=tuple(noun for out, noun in NOUNS.items() if out in absent),
    )


def same(old: Record | None, new: Record | None) -> bool:
    """Whether two records count as one."""
    if old is None or new is None:
        return old is new
    return (
        old.entries == new.entries or old.identity == new.identity
    )  # the former is soon seen: equal text is one object


def settings(record: Record) -> dict[str, Any]:
    """The recipe that was built, with the base's commit and the content of the base; empty where it is not known."""
    recipe = record.built
    if not recipe:
        return {}
    base = {**(recipe.get("base") or {}), "commit": (record.compiled.get("base") or {}).get("commit")}
    content = record.parameters("train").get("reads", {}).get("base")
    return {
        **{key: value for key, value in recipe.items() if key != "name"},
        "base": {**base, "content": content[:12]} if isinstance(content, str) else base,
    }


def _settings_changes(old: Record | None, new: Record | None) -> list[Change]:
    before, after = (settings(record) if record else {} for record in (old, new))
    found = value_changes(before, after) if before and after else []
    told = any(change.key.startswith("base.") and change.key != "base.content" for change in found)
    return [change for change in found if change.key != "base.content" or not told]


def _picture_changes(
    old: Record | None, new: Record | None, objects: Objects, absent: list[str]
) -> PictureChanges | None:
    if _out(old, IMAGES) == _out(new, IMAGES) and _out(old, CAPTIONS) == _out(new, CAPTIONS):
        return PictureChanges()
    sides: list[tuple[Picture, ...] | None] = []
    for record in (old, new):
        images, captions = _out(record, IMAGES), _out(record, CAPTIONS)
        sides.append(objects.pictures(images, captions) if images else ())
        if captions and objects.file(captions) is None and _out(old, CAPTIONS) != _out(new, CAPTIONS):
            absent.append(CAPTIONS)
    before, after = sides
    if before is None or after is None:
        absent.append(IMAGES)
        return None
    return picture_changes(before, after)


def _figures(record: Record | None, objects: Objects, absent: list[str]) -> Mapping[str, Any] | None:
    md5 = _out(record, METRICS)
    found = objects.metrics(md5)
    if md5 and found is None:
        absent.append(METRICS)
    return found if md5 else {}


def _out(record: Record | None, name: str) -> str | None:
    return record.out(name) if record else None


def _outs(record: Record | None, kind: str) -> Any:
    return record.identity.get(kind, (None, None))[1] if record else None


def _pictures_to_json(pictures: PictureChanges) -> dict[str, Any]:
    return {
        "added": [picture.path for picture in pictures.added],
        "removed": [picture.path for picture in pictures.removed],
        "changed": [new.path for _, new in pictures.changed],
        "renamed": [[old.path, new.path] for old, new in pictures.renamed],
    }


def _values_to_json(changes: Iterable[Change]) -> dict[str, Any]:
    return {
        change.key: {
            side: None if value is ABSENT else value for side, value in (("old", change.old), ("new", change.new))
        }
        for change in changes
    }
