"""The files that recipes are compiled to, `dvc.yaml` and each `recipe.json`, kept in step with the plan."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from sdbuild.build import blocks
from sdbuild.build.bases import in_recipe
from sdbuild.build.checkout_checks import check_folders
from sdbuild.build.hand_edits import may_be_replaced, record_written
from sdbuild.build.project import Project
from sdbuild.errors import DataError, Problem, RecipeError
from sdbuild.families import sources
from sdbuild.plan.compile import plan_resolved
from sdbuild.plan.files import HEADER, render_dvc_yaml, render_recipe_json
from sdbuild.plan.model import Base, Step
from sdbuild.recipe.models import Recipe
from sdbuild.recipe.names import group_of
from sdbuild.recipe.places import is_hub_id
from sdbuild.storage.atomic import write_atomic
from sdbuild.storage.backups import make_folder, set_aside

_OWNER = re.compile(r"\bbuild/([^/\s'\"]+)/")


class Compiled:
    """Recipes with their steps, and what both look like on disk."""

    def __init__(self, project: Project, recipes: Sequence[Recipe], unread: Collection[str] = ()) -> None:
        """Compile recipes; of those that are `unread`, by name, `dvc.yaml` keeps what it has."""
        self._project = project
        self._unread = frozenset(unread)
        self._resolved = {recipe.name: recipe.resolved() for recipe in recipes}
        self._bases = {name: self._base(name, resolved["base"]) for name, resolved in self._resolved.items()}
        self._steps = {
            name: plan_resolved(name, resolved, self._bases[name]) for name, resolved in self._resolved.items()
        }

    @property
    def steps(self) -> list[Step]:
        """All steps, in plan order."""
        return [step for steps in self._steps.values() for step in steps]

    def pin_bases(self, chosen: Collection[str] | None, say: Callable[[str], None]) -> Mapping[str, Sequence[Problem]]:
        """Download and convert what is missing, and note the commits of what comes from a hub.

        Args:
            chosen: recipes that are to be built, None for all; a base that others want may be far away.
            say: is told what takes long.

        Returns:
            What is wrong, by recipe: its base cannot be had, or is not what it says.
        """
        wrong: dict[str, Sequence[Problem]] = {}
        brought: dict[Base, tuple[Base, list[Problem]]] = {}
        for name, base in self._bases.items():
            if base.deps or (chosen is not None and name not in chosen):
                continue  # that of `deps` is brought when the recipe that builds it is done
            if base not in brought:
                try:
                    brought[base] = self._pinned(base, say)
                except DataError as error:
                    brought[base] = base, list(error.problems)
            self._bases[name], found = brought[base]
            if found:
                wrong[name] = in_recipe(name, found, self._project.root)
        return wrong

    def bring_base(self, name: str, say: Callable[[str], None]) -> None:
        """The same for one recipe, whose base another recipe has built."""
        self._bases[name], found = self._pinned(self._bases[name], say)
        if found:
            raise RecipeError(in_recipe(name, found, self._project.root))

    def files(self, reads: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
        """Text of every compiled file by path; `reads` as for `render_recipe_json`."""
        texts = {"dvc.yaml": render_dvc_yaml(self.steps, self._kept())}
        texts.update((f"build/{name}/recipe.json", self.recipe_json(name, reads)) for name in self._resolved)
        return texts

    def _kept(self) -> blocks.Sections:
        """What `dvc.yaml` has of recipes that cannot be read now: their outs are not forgotten for a mistake."""
        if not self._unread:
            return {}
        try:
            text = (self._project.root / "dvc.yaml").read_text(encoding="utf-8")
            sections = blocks.split(text) if text.startswith(HEADER) else {}
        except (OSError, ValueError):
            return {}
        return {
            title: {name: entry for name, entry in entries.items() if group_of(_owner(entry)) in self._unread}
            for title, entries in sections.items()
        }

    def recipe_json(self, name: str, reads: Mapping[str, Mapping[str, str]]) -> str:
        """Text of one recipe's `recipe.json`."""
        return render_recipe_json(name, self._resolved[name], self._bases[name], self._steps[name], reads)

    def differs(self, path: str, text: str) -> bool:
        """Whether a file on disk is not as compiled."""
        try:
            return (self._project.root / path).read_text(encoding="utf-8") != text
        except (OSError, UnicodeDecodeError):
            return True

    def write(self, path: str, text: str) -> Path | None:
        """Write a compiled file; what lies there of the user's is set aside, and where is returned.

        Raises:
            DataError: a link leads out of its folder.
        """
        if "/" in path:
            check_folders(self._project, [path.rpartition("/")[0]])
        target = self._project.root / path
        moved = make_folder(self._project.root, PurePosixPath(path).parent.as_posix())
        if not may_be_replaced(self._project, path):
            moved.append(set_aside(target, "before-sdbuild"))
        write_atomic(target, text)
        record_written(self._project, path, text)
        return moved[0] if moved else None

    def _pinned(self, base: Base, say: Callable[[str], None]) -> tuple[Base, list[Problem]]:
        """A base with its commits, brought to this machine, and what a recipe says that is not so of it."""
        folder = sources.bring(base, self._project.root, say)
        commits = sources.commits(base, self._project.root)
        pinned = replace(
            base,
            commit=commits.model or base.commit,
            vae_commit=commits.vae or base.vae_commit,
            refiner_commit=commits.refiner or base.refiner_commit,
        )
        return pinned, sources.problems(base, folder)

    def _base(self, name: str, base: Mapping[str, Any]) -> Base:
        """The base of a recipe; what comes from a hub stays at the commit that was resolved first."""
        asked = Base.of(base)
        if not any(is_hub_id(model) for model in (asked.model, asked.vae, asked.refiner) if model is not None):
            return asked
        try:
            known = Base.of(json.loads((self._project.root / f"build/{name}/recipe.json").read_bytes())["base"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return asked
        if (known.model, known.revision) == (asked.model, asked.revision):
            asked = replace(asked, commit=known.commit)
        if known.vae == asked.vae:
            asked = replace(asked, vae_commit=known.vae_commit)
        return replace(asked, refiner_commit=known.refiner_commit) if known.refiner == asked.refiner else asked


def _owner(entry: str) -> str:
    """The recipe or variant that an entry of `dvc.yaml` is of, by the path of what it builds or draws."""
    command = blocks.recipe_of(entry)
    found = _OWNER.search(entry)
    return command or (found[1] if found else "")
