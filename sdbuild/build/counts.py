"""How many items a step would compute: for `sdbuild plan`, from what is on disk, without decoding or models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdbuild.build.asks import Asked, asked
from sdbuild.build.expected import Expected, expected
from sdbuild.build.oracle import Oracle, Verdict
from sdbuild.data import items
from sdbuild.data.captions import Captions, caption_records
from sdbuild.data.listing import no_pictures
from sdbuild.data.records import CaptionRecord, ImageRecord, read_captions, read_class_pictures, read_images
from sdbuild.data.wanted import wanted_class_pictures, wanted_latents, wanted_texts
from sdbuild.errors import DataError, InputError, Problem
from sdbuild.plan.model import Step
from sdbuild.recipe.names import group_of

MOST_TOLD = 4
"""Problems of one recipe's captions that a plan lists."""

Count = tuple[int | None, int | None]
"""Items in all and items to compute; None where only building can tell."""


class Counts:
    """Counts by step, asked for in plan order: what a step will make is there for those after it."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._lists: dict[str, Expected | None] = {}
        self._made: dict[str, set[str]] = {}
        """Keys of what the steps so far will make, by kind."""
        self._asks: dict[str, list[Asked]] = {}

    def of(self, verdict: Verdict) -> Count:
        """Items in all and items to compute of a step that would run."""
        step = verdict.step
        try:
            match step.kind:
                case "images":
                    return self._of_images(step)
                case "captions":
                    return self._of_captions(step)
                case "latents":
                    return self._of_latents(step, verdict)
                case "prior":
                    return self._of_prior(step, verdict)
                case "text":
                    return self._of_text(step, verdict)
                case "train":
                    return step.spec["train"]["steps"], step.spec["train"]["steps"]
                case "extract":
                    return 1, 1
                case "samples":
                    total = len(step.spec["prompts"]) * len(step.spec["seeds"]) * len(step.spec["strengths"])
                    if any(dep.path == f"{step.folder}/extracted" for dep in step.deps):
                        total += len(step.spec["prompts"]) * len(step.spec["seeds"])
                    return total, total
        except (DataError, OSError):  # told when the step runs
            return None, None

    def problems(self, step: Step) -> list[Problem]:
        """What would stop a step that lists pictures or captions, as far as that is known without decoding."""
        try:
            if step.kind == "images" and (found := self._expected(step)) is not None:
                return [
                    Problem(file=data["path"], message=no_pictures())
                    for index, data in enumerate(step.spec["datasets"])
                    if not any(at == index for at in found.datasets)
                ]
            if step.kind == "captions" and (captions := self._captioned(step)) is not None:
                return _first_of(captions.problems, step.recipe)
        except InputError as error:
            return list(error.problems)
        except OSError:  # of a folder that is read, the oracle tells; what lies in an out's place is replaced
            return []
        return []

    def _of_images(self, step: Step) -> Count:
        """Pictures, and those whose pixels are not known by their bytes."""
        found = self._expected(step)
        return (None, None) if found is None else (len(found), self._first(step, (each.digest for each in found.new)))

    def _of_captions(self, step: Step) -> Count:
        captions = self._captioned(step)
        if captions is None:
            return None, None
        new = {row.key: (row.text, row.others) for row in captions.records}
        old = {row.key: (row.text, row.others) for row in self._captions(step, current=False) or ()}
        todo = sum(old.get(key) != texts for key, texts in new.items()) + len(self._unanswered(step))
        return len(new) + len(captions.open), todo

    def _captioned(self, step: Step) -> Captions | None:
        """What files say of the pictures, and which are left to models."""
        images = self._images(step)
        if images is None:
            found = self._expected(step)
            if found is None:
                return None
            images = found.all
        return caption_records(images, step.spec, self._oracle.project.root)

    def _unanswered(self, step: Step) -> set[str]:
        return {question.image.key for each in self.asked(step) for question in each.questions}

    def asked(self, step: Step) -> list[Asked]:
        """What a captions step would ask models, as far as that is known before it runs."""
        if step.name not in self._asks:
            self._asks[step.name] = list(self._asked(step))
        return self._asks[step.name]

    def _asked(self, step: Step) -> Iterator[Asked]:
        try:
            images = self._images(step)
            if images is None and step.how and (found := self._expected(step)) is not None:
                images = found.all
            for each in asked(self._oracle, step, images or (), self._captions(step, current=False) or ()):
                before = set(self._made.get(step.kind, ()))
                questions = tuple(question for question in each.questions if question.key not in before)
                if self._first(step, (question.key for question in questions)):
                    yield replace(each, questions=questions)
        except (DataError, OSError):  # told when the step runs
            return

    def _of_latents(self, step: Step, verdict: Verdict) -> Count:
        images, new = self._images(step), list[str]()
        if images is None:
            found, each = self._expected(step), self._ways(step)
            if found is None or (found.new and each is None):
                return None, None
            how = {key: found.spec[key] for key in ("resolution", "buckets", "crop")}
            sizes = [dataset.get("resolutions") for dataset in found.spec["datasets"]]
            images = found.placed
            new = [f"{row.digest} {how} {sizes} {step.base} {at}" for row in found.new for at in range(each or 0)]
        base = self._base("latents", step, verdict)
        wanted = wanted_latents(images, step.spec, base or f"{step.base}")
        drawn, redrawn = self._of_drawn(step)
        if drawn and not redrawn:
            prior = read_class_pictures(self._folder(step) / "prior", self._oracle.project.root)
            wanted |= wanted_latents(prior, step.spec, base or f"{step.base}")
            drawn = 0
        todo = self._first(step, [*(wanted if base is None else self._missing("latents", step, wanted)), *new])
        return len(wanted) + len(new) + drawn, todo + redrawn

    def _ways(self, step: Step) -> int | None:
        """Latents of a picture that nobody has looked at, if all have as many."""
        spec = self._oracle.steps[f"{step.recipe}:images"].spec
        ways = {len(dataset.get("resolutions", [0])) for dataset in spec["datasets"]}
        return None if len(ways) > 1 or "crops" in spec else ways.pop() * (2 if step.spec["flip"] else 1)

    def _of_drawn(self, step: Step) -> tuple[int, int]:
        """Latents of class pictures: in all, and of those that are drawn first."""
        prior = self._oracle.steps.get(f"{step.recipe}:prior")
        if prior is None:
            return 0, 0
        each = 2 if step.spec["flip"] else 1
        verdict = self._oracle.judge(prior.name)
        total, todo = self._of_prior(prior, verdict)
        ready = verdict.action == "none" and (self._folder(step) / "prior" / "index.jsonl").exists()
        return total * each, 0 if ready else max(todo, 1) * each

    def _of_prior(self, step: Step, verdict: Verdict) -> tuple[int, int]:
        """Class pictures, and those that neither the store nor the last version of the out has."""
        total = step.spec["pictures"]
        if "base" not in verdict.reads:
            return total, total
        try:
            lines = (self._folder(step) / "prior" / "index.jsonl").read_text(encoding="utf-8").splitlines()
            drawn = {json.loads(line)["key"] for line in lines}
        except (OSError, ValueError, KeyError, TypeError):
            drawn = set()
        wanted = [key for key in wanted_class_pictures(step.spec, verdict.reads["base"]) if key not in drawn]
        return total, len(items.ItemStore(self._oracle.project.items / "prior").missing(wanted, check=False))

    def _of_text(self, step: Step, verdict: Verdict) -> Count:
        captions, new = self._captions(step, current=True), 0
        if captions is None:
            asking = self._oracle.steps[f"{step.recipe}:captions"]
            found = self._captioned(asking)
            if found is None:
                return None, None
            unanswered = self._unanswered(asking)
            last = {row.key: row for row in self._captions(step, current=False) or () if row.key not in unanswered}
            said = [last[each.image.key] for each in found.open if each.image.key in last]
            captions, new = [*found.records, *said], len(found.open) - len(said)
            if new and "datasets" in step.spec:
                return None, None
        base = self._base("text", step, verdict)
        wanted = wanted_texts(captions, step.spec, base or f"{step.base}")
        return len(wanted) + new, new + self._first(
            step, wanted if base is None else self._missing("text", step, wanted)
        )

    def _base(self, kind: str, step: Step, verdict: Verdict) -> str | None:
        """Digest of the base that a step reads; None where no item can be there already, so that it is of no use."""
        if "base" in verdict.reads:
            return verdict.reads["base"]
        if not any(folder.is_dir() for folder in (self._oracle.project.items / kind, self._folder(step) / kind)):
            return None
        return self._oracle.reads.digest("base", step)

    def _missing(self, kind: str, step: Step, keys: Mapping[str, Any]) -> list[str]:
        store = items.ItemStore(self._oracle.project.items / kind)
        return store.missing(keys, items.reuse(self._folder(step) / kind), check=False)

    def _first(self, step: Step, keys: Iterable[str]) -> int:
        """How many items a step makes that none before it makes."""
        made = self._made.setdefault(step.kind, set())
        found = set(keys) - made
        if self._oracle.judge(step.name).action == "run":
            made |= found
        return len(found)

    def _images(self, step: Step) -> list[ImageRecord] | None:
        """Rows of `images.jsonl`, if it is as it will be."""
        return read_images(self._folder(step) / "images.jsonl") if self._is_ready(step, "images") else None

    def _captions(self, step: Step, *, current: bool) -> list[CaptionRecord] | None:
        path = self._folder(step) / "captions.jsonl"
        if (current and not self._is_ready(step, "captions")) or not path.exists():
            return None
        return read_captions(path)

    def _is_ready(self, step: Step, kind: str) -> bool:
        return (
            self._oracle.judge(f"{step.recipe}:{kind}").action == "none"
            and (self._folder(step) / f"{kind}.jsonl").exists()
        )

    def _expected(self, step: Step) -> Expected | None:
        if step.recipe not in self._lists:
            self._lists[step.recipe] = expected(self._oracle, self._oracle.steps[f"{step.recipe}:images"])
        return self._lists[step.recipe]

    def _folder(self, step: Step) -> Path:
        return self._oracle.project.root / step.folder


def _first_of(problems: Sequence[Problem], recipe: str) -> list[Problem]:
    """The first of several problems, and how many more there are."""
    if len(problems) <= MOST_TOLD:
        return list(problems)
    rest = len(problems) - MOST_TOLD + 1
    more = Problem(message=f"… and {rest} more; `sdbuild check {group_of(recipe)}` lists them")
    return [*problems[: MOST_TOLD - 1], more]
