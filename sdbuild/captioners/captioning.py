"""Captioning what is left to models: what is known already is taken, the rest is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdbuild import captioners
from sdbuild.captioners.asking import Section
from sdbuild.captioners.contract import AskError, Question
from sdbuild.captioners.costs import estimate, price
from sdbuild.captioners.desk import AskingDesk, Counter, Purse
from sdbuild.captioners.said import Keeper, alone, read_said
from sdbuild.captioners.texts import avoided, clean, finish
from sdbuild.data.captions import Open
from sdbuild.data.records import CaptionRecord
from sdbuild.errors import Problem, StepError

_SHOWN = 10
Slot = tuple[str, str | None]
"""Key of a record, and the language of one of its captions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """Where captions are made."""

    project: Path
    store: Path
    """Folder of what was said."""
    background: str
    """Colour under transparent pixels."""
    progress: Callable[..., None]
    warn: Callable[[str], None]


def caption(
    sections: Sequence[Section], known: Mapping[str, str], around: Surroundings
) -> tuple[list[CaptionRecord], set[str]]:
    """Caption all pictures of some sections.

    Args:
        sections: from `asking.sections`.
        known: what was said before, by key, beside what the store has.
        around: where.

    Returns:
        The records, and the keys of those for which something was asked.

    Raises:
        StepError: some pictures have no caption; what was said is kept.
    """
    found = _Found(known, around)
    rows: list[CaptionRecord] = []
    for section in sections:
        rows += _Captioning(section, found, around).rows()
    return rows, found.asked


class _Found:
    """What was said, of this build and before."""

    def __init__(self, known: Mapping[str, str], around: Surroundings) -> None:
        self._known = dict(known)
        self._around = around
        self._known |= read_said(around.store)
        self.asked: set[str] = set()
        self.counter = Counter(around.progress)

    def missing(self, questions: Mapping[Slot, Question]) -> dict[str, Question]:
        return {each.key: each for each in questions.values() if each.key not in self._known}

    def refresh(self) -> None:
        self._known |= read_said(self._around.store)

    def add(self, answers: Mapping[str, str]) -> None:
        self._known |= answers

    def text(self, question: Question) -> str:
        return clean(self._known[question.key])

    def said(self, question: Question) -> tuple[str, str]:
        return question.key, self._known[question.key]


class _Captioning:
    """One section, pass by pass."""

    def __init__(self, section: Section, found: _Found, around: Surroundings) -> None:
        self._section = section
        self._found = found
        self._around = around
        self._purse = Purse()
        self._open: dict[str, Open] = {each.image.key: each for each in section.open}

    def rows(self) -> list[CaptionRecord]:
        section = self._section
        slots: list[Slot] = [(key, language) for key in self._open for language in section.languages]
        before: dict[Slot, str | None] = dict.fromkeys(slots)
        said: dict[Slot, list[tuple[str, str]]] = {slot: [] for slot in slots}
        for number in range(len(section.passes)):
            questions = {slot: section.question(self._open[slot[0]], number, slot[1], before[slot]) for slot in slots}
            self._ask(questions, passes=len(section.passes) - number)
            for slot, question in questions.items():
                before[slot] = self._found.text(question)
                said[slot].append(self._found.said(question))
        texts = {slot: finish(before[slot] or "", section.spec, section.passes[-1]) for slot in slots}
        self._look_at(texts)
        return [
            each.row(
                [texts[key, language] for language in section.languages],
                section.trigger,
                (pair for language in section.languages for pair in said[key, language]),
            )
            for key, each in self._open.items()
        ]

    def _ask(self, questions: Mapping[Slot, Question], *, passes: int) -> None:
        """Ask for what nobody has said yet, one build at a time; with this pass so many are to come."""
        if not self._found.missing(questions):
            return
        waiting = "another build asks for captions; waiting, so that nothing is asked twice"
        with alone(self._around.store, lambda: self._around.warn(waiting)):
            self._found.refresh()
            missing = self._found.missing(questions)
            if missing:
                _check_limits(self._section.settings, list(missing.values()), passes, self._purse.spent)
                self._ask_for(missing)

    def _ask_for(self, missing: Mapping[str, Question]) -> None:
        settings, around, found = self._section.settings, self._around, self._found
        captioner = captioners.load(settings, around.project, around.store)
        found.counter.total += len(missing)
        found.counter.show()
        with Keeper(around.store) as keeper:
            desk = AskingDesk(
                settings,
                keeper,
                found.counter,
                self._purse,
                project=around.project,
                background=around.background,
                warn=around.warn,
            )
            halted: AskError | None = None
            try:
                captioner.answer(list(missing.values()), desk)
            except AskError as error:
                halted = error
        found.add(desk.answers)
        found.asked |= {missing[key].image.key for key in desk.answers}
        if halted is not None or desk.problems:
            raise StepError(*_what_failed(settings, desk.problems, halted, len(desk.answers), len(missing)))

    def _look_at(self, texts: Mapping[Slot, str]) -> None:
        empty = [
            Problem(file=self._open[key].image.path, message="nothing is left of its caption")
            for (key, _), text in texts.items()
            if not text
        ]
        if empty:
            lines = _lines(empty)
            raise StepError(*lines, "change avoid or replace, or write their captions into .txt files")
        words = self._section.passes[-1].get("avoid") or ()
        found = sorted({word for text in texts.values() for word in avoided(text, words)})
        if found:
            count = sum(bool(avoided(text, words)) for text in texts.values())
            some = "1 caption has" if count == 1 else f"{count} captions have"
            self._around.warn(f"{some} words to avoid: {', '.join(found)}")


def _check_limits(settings: Mapping[str, Any], questions: Sequence[Question], passes: int, spent: float) -> None:
    """Stop before the first request of a pass where the recipe's limits would not hold.

    Raises:
        StepError: they would not.
    """
    pictures = len({question.image.digest for question in questions})
    most = settings.get("max_images")
    if most is not None and pictures > most:
        raise StepError(f"{pictures} pictures are to be captioned, and max_images is {most}: raise it in the recipe")
    limit = settings.get("max_cost")
    if limit is None or price(settings) is None:
        return
    cost = spent + passes * (estimate(questions, settings).cost or 0.0)
    if cost > limit:
        raise StepError(
            f"captions of {pictures} pictures by {settings['model']} may cost up to ${cost:.4g}, and max_cost "
            f"is ${limit:g}: raise it in the recipe, or set a smaller max_tokens or longest_side"
        )


def _what_failed(
    settings: Mapping[str, Any], problems: Sequence[Problem], halted: AskError | None, done: int, total: int
) -> list[str]:
    kept = f"{done} of {total} captions arrived and are kept; doit asks for the others"
    lines = _lines(problems)
    if halted is not None:
        lines.append(f"{settings['from']}: {halted}")
    return [*lines, kept]


def _lines(problems: Iterable[Problem]) -> list[str]:
    lines = [str(problem) for problem in problems]
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return [*lines[:_SHOWN], *more]
