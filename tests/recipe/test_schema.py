from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sdbuild.recipe.models import Recipe
from sdbuild.recipe.schema import json_schema
from sdbuild.recipe.spec import descriptions


def _models(node: Any) -> Iterator[dict[str, Any]]:
    yield node
    yield from node["$defs"].values()


def test_it_is_json_of_a_known_dialect() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "sdbuild recipe"
    assert schema["description"]


def test_the_top_has_the_keys_that_users_write() -> None:
    schema = json_schema()
    assert list(schema["properties"]) == ["extends", *list(Recipe.model_fields)[1:]]
    assert "required" not in schema


def test_every_part_is_closed_and_every_key_explained() -> None:
    for model in _models(json_schema()):
        assert model["additionalProperties"] is False
        assert model["description"]
        for key, value in model["properties"].items():
            assert "description" in value or "const" in value, f"{model['title']}.{key} has no docstring"


def test_only_entries_of_lists_require_keys() -> None:
    required = {name: model["required"] for name, model in json_schema()["$defs"].items() if "required" in model}
    captioners = {name: ["model"] for name in ("Anthropic", "OpenAI", "Transformers")}
    lists = {
        "Part": ["modules"],
        "Dataset": ["path"],
        "Template": ["text"],
        "FolderMask": ["folder"],
        "Token": ["token"],
        "ClassPictures": ["prompt"],
        "KeptPrediction": ["prompt"],
    }
    assert required == {**lists, **captioners, "Prices": ["input", "output"]}


def test_limits_choices_and_defaults_reach_editors() -> None:
    definitions = json_schema()["$defs"]
    train = definitions["Train"]["properties"]
    assert train["schedule"]["enum"] == ["constant", "cosine", "linear", "polynomial", "restarts"]
    assert set(train["weighting"]["discriminator"]["mapping"]) == {"uniform", "min-snr", "debiased"}
    assert definitions["LogitNormal"]["properties"]["shift"]["description"].startswith("Above 1 moves")
    assert (train["steps"]["minimum"], train["steps"]["default"]) == (1, 1000)
    assert "validate" in train
    assert definitions["Sample"]["properties"]["prompts"]["minItems"] == 1
    assert definitions["Dataset"]["properties"]["caption"]["discriminator"]["propertyName"] == "from"


def test_descriptions_are_the_docstrings_of_fields() -> None:
    assert descriptions(Recipe)["datasets"] == "The pictures."
