"""Rules across recipes: the adapters that one grid mixes go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sdbuild.errors import Problem
from sdbuild.methods.lora.spec import Lora
from sdbuild.recipe.models import Recipe
from sdbuild.recipe.names import group_of


def mixed(recipes: Sequence[Recipe]) -> Iterator[Problem]:
    """Yield what is wrong with the other adapters of grids; `recipes` are all of a project, each variant as one."""
    known = {recipe.name: recipe for recipe in recipes}
    for recipe in recipes:
        before = {"this recipe": recipe}
        for index, said in enumerate(recipe.sample.adapters if recipe.sample else ()):
            if said.recipe is None:
                continue
            other = known.get(said.recipe)
            message = _unknown(said.recipe, recipes) if other is None else _clash(other, before)
            if message:
                field = f"sample.adapters[{index}].recipe"
                yield Problem(file=f"recipes/{recipe.group}.yaml", field=field, message=message)
            if other is not None:
                before[other.name] = other


def _unknown(name: str, recipes: Sequence[Recipe]) -> str:
    """What to say of a recipe that is there by its file alone."""
    group = group_of(name)
    variants = [recipe.name for recipe in recipes if recipe.group == group]
    if not variants:
        return f"{name!r} is no recipe but a file that others extend; name one of them"
    what = f"{name!r} has {len(variants)} variants" if name == group else f"{name!r} is no variant of {group}"
    return f"{what}; name one, such as {variants[0]}"


def _clash(other: Recipe, before: dict[str, Recipe]) -> str | None:
    for name, earlier in before.items():
        if earlier.method.trains_base and other.method.trains_base:
            remedy = "leave it out, or mix a copy of the LoRA that method.extract makes of it"
            return f"{other.name} makes a whole checkpoint, as {name} does, and a grid is drawn with one; {remedy}"
        if all(_has_lengths(each) for each in (earlier, other)):
            return f"{other.name} is a LoRA with dora, as {name} is, and a grid takes one; leave one out"
        own = {word.lower() for word in earlier.method.words}  # as tokenizers read them
        if same := sorted(word for word in other.method.words if word.lower() in own):
            return f"{other.name} learns {same[0]!r}, as {name} does, and a prompt cannot mean both; rename one"
    return None


def _has_lengths(recipe: Recipe) -> bool:
    """Whether it makes a LoRA with a length for each output, which stands between the base and all else."""
    return isinstance(recipe.method, Lora) and recipe.method.dora and recipe.method.dora_axis != "input"
