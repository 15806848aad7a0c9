"""What recipes can say about textual inversion."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from sdbuild.methods.spec import WORDS, MethodSpec, Rated, Side, Usual
from sdbuild.recipe.spec import Some, Spec, Text, refuse
from sdbuild.storage.text_cleaning import says, visible

MOST_BYTES = 180
"""Of a token, so that it can be a file's name."""


def _token(word: str) -> str:
    if not visible(word):
        raise refuse("holds nothing that can be seen; write a word such as '<toy>'")
    if visible(word) != word:
        raise refuse(f"{word!r} holds characters that nobody sees, or parted accents; write {visible(word)!r}")
    if not re.fullmatch(r"\S+", word) or not re.search(r"[^\W_]", word):
        raise refuse(f"{word!r} must be one word with letters or digits, such as '<toy>'")
    if re.search(r"[()\[\]\\]", word):
        raise refuse(f"{word!r} has brackets that prompts read as weights; choose others, such as '<toy>'")
    if len(word.encode()) > MOST_BYTES:
        raise refuse(f"has more than {MOST_BYTES} bytes, and a file is called by it; shorten it")
    if re.search(r"_\d+$", word):
        raise refuse(f"{word!r} ends like the further vectors of another token; leave the number out")
    return word


def _start(words: str) -> str:
    if not re.search(r"[^\W_]", words):
        raise refuse(f"{words!r} has no letters or digits; name words that the base knows, such as 'toy'")
    return words


class Token(Spec):
    """A new word."""

    token: Annotated[Text, AfterValidator(_token)]
    """The new word, as captions and prompts write it: `<toy>`."""
    vectors: Annotated[int, Field(ge=1, le=64)] = 1
    """How many vectors it stands for, each of which takes the room of a token."""
    start: Annotated[Text, AfterValidator(_start)] = Field(
        default_factory=lambda data: " ".join(re.findall(r"[^\W_]+", str(data.get("token", ""))))
    )
    """Words whose vectors it starts from. The default is the token's own letters."""

    @property
    def letters(self) -> str:
        """Its letters, digits and hyphens: what a file can be called."""
        return re.sub(r"[^\w-]+", "", self.token)


class Tokens(MethodSpec):
    """What methods with new words share."""

    tokens: Some[Token]
    """The words that are learned; captions must hold them (a dataset's `trigger` is the simplest way)."""
    norm: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share by which each step takes a vector's length back to the usual one of the vocabulary; 0 leaves it alone."""

    @property
    def sides(self) -> frozenset[Side]:
        """The text encoders read the tokens in every step."""
        return frozenset({"text"})

    @property
    def rated(self) -> frozenset[Rated]:
        """The tokens' vectors."""
        return frozenset({"embeddings"})

    @property
    def words(self) -> Sequence[str]:
        """The tokens."""
        return [each.token for each in self.tokens]

    def rules(self) -> Iterator[tuple[str, str]]:
        """No token is a part of another, which would hide it."""
        for index, token in enumerate(self.words):
            earlier = self.words[:index]
            same = next((other for other in earlier if token.lower() == other.lower()), None)
            if same is not None:
                message = f"{token!r} is {same!r} again, as capitals and small letters read alike; rename one"
                yield f"tokens.{index}.token", message
                continue
            for other in self.words:
                if token.lower() != other.lower() and says(other, token):
                    yield f"tokens.{index}.token", f"{token!r} is in {other!r}, where it would be read too; rename one"
            if self.tokens[index].letters.lower() in [each.letters.lower() for each in self.tokens[:index]]:
                yield f"tokens.{index}.token", f"{token!r} has the letters of another, which name its file; rename one"


class TextualInversion(Tokens):
    """New words whose vectors are learned, and nothing else of the base (Gal et al., 2023)."""

    usual: ClassVar[Usual] = WORDS
    modelspec: ClassVar[str] = "/textual-inversion"
    mention: ClassVar[str] = ""

    kind: Literal["textual_inversion"] = "textual_inversion"


SPEC = TextualInversion
