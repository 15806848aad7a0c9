"""Tokens are counted as the text encoders' own tokenizers do, without their library."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from sdbuild import families
from sdbuild.errors import DataError
from sdbuild.families.tokens import token_counter
from tests.tiny import make_pipeline

EMOJI = Path(families.__file__).parent.parent / "bases/emoji-64"


def texts() -> list[str]:
    draw = random.Random(0)
    letters = "ab ,.!'\"<|>endoftext|0123 éß🐈\n\t中"
    drawn = ["".join(draw.choice(letters) for _ in range(draw.randint(1, 60))) for _ in range(200)]
    return ["", "a cat", "A Cat!! it's 42 <|endoftext|> now", "naïve  café 🐈‍⬛ 中文", "!!!", "x" * 500, *drawn]


def agree(base: Path) -> None:
    from sdbuild.families.text import ClipText

    counter = token_counter(base)
    encoder = families.load(base).load_text()
    assert isinstance(encoder, ClipText)
    assert counter.limit == encoder.max_tokens
    assert [counter.count(text) for text in texts()] == [encoder.count_tokens(text) for text in texts()]


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sd3"])
def test_counts_are_those_of_the_text_step(family: str, tmp_path: Path) -> None:
    agree(make_pipeline(tmp_path / family, family=family))


def test_a_vocabulary_with_merges() -> None:
    agree(EMOJI)


def test_a_base_without_tokenizer_json(copy: Path) -> None:
    (copy / "tokenizer").rename(copy / "old")
    (copy / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (copy / "tokenizer" / name).write_bytes((EMOJI / "tokenizer" / name).read_bytes())
    counter, emoji = token_counter(copy), token_counter(EMOJI)
    assert [counter.count(text) for text in texts()] == [emoji.count(text) for text in texts()]


def test_a_damaged_vocabulary_is_named(copy: Path) -> None:
    (copy / "tokenizer/tokenizer.json").write_text('{"model": {"vocab": {"a": 0}, "merges": [["b", "c"]]}}')
    with pytest.raises(DataError, match=r"tokenizer: holds no vocabulary that can be used"):
        token_counter(copy)


def test_counting_is_light() -> None:
    script = (
        f"from pathlib import Path; from sdbuild.families.tokens import token_counter\n"
        f"token_counter(Path({str(EMOJI)!r})).count('a cat')\n"
        "import sys; print(sorted({'torch', 'transformers', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
