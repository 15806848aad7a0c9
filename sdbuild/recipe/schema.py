"""The JSON schema of a recipe's file, for editors."""

from __future__ import annotations

from typing import Any

from sdbuild.recipe.models import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of what stands in `recipes/*.yaml`.

    Nothing is required but inside lists, since a file that extends another may leave all else to it.
    """
    schema = Recipe.model_json_schema(by_alias=True)
    properties = {key: value for key, value in schema.pop("properties").items() if key != "name"}
    extends = {
        "title": "Extends",
        "type": "string",
        "minLength": 1,
        "description": "Another file, relative to this one: mappings merge key by key, everything else replaces.",
    }
    del schema["required"]
    for value in properties.values():
        for option in (value, *value.get("anyOf", ()), *value.get("oneOf", ())):
            schema["$defs"].get(option.get("$ref", "").rpartition("/")[2], {}).pop("required", None)
    return {
        "$schema": DIALECT,
        **schema,
        "title": "sdbuild recipe",
        "properties": {"extends": extends, **properties},
    }
