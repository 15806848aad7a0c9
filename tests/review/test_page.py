"""The page in a real browser: open, edit by keyboard, save, sidecar on disk.

Needs Chromium (Debian: `apt-get install chromium`; or `playwright install chromium`); skipped without.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import environment
from tests.review.conftest import Cats

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--no-sandbox",  # which root, as CI often is, may not use; only this server's page is opened
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, NAMES)), None) or playwright.chromium.executable_path
        if not Path(found).exists():
            pytest.skip("no Chromium here: `apt-get install chromium`, or `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=found, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, cats: Cats) -> Iterator[Any]:
    """The page of the project, served by the command that people type."""
    cats.caption("0001", '<img src=x onerror="document.title=1"> & <script>document.title=2</script>')
    command = [sys.executable, "-m", "sdbuild", "captions", "page", "cat", "--no-browser"]
    with subprocess.Popen(
        command, cwd=cats.root, env=environment({"PYTHONUNBUFFERED": "1"}), stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+/\S+/", server.stdout.readline())
            assert address is not None
            page = chromium.new_page()
            complaints: list[str] = []
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(address[0])
            page.wait_for_selector("#list li")
            page.complaints = complaints
            yield page
            page.close()
        finally:
            server.terminate()


def says(page: Any, words: str) -> None:
    page.wait_for_selector(f"#status:has-text('{words}')")


def test_a_caption_is_edited_by_keyboard_alone(page: Any, cats: Cats) -> None:
    front = page.locator("#list [aria-selected=true] .name")
    assert page.locator("#list li").count() == 4
    assert front.text_content() == "0000.png"
    before = cats.state()

    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    assert front.text_content() == "0002.png"
    page.keyboard.press("Enter")
    page.keyboard.press("Control+a")
    page.keyboard.type("two green apples")
    page.keyboard.press("Control+s")
    says(page, "saved: 0002.png")
    after = cats.state()
    assert after["0002.txt"][0] == b"two green apples\n"
    assert {name for name in after if after[name] != before.get(name)} == {"0002.txt", ".captions-fit.jsonl"}
    assert page.locator("#list [aria-selected=true] .snippet").text_content() == "two green apples"

    page.keyboard.press("k")  # Escape writes nothing, and u brings the text back
    page.keyboard.press("k")
    page.keyboard.press("e")
    page.keyboard.type(" asleep")
    page.keyboard.press("Escape")
    says(page, "u brings your text back")
    assert page.locator("#text").input_value() == "a red cat"
    assert cats.state()["0000.txt"][0] == b"a red cat\n"
    page.keyboard.press("u")
    page.keyboard.press("Enter")
    says(page, "saved: 0000.png")
    assert cats.state()["0000.txt"][0] == b"a red cat asleep\n"

    page.keyboard.press("/")
    page.keyboard.type("HOUSE")
    assert page.locator("#list li .name").all_text_contents() == ["0003.png"]
    page.keyboard.press("Escape")
    assert page.locator("#list li").count() == 4

    page.keyboard.press("g")
    page.keyboard.press("e")  # save, and go on with the next one
    page.keyboard.type("!")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#path:has-text('0001.png')")
    assert page.evaluate("document.activeElement.id") == "text"
    assert page.locator("#text").input_value().startswith("<img src=x")
    assert page.title() == "Captions of cat", "what stands in captions is no markup"
    assert page.locator("#list img").count() == 4
    assert page.complaints == []


def test_somebody_else_s_text_is_shown_before_it_is_replaced(page: Any, cats: Cats) -> None:
    page.keyboard.press("G")
    page.keyboard.press("Enter")
    page.keyboard.type(" by the sea")
    cats.caption("0003", "a tower")
    page.keyboard.press("Control+s")
    page.wait_for_selector("#conflict:not([hidden])")
    assert page.locator("#theirs").text_content() == "a tower"
    assert cats.state()["0003.txt"][0] == b"a tower"
    page.locator("#keep").click()
    page.keyboard.press("Control+s")
    says(page, "saved")
    assert cats.state()["0003.txt"][0] == b"a house by the sea\n"


def test_problems_are_filtered_and_changed_pictures_confirmed(page: Any, cats: Cats) -> None:
    page.keyboard.press("Enter")
    page.keyboard.type("!")
    page.keyboard.press("Enter")
    says(page, "saved")
    cats.repaint("0000.png")
    (cats.root / "datasets/cats/0003.txt").unlink()
    page.keyboard.press("r")
    page.wait_for_selector(".badge:has-text('picture changed')")
    page.keyboard.press("p")
    names = page.locator("#list li .name").all_text_contents()
    assert {"0000.png", "0003.png"} <= set(names)
    assert "0002.png" not in names
    page.keyboard.press("Home")
    page.keyboard.press("c")
    says(page, "confirmed: 0000.png")
    assert "0000.png" not in page.locator("#list li .name").all_text_contents()
    assert cats.kinds()["0000.png"] == []


def test_lines_that_did_not_change_are_not_made_again(page: Any) -> None:
    """With thousands of pictures to make all lines anew would take seconds a caption."""
    page.evaluate("document.querySelectorAll('#list li').forEach((line) => { line.old = true; })")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.keyboard.type(" and more")
    page.keyboard.press("Control+s")
    says(page, "saved: 0001.png")
    search = page.locator("#search")
    search.fill("0003")
    search.fill("")
    old = "[...document.querySelectorAll('#list li')].map((line) => [line.old === true, line.ariaSelected])"
    assert page.evaluate(old) == [[True, "false"], [False, "false"], [True, "false"], [True, "true"]]
    assert page.complaints == []
