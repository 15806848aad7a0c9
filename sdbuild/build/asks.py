"""What a captions step would ask models, and what that would cost: for `sdbuild plan`, before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sdbuild.build.oracle import Oracle
from sdbuild.captioners.asking import Section, content_of, said_in, sections
from sdbuild.captioners.contract import Question
from sdbuild.captioners.costs import estimate
from sdbuild.captioners.said import FOLDER, read_said
from sdbuild.data.captions import caption_records
from sdbuild.data.records import CaptionRecord, ImageRecord
from sdbuild.plan.model import Step


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a model would be asked about the pictures of a dataset: the questions of its first pass."""

    section: Section
    questions: tuple[Question, ...]

    def told(self) -> dict[str, Any]:
        """As `sdbuild plan --json` prints it: at most, where answers are as long as they may be."""
        settings, passes = self.section.settings, len(self.section.passes)
        told: dict[str, Any] = {
            "model": settings["model"],
            "pictures": len({question.image.key for question in self.questions}),
            "requests": len(self.questions) * passes,
        }
        if settings["from"] == "transformers":  # costs time alone
            return {**told, "input_tokens": None, "output_tokens": None, "cost": None}
        most = estimate(self.questions, settings)
        return {
            **told,
            "input_tokens": most.input_tokens * passes,
            "output_tokens": most.output_tokens * passes,
            "cost": None if most.cost is None else round(most.cost * passes, 6),
        }


def asked(oracle: Oracle, step: Step, images: Iterable[ImageRecord], last: Iterable[CaptionRecord]) -> list[Asked]:
    """What a captions step would ask.

    Args:
        oracle: of the project.
        step: the captions step.
        images: its pictures, as far as they are known.
        last: rows of its last result.
    """
    if not step.how:
        return []
    project = oracle.project
    known = said_in(last) | read_said(project.items / FOLDER)
    captions = caption_records(images, step.spec, project.root)
    spec = {**step.spec, "reads": oracle.judge(step.name).reads}
    found: list[Asked] = []
    for section in sections(captions.open, spec, step.how, content_of(spec, project.root)):
        questions = {each.key: each for each in section.first() if each.key not in known}
        if questions:
            found.append(Asked(section=section, questions=tuple(questions.values())))
    return found
