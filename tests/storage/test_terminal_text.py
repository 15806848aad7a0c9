"""What reaches a terminal is text."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import unicodedata
from typing import Any

import pytest

from sdbuild.console import Console
from sdbuild.errors import DataError, Problem, StepError
from sdbuild.storage import terminal_text

HOSTILE = (
    "\x1b]52;c;ZWNobyBoaQ==\x07",  # clipboard
    "\x1b]0;title\x07\x1b[2J\x1b[H\x9b31m",
    "a\rb\x08\x08\x7f\x85",
    "photo\u202egpj.exe\u2066\u2069\u200e\u061c",
    "zero\u200bwidth\ufeff\u00ad\u2060\u3164\U000e0041",
    "line\nforged\u2028line\u2029\x0b\x0c",
    "half \ud83d \udcff\udc9b of pairs",
    "a\u200db",
    "\0",
)
FINE = (
    "Grüße",
    "日本語",
    "é e\u0301",
    "👩\u200d🚀 ❤️",
    "می\u200cخواهم",
    "[red]no markup[/red] :cat:",
    r"C:\x1b",
    "a\u00a0b",
    "שלום",
    "𝔘",
)


def harmless(text: str) -> bool:
    return all(letter == "\n" or unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp") for letter in text)


def test_a_line_is_text_whatever_it_was_made_of() -> None:
    for text in HOSTILE:
        found = terminal_text.line(f"x{text}y")
        assert harmless(found)
        assert "\n" not in found
        assert not any(terminal_text._misleads(letter) for letter in found), found
        assert terminal_text.line(found) == found
        found.encode()
    assert [terminal_text.line(text) for text in FINE] == list(FINE)
    assert (
        terminal_text.line("\x1b\x9b\r\n\t\u202e\U000e0041\udcff\ud800") == r"\x1b\x9b\r\n\t\u202e\U000e0041\xff\ud800"
    )
    assert terminal_text.lines("a\nb\x1b") == "a\nb\\x1b"


def test_every_character_that_unicode_calls_invisible_is_spelled_out() -> None:
    for code in [*range(0x3000), *range(0xD800, 0xE000), *range(0xFE00, 0x10000), *range(0xE0000, 0xE1000)]:
        letter = chr(code)
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            assert terminal_text.line(f"a{letter}b").isascii(), hex(code)


def test_json_keeps_every_value() -> None:
    value = {f"key {text}": [text, {"inside": text}] for text in (*HOSTILE, *FINE)}
    text = terminal_text.as_json(value)
    assert json.loads(text) == value
    assert harmless(text)
    assert not any(terminal_text._misleads(letter) for letter in text.replace("\n", ""))
    assert "Grüße" in text
    assert json.loads(terminal_text.as_json({"loss": [float("nan"), float("inf"), 1.5]})) == {"loss": [None, None, 1.5]}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_the_console_writes_nothing_of_others_that_steers_a_terminal(stream: Any) -> None:
    for text in (*HOSTILE, *FINE):
        out, errors = stream(), stream()
        console = Console(out, errors)
        console.say(text)
        console.styled([(text, "old"), (text, "")])
        console.warn(text)
        console.error(str(StepError(text, text)))
        console.error(str(DataError([Problem(message=text, file=text, field=text)])))
        console.table((text,), [(text,), ((text, text),)])
        console.json({text: text})
        console.step_started(text, [text])
        console.step_progress(text, 1, 2, text, {text: 1.0})
        console.say(text)
        console.step_done(text, 1, 1, 1.0)
        console.stop()
        for written in (out.getvalue(), errors.getvalue()):
            if stream is Terminal:  # its own colours and moves
                written = written.replace("\x1b[31m", "").replace("\x1b[0m", "")
                assert "\x1b]" not in written
                assert "\x9b" not in written
            else:
                assert harmless(written), written
            assert not any(mark in written for mark in "\u202e\u2066\u2028\x07\x7f"), written
            assert not any(line.startswith("forged") for line in written.splitlines())
    assert errors.getvalue().count("\n") == 3


def test_markup_and_emoji_names_are_shown_as_they_are() -> None:
    out = Terminal()
    console = Console(out)
    console.step_started("x", [])
    console.step_progress("x", 1, 2, "files", {})
    console.say("[red]a[/red] :cat:")
    console.table(("[bold]b[/bold]",), [("[link=x]:dog:",)])
    console.stop()
    assert "[red]a[/red] :cat:" in out.getvalue()
    assert "[bold]b[/bold]" in out.getvalue()
    assert "[link=x]:dog:" in out.getvalue()


def test_an_encoding_that_lacks_letters_spells_them_out() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    console = Console(out, out)
    for text in (*HOSTILE, *FINE):
        console.say(text)
        console.error(text)
        console.table((text,), [(text,)])
        console.json(text)
    assert raw.getvalue().isascii()


def test_what_libraries_print_is_guarded_too() -> None:
    script = """
import logging, sys, warnings
from sdbuild.storage import terminal_text
terminal_text.guard(); terminal_text.guard()
name = "\\x1b]0;t\\x07 \\udcff é"
print(name, file=sys.stderr); print(name); sys.stdout.writelines([name])
logging.error(name); warnings.warn(name)
sys.stderr.write("\\r 5% done"); sys.stderr.write("\\x1b[A")
raise ValueError(name)
"""
    for encoding in ("utf-8", "ascii"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            env={"PYTHONIOENCODING": encoding, "PYTHONPATH": "."},
            check=False,
        )
        written = done.stdout + done.stderr
        assert b"UnicodeEncodeError" not in written
        assert written.count(rb"\x1b]0;t\x07 \xff") >= 5
        assert written.replace(b"\r 5% done\x1b[A", b"").count(b"\x1b") == 0
        assert b"\x07" not in written
