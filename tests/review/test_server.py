"""The page's server, as a browser and as a stranger speak to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection
from typing import Any

import pytest
from PIL import Image

from sdbuild.build.project import Project
from sdbuild.errors import UsageError
from sdbuild.review.desk import Desk
from sdbuild.review.server import LARGEST, PageServer
from tests.review.conftest import FOLDER, Cats


class Browser:
    """Asks a server; headers are those of its own page unless told otherwise."""

    def __init__(self, server: PageServer) -> None:
        self.server = server
        self.host = server.hosts[0]
        self.origin = f"http://{self.host}"

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str | None] | None = None,
        token: str | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        own = {"Host": self.host, **({"Origin": self.origin, "Content-Type": "application/json"} if body else {})}
        sent = {name: value for name, value in {**own, **(headers or {})}.items() if value is not None}
        connection = HTTPConnection("127.0.0.1", self.server.server_address[1], timeout=20)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        path = f"/{self.server.token if token is None else token}/{path}"
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {**({"Content-Length": str(len(data))} if data else {}), **sent}.items():
            connection.putheader(name, value)
        connection.endheaders(data)
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    def rows(self) -> dict[str, dict[str, Any]]:
        status, _, body = self.ask("GET", "api/captions")
        assert status == 200
        return {row["path"].rpartition("/")[2]: row for row in json.loads(body)["rows"]}

    def save(self, row: Mapping[str, Any], text: str) -> tuple[int, dict[str, Any]]:
        status, _, body = self.ask("POST", "api/save", {"key": row["key"], "text": text, "stamp": row["stamp"]})
        return status, json.loads(body)


@pytest.fixture
def browser(cats: Cats) -> Iterator[Browser]:
    server = PageServer(Desk(Project(cats.root), "cat"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Browser(server)
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_page_is_static_and_may_load_nothing_from_elsewhere(browser: Browser) -> None:
    for path, kind in (("", "text/html"), ("page.css", "text/css"), ("page.js", "text/javascript")):
        status, headers, body = browser.ask("GET", path)
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; img-src 'self'")
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert b"http" not in body.replace(b"http-equiv", b""), "nothing comes from elsewhere"
        assert b"innerHTML" not in body
        assert b"style=" not in body
        assert b"onclick=" not in body


def test_a_caption_is_saved_beside_its_picture(browser: Browser, cats: Cats) -> None:
    row = browser.rows()["0002.png"]
    assert row["text"] == "an apple"
    status, answer = browser.save(row, "two <b>apples</b>\n & more\x00")
    assert status == 200
    assert cats.state()["0002.txt"][0] == b"two <b>apples</b> & more\n"
    (changed,) = answer["rows"]
    assert changed["text"] == "two <b>apples</b> & more"
    assert changed["captions"] == ["sks two <b>apples</b> & more"]
    status, answer = browser.save(changed, "a house")  # the same as another one's
    assert {each["path"].rpartition("/")[2] for each in answer["rows"]} == {"0002.png", "0003.png"}
    assert browser.rows()["0003.png"]["problem"]
    assert browser.save(answer["rows"][0], " \n ")[0] == 422
    assert cats.state()["0002.txt"][0] == b"a house\n"
    assert browser.save(browser.rows()["0002.png"], "\ud800")[0] == 422
    assert browser.server.desk.saved == 2


def test_somebody_else_is_not_written_over(browser: Browser, cats: Cats) -> None:
    row = browser.rows()["0002.png"]
    cats.caption("0002", "a pear")
    status, answer = browser.save(row, "two apples")
    assert status == 409
    assert "somebody changed this caption meanwhile" in answer["conflict"]
    assert answer["rows"][0]["text"] == "a pear"
    assert cats.state()["0002.txt"][0] == b"a pear"
    assert browser.save(answer["rows"][0], "two apples")[0] == 200, "now they have seen it"


def test_a_changed_picture_is_confirmed(browser: Browser, cats: Cats) -> None:
    browser.save(browser.rows()["0002.png"], "two apples")
    cats.repaint("0002.png")
    row = browser.rows()["0002.png"]
    assert [each["kind"] for each in row["findings"]] == ["changed", "trigger"]
    status, _, body = browser.ask("POST", "api/confirm", {"key": row["key"]})
    assert status == 200
    assert [each["kind"] for each in json.loads(body)["rows"][0]["findings"]] == ["trigger"]
    assert not browser.rows()["0002.png"]["problem"]


def test_tokens_are_counted_as_typed(browser: Browser) -> None:
    row = browser.rows()["0002.png"]
    status, _, body = browser.ask("POST", "api/count", {"key": row["key"], "text": row["text"]})
    assert (status, json.loads(body)) == (200, {"tokens": row["tokens"]})


def test_pictures_are_drawn_anew_and_none_but_the_recipe_s(browser: Browser, cats: Cats) -> None:
    with (cats.root / FOLDER / "0002.png").open("ab") as file:
        file.write(b"<script>")  # behind its end, where no decoder looks
    row = browser.rows()["0002.png"]
    status, headers, body = browser.ask("GET", f"picture/{row['key']}?size=small")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert b"<script>" not in body
    Image.new("RGB", (64, 64)).save(cats.root / "secret.png")
    for path in ("picture/../../secret.png", "picture/..%2f..%2fsecret.png", "picture/secret.png", "picture/1:ff"):
        assert browser.ask("GET", path)[0] == 404, path
    for path in ("../dodo.py", "page.html", "api", "%2e%2e/dodo.py", "recipes/cat.yaml"):
        assert browser.ask("GET", path)[0] == 404, path
    (cats.root / FOLDER / "0002.png").unlink()
    assert browser.ask("GET", f"picture/{row['key']}")[0] == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example:80"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Host": None}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": None}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Length": str(LARGEST + 1)}, 413),
        ({"Content-Length": "-1"}, 413),
        ({"Transfer-Encoding": "chunked", "Content-Length": ""}, 413),
    ],
)
def test_other_pages_cannot_write(browser: Browser, cats: Cats, headers: Mapping[str, str | None], status: int) -> None:
    row = browser.rows()["0002.png"]
    before = cats.state()
    body = json.dumps({"key": row["key"], "text": "evil", "stamp": row["stamp"]}).encode()
    assert browser.ask("POST", "api/save", body, headers)[0] == status
    assert cats.state() == before


def test_nothing_is_told_without_the_token(browser: Browser) -> None:
    for token in ("", "x", browser.server.token[:-1], browser.server.token + "x", "ü"):
        status, _, body = browser.ask("GET", "api/captions", token=token.encode().hex() if token == "ü" else token)
        assert status == 404
        assert b"apple" not in body
    assert browser.ask("GET", "api/captions", headers={"Host": "evil.example"})[0] == 421
    assert browser.ask("GET", "api/captions", headers={"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert browser.ask("GET", "", headers={"Sec-Fetch-Site": "cross-site"})[0] == 200, "a link may open the page"
    with PageServer(browser.server.desk) as other:
        assert other.token != browser.server.token
        assert len(other.token) >= 32
    assert browser.server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("body", [b"oops", b"[]", b'{"key": 1}', b'{"key": "0:x"}', b"[" * 100_000, b'{"a": {}}'])
def test_bad_requests_are_answered(browser: Browser, body: bytes) -> None:
    assert browser.ask("POST", "api/save", body)[0] == 400
    assert browser.ask("POST", "api/confirm", {"key": "0:x"})[0] == 404
    assert browser.ask("PUT", "api/save", {"key": "0:x"})[0] == 501
    assert browser.rows()


def test_a_taken_port_is_explained(browser: Browser) -> None:
    port = browser.server.server_address[1]
    with pytest.raises(UsageError, match=f"--port {port}: .*leave it out"):
        PageServer(browser.server.desk, port)
