"""The words in which models are asked. They are part of the items' keys: other words ask for all captions anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdbuild.recipe.captioners import placeholders

STYLES: dict[str, str] = {
    "sentence": (
        "Describe this picture in one or two plain sentences, as a caption to train an image generator with: the "
        "subject first, then what it does, its surroundings, light, colours and style. Say only what can be seen."
    ),
    "tags": (
        "List what can be seen in this picture as tags to train an image generator with: lower case, parted by "
        "commas, the most important first, no sentences."
    ),
    "short": "Say in a short phrase, without a verb if possible, what this picture shows.",
}
"""What is asked where a recipe has no instruction of its own."""

REFINED: dict[str, str] = {
    "sentence": "Make one or two plain sentences of that, as a caption to train an image generator with.",
    "tags": "Make tags of that, to train an image generator with: lower case, parted by commas, most important first.",
    "short": "Make a short phrase of that.",
}
"""The same of further passes."""

ALONE = "Answer with the caption alone: no introduction, no quotation marks, no markup, one line."


def filled(settings: Mapping[str, Any], fields: Mapping[str, str], before: str | None = None) -> str | None:
    """The recipe's own instruction with its fields, which are put in as they are; None where it has none."""
    instruction: str | None = settings.get("instruction")
    return None if instruction is None else instruction.format_map({**fields, "caption": before or ""})


def compose(
    settings: Mapping[str, Any], fields: Mapping[str, str], *, language: str | None = None, before: str | None = None
) -> str:
    """Words of one question.

    Args:
        settings: of the pass: `style`, `instruction`, `max_words`, `avoid`.
        fields: values of the placeholders.
        language: of the caption.
        before: what the pass before said.
    """
    lines: list[str] = []
    if before is not None and "caption" not in placeholders(settings.get("instruction") or ""):
        lines.append(f"This was said of the picture: {before}")
    if (instruction := filled(settings, fields, before)) is not None:
        lines.append(instruction)
    else:
        lines.append((STYLES if before is None else REFINED)[settings["style"]])
        if fields.get("subject"):
            lines.append(f"The subject is: {fields['subject']}.")
    if language:
        lines.append(f"Write in {language}.")
    if settings.get("max_words"):
        lines.append(f"Use at most {settings['max_words']} words.")
    if settings.get("avoid"):
        lines.append(f"Do not use these words: {', '.join(settings['avoid'])}.")
    return "\n".join([*lines, ALONE])
