from __future__ import annotations

import math
from typing import Any

import pytest
import yaml

from sdbuild.recipe import document
from sdbuild.recipe.document import MAX_BYTES, MAX_NODES, plain, read, scalar
from sdbuild.recipe.inherit import entry


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both of PyYAML's parsers: the one in C need not be there."""
    name = str(request.param)
    if not hasattr(yaml, name):
        pytest.skip("PyYAML was built without libyaml")
    monkeypatch.setattr(document, "LOADER", getattr(yaml, name))
    return name


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.5E+3", 1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1", -1),
        ("+7", 7),
        ("007", 7),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("False", False),
        ("", None),
        ("~", None),
        ("null", None),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ("-", "-"),
        (".", "."),
        (".inf", math.inf),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.usefixtures("parser")
def test_quoted_scalars_are_text() -> None:
    node, problems = read(b"""a: "1"\nb: 'true'\nc: |\n  x\n  y\n""", "f")
    assert not problems
    assert node is not None
    assert plain(node) == {"a": "1", "b": "true", "c": "x\ny\n"}


@pytest.mark.usefixtures("parser")
def test_nodes_know_the_lines_of_their_keys() -> None:
    node, _ = read(b"a:\n  b:\n    - 1\n    - c: 2\n", "f")
    assert node is not None
    outer = entry(node, "a")
    inner = entry(outer, "b")
    assert outer is not None
    assert inner is not None
    assert isinstance(inner.value, list)
    assert (outer.line, inner.line, [item.line for item in inner.value]) == (1, 2, [3, 4])


@pytest.mark.usefixtures("parser")
def test_a_byte_order_mark_and_carriage_returns_are_tolerated() -> None:
    node, problems = read(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n", "f")
    assert not problems
    assert node is not None
    assert plain(node) == {"a": 1, "b": 2}


@pytest.mark.usefixtures("parser")
def test_aliases_are_read() -> None:
    node, problems = read(b"a: &x {k: 1}\nb: *x\n", "f")
    assert not problems
    assert node is not None
    assert plain(node) == {"a": {"k": 1}, "b": {"k": 1}}


LAUGHS = b"a: &a [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (letter, letter, b", ".join([b"*%c" % (letter - 1)] * 10)) for letter in range(98, 106)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "f: is empty; a recipe has at least base and datasets"),
        (b"# nothing\n", "f: is empty; a recipe has at least base and datasets"),
        (b"---\n", "f: is empty; a recipe has at least base and datasets"),
        (b"- a\n", "f:1: is not a mapping; a recipe has keys such as base: and datasets:"),
        (b"a: 1\nb: {c: 1,\n c: 2}\n", "f:3: b.c: is there twice, first in line 2; remove one"),
        (b"a:\n\tb: 1\n", "f:2: a tab stands here; indent with spaces"),
        (b"a: 1\n---\nb: 1\n", "f:2: a second document starts here; write one recipe a file"),
        (b"a: b: c\n", "f:1: a second `: ` in one line; put text that contains it in quotes"),
        (b"a: 1\nb: @x\n", "f:2: text cannot start like this; put it in quotes"),
        (b"a: *x\n", "f:1: alias *x has no anchor before it"),
        (b"a: &x [*x]\n", "f:1: alias *x has no anchor before it"),
        (b"? [a]\n: 1\n", "f:1: a key must be a plain word"),
        (
            b"a: !!python/object/apply:os.system [ls]\n",
            "f:1: tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed; remove it",
        ),
        (b"a: ok\nb: caf\xe9\n", "f:2: is not UTF-8; save it in that encoding"),
        ("a: 1\n".encode("utf-16"), "f:1: is not UTF-8; save it in that encoding"),
        ("a: ü€😀\nb: \x00\n".encode(), "f:2: holds a control character; remove it"),
        (b"a: " + b"x" * MAX_BYTES, "f: is larger than 1 MiB; a recipe is a short text"),
        (b"a: " + b"[" * 500_000, "f:1: is nested more than 20 levels deep"),
        (b"- " * 500_000, "f:1: is nested more than 20 levels deep"),
        (LAUGHS, "f:5: stands for more than 20,000 values; write fewer, or fewer aliases"),
        (b"a:\n" + b"- x\n" * MAX_NODES, "f:20000: stands for more than 20,000 values; write fewer, or fewer aliases"),
    ],
)
@pytest.mark.timeout(60)  # bad text must not keep anybody waiting
def test_bad_text(content: bytes, message: str) -> None:
    _, problems = read(content, "f")
    assert [str(problem) for problem in problems] == [message]


@pytest.mark.usefixtures("parser")
def test_other_syntax_errors_keep_the_line_and_the_parsers_words() -> None:
    _, (problem,) = read(b"a: 1\nb: [1\nc: 2\n", "f")
    assert problem.line in {2, 3}
    assert problem.message.startswith("is not valid YAML while parsing a flow sequence")


@pytest.mark.usefixtures("parser")
def test_all_duplicates_are_reported() -> None:
    _, problems = read(b"a: 1\na: 2\nb:\n- {c: 1, c: 2}\n", "f")
    assert [(problem.line, problem.field) for problem in problems] == [(2, "a"), (4, "b[0].c")]
