"""What is asked, what becomes of answers, and what stops before anything is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdbuild.captioners.prompts import ALONE, REFINED, STYLES, compose
from sdbuild.captioners.said import read_said
from sdbuild.captioners.texts import clean, finish, shorten
from sdbuild.errors import StepError
from sdbuild.steps.contract import Items
from tests.captioners.conftest import CLAUDE, GPT, Asking
from tests.captioners.server import Asked, Speaker

SENTENCE = {"style": "sentence", "max_words": None}


def test_the_words_of_questions_stay_as_they_are() -> None:
    """Other words ask for every caption anew: change them only where that is worth it."""
    import hashlib

    words = json.dumps([STYLES, REFINED, ALONE], sort_keys=True)
    assert hashlib.sha256(words.encode()).hexdigest()[:16] == "07bb2f0e3b11926c"


def test_a_question_has_all_that_a_recipe_says() -> None:
    settings = {"style": "tags", "max_words": 20, "avoid": ["image", "photo"]}
    fields = {"subject": "cat"}
    assert compose(settings, fields, language="German").splitlines() == [
        STYLES["tags"],
        "The subject is: cat.",
        "Write in German.",
        "Use at most 20 words.",
        "Do not use these words: image, photo.",
        ALONE,
    ]
    own = {"style": "tags", "instruction": "What of {tags} is in {stem}, {{really}}?"}
    assert compose(own, {"tags": "a {0} {stem}", "stem": "cat"}).splitlines() == [
        "What of a {0} {stem} is in cat, {really}?",
        ALONE,
    ]
    assert compose({"style": "short"}, {}, before="a, b").splitlines()[0] == "This was said of the picture: a, b"
    assert compose({"instruction": "Put {caption} well"}, {}, before="a, b").splitlines()[0] == "Put a, b well"


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("  A cat.\n\n It sits.\t", "A cat. It sits."),
        ('"A cat."', "A cat."),
        ('"A" and "B"', '"A" and "B"'),
        ("“A cat”", "A cat"),
        ("a\x00\x1b[31m cat\x9b\u202e\ufeff\u200b", "a [31m cat"),
        ("half \ud800 a pair", "half a pair"),
        ("👩\u200d🚀 in space", "👩\u200d🚀 in space"),
        ("cafe\u0301", "café"),
        ("a\u2028b\u0085c", "a b c"),
        ("\n \u200b", ""),
    ],
)
def test_what_is_said_becomes_one_visible_line(said: str, text: str) -> None:
    assert clean(said) == text


def test_captions_are_finished() -> None:
    settings = {"replace": [["a photo of ", ""], ["kitty", "cat"]], "prefix": "photo, ", "suffix": "."}
    assert finish("a photo of a kitty", settings, SENTENCE) == "photo, a cat."
    tags = {"style": "tags", "avoid": ["image", "Photo"], "max_words": 3}
    assert finish("cat, Cat, image of x, red sofa., photo; dog, bird", {}, tags) == "cat, red sofa"
    assert finish("photo", {"suffix": ", x"}, tags) == ""


def test_long_captions_end_where_a_part_ends() -> None:
    text = "A cat sits. It is red, small and on a sofa in the sun."
    assert shorten(text, None) == text
    assert shorten(text, 7) == "A cat sits."
    assert shorten("A cat is red, small and on a sofa", 6) == "A cat is red"
    assert shorten("one two three four", 2) == "one two"
    assert shorten("red cat, blue dog, sun", 3, tags=True) == "red cat"


def test_fields_of_the_record_are_told(asking: Asking, server: Speaker) -> None:
    folder = asking.root / "datasets/cats"
    for number, name in enumerate(("red_fox-01", "blue-whale", "x", "y")):
        (folder / f"{number:04d}.png").rename(folder / f"{name}.png")
    (folder / "x.tags").write_text("sofa,\n cat")
    asking.run(**CLAUDE, instruction="{stem}|{folder}|{trigger}|{tags}|{subject}", subject="animal", max_words=None)
    told = sorted(asked.prompt.splitlines()[0] for asked in server.asked)
    assert told == [
        "blue whale|cats|sks||animal",
        "red fox|cats|sks||animal",
        "x|cats|sks|sofa, cat|animal",
        "y|cats|sks||animal",
    ]
    (folder / "x.tags").write_text("dog")
    assert asking.run(
        **CLAUDE, instruction="{stem}|{folder}|{trigger}|{tags}|{subject}", subject="animal", max_words=None
    ) == Items(total=4, computed=1)


@pytest.mark.parametrize("model", [CLAUDE, GPT], ids=["anthropic", "openai"])
def test_pictures_are_scaled_down_and_settings_sent(asking: Asking, server: Speaker, model: dict[str, Any]) -> None:
    Image.effect_noise((800, 400), 50).convert("RGB").save(asking.root / "datasets/cats/0000.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((300, 600), 50).convert("RGB").save(asking.root / "datasets/cats/t.jpg", exif=exif)
    asking.run(**model, longest_side=400, temperature=0.5, extra={"top_p": 0.9, "size": [1, {"a": None}]})
    assert sorted(asked.size for asked in server.asked) == [(32, 32), (32, 32), (32, 32), (400, 200)]
    body = server.asked[0].body
    assert (body["temperature"], body["top_p"], body["size"]) == (0.5, 0.9, [1, {"a": None}])
    assert body["model"] == model["model"]


def test_a_chain_refines_and_both_passes_are_kept(asking: Asking, server: Speaker) -> None:
    def say(asked: Asked) -> str:
        return f"tag {asked.picture[:4]}, sun" if "as tags" in asked.prompt else asked.prompt.splitlines()[0]

    server.say = say
    chain = [{"instruction": "A sentence of {caption}", "picture": False}]
    asking.run(**CLAUDE, style="tags", chain=chain)
    assert len(server.asked) == 8
    assert sorted(bool(asked.picture) for asked in server.asked) == [False] * 4 + [True] * 4
    assert all(text.startswith("sks A sentence of tag ") and text.endswith(", sun") for text in asking.texts)
    server.asked.clear()
    asking.run(**CLAUDE, style="tags", chain=[{"style": "short"}])
    assert len(server.asked) == 4, "only the changed pass is asked"
    assert asking.run(**CLAUDE, style="tags") == Items(total=4, computed=0)


def test_languages_give_several_captions(asking: Asking, server: Speaker) -> None:
    server.say = lambda asked: next(line for line in asked.prompt.splitlines() if line.startswith("Write in"))
    asking.run(**CLAUDE, languages=["English", "German"])
    assert len(server.asked) == 8
    assert {row.text for row in asking.rows} == {"sks Write in English."}
    assert {row.others for row in asking.rows} == {("sks Write in German.",)}


def test_what_a_model_says_is_data(asking: Asking, server: Speaker) -> None:
    nasty = '[red]{trigger}[/] ../../etc/passwd {0.__class__} <script>%s</script>\r\n\x1b[2J$(rm) "x'
    server.say = lambda asked: nasty
    asking.run(**CLAUDE, chain=[{"instruction": "Again: {caption}"}])
    assert "Again: " + clean(nasty) in [asked.prompt.splitlines()[0] for asked in server.asked]
    assert set(asking.texts) == {f"sks {clean(nasty)}"}
    assert all(character.isprintable() for text in asking.texts for character in text)


def test_words_to_avoid_are_told_of(asking: Asking, server: Speaker) -> None:
    server.say = lambda asked: "an image of a cat"
    asking.run(**CLAUDE, avoid=["image"])
    assert asking.warnings == ["4 captions have words to avoid: image"]
    with pytest.raises(StepError, match=r"nothing is left of its caption"):
        asking.run(**CLAUDE, replace={"an image of a cat": ""})
    assert asking.run(**CLAUDE, replace={"an image of ": ""}, prefix="photo: ").computed == 0
    assert set(asking.texts) == {"sks photo: a cat"}


def test_limits_stop_before_the_first_request(asking: Asking, server: Speaker) -> None:
    with pytest.raises(StepError, match=r"4 pictures are to be captioned, and max_images is 3: raise it"):
        asking.run(**CLAUDE, max_images=3)
    with pytest.raises(StepError, match=r"captions of 4 pictures by claude-haiku-4-5 may cost up to \$0\.01"):
        asking.run(**CLAUDE, max_cost=0.001)
    assert not server.asked
    assert asking.run(**CLAUDE, max_images=4, max_cost=0.05).computed == 4
    assert asking.run(**CLAUDE, max_images=0, max_cost=0) == Items(total=4, computed=0), "nothing is to be asked"


def test_money_is_counted_as_it_is_spent(asking: Asking, server: Speaker) -> None:
    # Each request turns out to have 1,000 tokens, more than was estimated: the estimate alone would let all through.
    prices = {"input": 1000.0, "output": 0.0}
    with pytest.raises(StepError, match=r"max_cost: 2 of 2\.5 dollars are spent.*\n2 of 4 captions arrived"):
        asking.run(**{**CLAUDE, "model": "unknown"}, prices=prices, max_cost=2.5, parallel=1)
    assert len(server.asked) == 2
    done, total, figures = asking.told[-1]
    assert (done, total) == (2, 4)
    assert figures["$"] == pytest.approx(2.0)
    assert figures["$ to go"] == pytest.approx(2.0)
    assert figures["k tokens"] == 2.04


def test_passes_share_their_money(asking: Asking, server: Speaker) -> None:
    prices = {"input": 1000.0, "output": 0.0}
    own = {**CLAUDE, "model": "unknown", "prices": prices, "parallel": 1, "chain": [{"style": "short"}]}
    with pytest.raises(StepError, match=r"may cost up to \$"):
        asking.run(**own, max_cost=0.5)
    assert not server.asked
    with pytest.raises(StepError, match=r"max_cost: 5 of 5\.5 dollars are spent.*\n1 of 4 captions arrived"):
        asking.run(**own, max_cost=5.5)
    assert len(server.asked) == 5


def test_requests_are_not_more_than_allowed(asking: Asking, server: Speaker) -> None:
    server.latency = 0.1
    asking.run(**CLAUDE, parallel=3)
    assert server.most_at_once == 3


def test_answers_outlive_the_store_and_the_last_result(asking: Asking, server: Speaker) -> None:
    asking.run(**CLAUDE)
    store = asking.items / "captions/said.jsonl"
    said = store.read_bytes()
    store.unlink()
    assert asking.run(**CLAUDE).computed == 0, "taken from the last result"
    (asking.previous / "captions.jsonl").unlink()
    store.write_bytes(said + b'{"key": "cut sho')
    assert asking.run(**CLAUDE).computed == 0, "taken from the store"
    assert len(server.asked) == 4
    assert asking.run(**CLAUDE, style="short").computed == 4
    assert len(read_said(store.parent)) == 8


def test_servers_of_ones_own_need_no_key(asking: Asking, server: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL")
    server.key = "none"
    asking.run(**{**GPT, "model": "llava"}, base_url=f"{server.url}/v1")
    assert "max_tokens" in server.asked[0].body
    monkeypatch.setenv("OTHER_KEY", "other")
    monkeypatch.setenv("SDBUILD_KEYS", f"OTHER_KEY={server.url}")
    server.key = "other"
    with pytest.raises(StepError, match=r"the server wants a key, and OPENAI_API_KEY is not sent there; .*\(401: "):
        asking.run(**GPT, base_url=f"{server.url}/v1")
    assert asking.run(**GPT, base_url=f"{server.url}/v1", key_variable="OTHER_KEY").computed == 4


def test_openai_itself_is_told_the_limit_by_its_newer_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdbuild.captioners.openai import ChatCompletions

    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    settings = {"model": "gpt-4o", "key_variable": "OPENAI_API_KEY", "timeout": 1.0}
    names = []
    for address in (None, "http://127.0.0.1:1/v1"):
        provider = ChatCompletions({**settings, "base_url": address})
        names.append(provider._limit)
        provider.close()
    assert names == ["max_completion_tokens", "max_tokens"]


def test_a_record_without_what_was_said_is_read(tmp_path: Path) -> None:
    from sdbuild.data.records import CaptionRecord, read_captions, write_captions

    rows = [
        CaptionRecord(digest="a", dataset=0, text="x", origin="sidecar", split="train"),
        CaptionRecord(digest="b", dataset=0, text="y", origin="openai", split="train", said=(("k", "raw"),)),
    ]
    write_captions(tmp_path / "captions.jsonl", rows)
    assert read_captions(tmp_path / "captions.jsonl") == rows
    assert b"said" not in (tmp_path / "captions.jsonl").read_bytes().splitlines()[0]
