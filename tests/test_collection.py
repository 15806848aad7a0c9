"""What is written is what runs: every file of tests is collected, and documents name tests that exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

import pytest

from tests.test_docs import PAGES, ROOT

TABLES = ("docs/reference/truth-table.md", "README.md")
"""Pages with a table of what runs when, each row of which is a test."""

_COLLECT = """
import json, sys
import pytest

class Collected:
    def pytest_collection_finish(self, session):
        found = [
            {
                "file": item.location[0],
                "campaign": item.get_closest_marker("campaign") is not None,
                "rows": [marker.args[0] for marker in item.iter_markers("row")],
            }
            for item in session.items
        ]
        with open(sys.argv[1], "w") as file:
            json.dump(found, file)

sys.exit(pytest.main(["--collect-only", "-qq"], plugins=[Collected()]))
"""
_HEADER = "| what you do |"
_NAMED = re.compile(r"\(?((?:\.\./)*tests/[\w/]+\.py)\)?")


class Found(TypedDict):
    """A test that pytest has found."""

    file: str
    campaign: bool
    rows: list[str]


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """All tests, campaigns too, as `pytest` finds them with the project's own settings."""
    file = tmp_path_factory.mktemp("collected") / "tests.json"
    command = [sys.executable, "-c", _COLLECT, str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[Found] = json.loads(file.read_text())
    return found


def rows(page: Path) -> set[str]:
    """First cells of the page's table of what runs when."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(_HEADER))
    found = set()
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.add(line.split(" | ")[0].removeprefix("|").strip())
    return found


def test_every_file_of_tests_is_collected(collected: list[Found]) -> None:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    assert files == {test["file"] for test in collected}


def test_campaigns_are_a_small_part(collected: list[Found]) -> None:
    """A test that `make test` leaves out is left out on purpose."""
    campaigns = [test for test in collected if test["campaign"]]
    assert 0 < len(campaigns) < len(collected) / 20


def test_every_row_of_what_runs_when_is_a_test(collected: list[Found]) -> None:
    written = set().union(*(rows(ROOT / page) for page in TABLES))
    held = {row for test in collected if not test["campaign"] for row in test["rows"]}
    assert sorted(written - held) == [], "rows without a test"
    assert sorted(held - written) == [], "tests of rows that no table has"


def test_tests_that_pages_name_are_collected(collected: list[Found]) -> None:
    files = {test["file"] for test in collected}
    missing = []
    for page in PAGES:
        for named in _NAMED.findall(page.read_text(encoding="utf-8")):
            path = (page.parent / named).resolve() if named.startswith("..") else ROOT / named
            test = path.name.startswith("test_")
            if not path.exists() or (test and path.relative_to(ROOT).as_posix() not in files):
                missing.append(f"{page.relative_to(ROOT)}: {named}")
    assert missing == []
