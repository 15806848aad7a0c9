"""Grids with several adapters, and what is measured of their pictures."""

from __future__ import annotations

import json
import re
import shutil

import yaml

from tests.conftest import RECIPE, Work

MIXED = [{"recipe": "dog", "strength": 0.7}, {"path": "elsewhere.safetensors"}, {"recipe": "words"}]


def test_adapters_of_recipes_and_files_are_mixed(built: Work) -> None:
    shutil.copy(built.root / "build/cat/adapter/cat.safetensors", built.root / "elsewhere.safetensors")
    train = {**RECIPE["train"], "learning_rate": 0.05}
    words = {"kind": "textual_inversion", "tokens": [{"token": "sks", "start": "cat"}]}
    for name, method, others in [
        ("dog", RECIPE["method"], []),
        ("words", words, []),
        (
            "mix",
            RECIPE["method"],
            [{"recipe": "dog", "strength": 0.7}, {"path": "elsewhere.safetensors"}, {"recipe": "words"}],
        ),
    ]:
        sample = {**RECIPE["sample"], "adapters": others, "measure": name == "mix", "seeds": [0, 1]}
        content = {**RECIPE, "method": method, "train": train, "sample": sample if name == "mix" else None}
        built.write(f"recipes/{name}.yaml", yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    ran = built.doit("mix").ran  # the recipes that it needs are built first
    assert {"dog:train", "words:train", "mix:train", "mix:samples"} <= ran.keys()
    listed = json.loads(built.read("build/mix/samples/samples.json"))
    assert listed["settings"]["adapters"][0] == {"recipe": "dog", "path": None, "strength": 0.7}
    measured = json.loads(built.read("build/mix/samples.metrics.json"))
    assert {strength for figures in measured.values() for strength in figures} == {"0", "1"}
    assert all(figure > 0 for figures in measured.values() for figure in figures.values())
    assert built.doit("mix").ran == {}
    compared = built.sdbuild("compare", "mix", "dog", "--json").out
    assert [row["nearest"] and set(row["nearest"]) for row in json.loads(compared)["recipes"]].count({"0", "1"}) == 1
    assert "nearest: from the base's pictures" in built.sdbuild("compare", "mix", "dog").out
    # With another strength of another recipe's adapter, the grid alone is drawn anew, and looks different.
    before = built.read("build/mix/samples/grid.png")
    path = built.root / "recipes/mix.yaml"
    path.write_text(path.read_text().replace("0.7", "0.0"))
    assert set(built.doit("mix").ran) == {"mix:samples"}
    assert built.read("build/mix/samples/grid.png") != before
    # What made the other adapter changes, and so does the grid.
    path = built.root / "recipes/dog.yaml"
    path.write_text(path.read_text().replace("0.05", "0.04"))
    assert set(built.doit("mix").ran) == {"dog:train", "mix:samples"}


def test_what_one_grid_cannot_mix_is_said(built: Work) -> None:
    words = {"kind": "textual_inversion", "tokens": [{"token": "sks", "start": "cat"}]}
    built.recipe("whole", method=None, sample=None)
    built.write("recipes/whole.yaml", built.read("recipes/whole.yaml").decode() + "method: {kind: full}\n")
    built.write("recipes/words.yaml", yaml.safe_dump({**RECIPE, "method": words, "sample": None}))
    built.recipe("many", sample=None, matrix={"method.rank": [1, 2]})
    others = [{"recipe": name} for name in ("whole", "words", "many", "many@rank-9", "many@rank-1")]
    capitals = json.loads(json.dumps(words).replace("sks", "SKS"))
    for name, method in {"one": {"kind": "dreambooth"}, "two": capitals}.items():
        sample = {**RECIPE["sample"], "adapters": others}
        built.write(f"recipes/{name}.yaml", yaml.safe_dump({**RECIPE, "method": method, "sample": sample}))
    told = re.sub(r"(?m)^(recipes/\w+\.yaml):\d+:", r"\1:", built.sdbuild("check", code=2).err)
    assert told.splitlines() == [
        "recipes/one.yaml: sample.adapters[0].recipe: whole makes a whole checkpoint, as this recipe does, and a grid "
        "is drawn with one; leave it out, or mix a copy of the LoRA that method.extract makes of it",
        *(
            f"recipes/{name}.yaml: sample.adapters[{index}].recipe: {message}"
            for name, several in {
                "one": {},
                "two": {1: "words learns 'sks', as this recipe does, and a prompt cannot mean both; rename one"},
            }.items()
            for index, message in {
                **several,
                2: "'many' has 2 variants; name one, such as many@rank-1",
                3: "'many@rank-9' is no variant of many; name one, such as many@rank-1",
            }.items()
        ),
    ]


def test_what_is_not_there_is_said(built: Work) -> None:
    others = [{"recipe": "dgo"}, {"path": "x.pt"}, {"path": "a.safetensors"}, {}]
    others += [{"recipe": "cat"}, {"path": "build/dog/adapter/dog.safetensors"}]
    built.recipe(sample={"adapters": others})
    built.recipe("dog")
    text = built.sdbuild("check", code=2).text
    assert "sample.adapters[0].recipe: there is no recipe 'dgo' (did you mean dog?)" in text
    assert "sample.adapters[1].path: 'x.pt' is no .safetensors file" in text
    assert "sample.adapters[2].path: file 'a.safetensors' does not exist" in text
    assert "sample.adapters[3].recipe: or path is missing" in text
    assert "adapters[5].path: 'build/dog/adapter/dog.safetensors' is what a recipe builds; say recipe: dog" in text
