"""Whether the inputs of a step are still what they were when it began."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sdbuild.build.compiled import Compiled
from sdbuild.build.oracle import Oracle, Verdict
from sdbuild.errors import DataError, InputError, Problem, SdbuildError, StepError
from sdbuild.plan.model import Step


class Inputs:
    """Compares what steps read with what they were judged by."""

    def __init__(self, oracle: Oracle, compiled: Compiled) -> None:
        self._oracle = oracle
        self._compiled = compiled

    def check_settled(self, verdict: Verdict) -> None:
        """Make sure that no step before this one has to run again, as it has when its inputs were edited meanwhile.

        Raises:
            StepError: one has.
        """
        step = verdict.step
        for path in (dep.path for dep in step.deps if dep.path not in verdict.deps):
            maker = self._oracle.producers.get(path)
            if maker is None:
                raise StepError(_words(step, [path]))
            before = self._oracle.judge(maker.name)
            if before.outs is None:
                raise StepError(
                    f"{maker.name}: its inputs changed while it ran or since, so {step.name} was not built from its "
                    f"result; run doit again ({'; '.join(before.reasons)})"
                )

    def check_unchanged(self, before: Verdict, reads: Mapping[str, Mapping[str, str]]) -> None:
        """Refuse a result whose inputs are not what they were when the step began.

        Args:
            before: the verdict by which the step began.
            reads: as `recipe.json` was written with.

        Raises:
            StepError: an input is another.
        """
        if changed := self._changed(before, reads):
            raise StepError(_words(before.step, changed))

    def explained(
        self, error: SdbuildError, before: Verdict, reads: Mapping[str, Mapping[str, str]]
    ) -> SdbuildError | None:
        """What to say instead of an error that a step ended with over inputs that changed under it."""
        step = before.step
        if len(before.deps) < len(step.deps) or not (changed := self._changed(before, reads)):
            return None
        words = _words(step, changed)
        if isinstance(error, InputError):
            return DataError([Problem(message=words), *error.problems])
        return StepError(words, *str(error).split("\n"))

    def _changed(self, before: Verdict, reads: Mapping[str, Mapping[str, str]]) -> list[str]:
        """Look at the inputs again: as they would be built now, and as they lie there, for anybody may edit outs."""
        step = before.step
        self._oracle.forget()
        if "base" in before.reads and self._base_now(step) != before.reads["base"]:
            return [f"the base {step.base.model}"]
        if self._compiled.differs(step.params_file, self._compiled.recipe_json(step.recipe, reads)):
            return [step.params_file]
        after = self._oracle.judge(step.name)
        changed = dict.fromkeys(
            dep.path
            for dep in step.deps
            for now in (after.deps.get(dep.path), self._oracle.stat.digest(dep.path))
            if now is None or dep.path not in before.deps or now.md5 != before.deps[dep.path].md5
        )
        if changed and all(dep.viewed for dep in step.deps) and before.reads == after.reads == self._reads_now(step):
            return []
        if not changed and after.reads != before.reads:  # files that `.dvcignore` names
            return [dep.path for dep in step.deps if dep.viewed]
        return list(changed)

    def _base_now(self, step: Step) -> str | None:
        try:
            return self._oracle.reads.digest("base", step)
        except (DataError, OSError):
            return None

    def _reads_now(self, step: Step) -> Mapping[str, str]:
        """What the step would read of what lies there."""
        try:
            return self._oracle.reads.all(step)
        except (DataError, OSError):
            return {}


def _words(step: Step, changed: Iterable[str]) -> str:
    what = ", ".join(changed)
    return f"{step.name}: its inputs changed while it ran, so its result was not kept; run doit again ({what})"
