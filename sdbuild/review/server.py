"""A local web page to read and edit captions beside their pictures.

Who may use it: a browser on this machine that was given the address. The server listens on the loopback address, every
path starts with a random token, the `Host` header has to be this server's own (a name that was bound to 127.0.0.1 by
somebody's DNS is refused), and what writes needs this server's `Origin` and JSON. Pictures are those of the recipe, by
their record and never by a path, and are drawn anew, so that no file's bytes reach the browser. The page itself is
static; what users wrote comes as JSON and is put into the page as text.
"""

from __future__ import annotations

import contextlib
import hmac
import io
import json
import secrets
import socket
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from sdbuild.build.project import Project
from sdbuild.console import Console
from sdbuild.data.pictures import open_picture
from sdbuild.data.pixel_budget import PIXEL_BUDGET
from sdbuild.errors import DataError, SdbuildError, UsageError
from sdbuild.review.desk import Desk

LARGEST = 1 << 20
"""Bytes of a request; a caption is far from it."""
SIZES = {"small": 192, "large": 1600}
"""Longest side of a picture that is sent, in pixels."""
PATIENCE = 30.0
"""Seconds that a connection may be silent."""

PAGES = {
    "": ("page.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.svg": ("page.svg", "image/svg+xml"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def serve(project: Project, recipe: str, console: Console, *, port: int, browser: bool) -> None:
    """Serve the page until Ctrl-C.

    Args:
        project: of the recipe.
        recipe: whose captions.
        console: told the address.
        port: to listen on; 0 for any that is free.
        browser: whether to open it.

    Raises:
        UsageError: the port is taken.
    """
    server = PageServer(Desk(project, recipe), port)
    console.say(f"captions of {recipe}: {server.address}")
    console.say("Ctrl-C ends it; what you saved is in the files beside the pictures")
    if browser:
        import webbrowser

        threading.Thread(target=webbrowser.open, args=(server.address,), daemon=True).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        console.say(f"captions saved: {server.desk.saved}")
    finally:
        server.server_close()


class PageServer(ThreadingHTTPServer):
    """The page of one recipe."""

    daemon_threads = True

    def __init__(self, desk: Desk, port: int = 0) -> None:
        """Listen on the loopback address.

        Raises:
            UsageError: the port is taken.
        """
        self.desk = desk
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UsageError(f"--port {port}: {error.strerror}; leave it out for one that is free") from None

    @property
    def hosts(self) -> tuple[str, ...]:
        """What a browser may call this server."""
        return tuple(f"{name}:{self.server_address[1]}" for name in ("127.0.0.1", "localhost"))

    @property
    def address(self) -> str:
        """Of the page; whoever has it may edit captions."""
        return f"http://{self.hosts[0]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Browsers drop connections all the time; the terminal is for other things."""


class _Refused(Exception):  # noqa: N818 - an answer, not an error
    def __init__(self, status: HTTPStatus, words: str) -> None:
        super().__init__(words)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "sdbuild", ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: addresses hold the token."""

    def _answer(self, how: Any) -> None:
        try:
            status, kind, body = how(self._path())
        except _Refused as refused:
            # The request's body was perhaps not read, so nothing can follow it on this connection.
            self.close_connection = True
            status, kind, body = refused.status, "text/plain; charset=utf-8", f"{refused}\n".encode()
        except (SdbuildError, OSError) as error:
            status, kind, body = _json({"error": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        is_picture = kind.startswith("image/")
        self.send_header("Cache-Control", "private, max-age=3600" if is_picture else "no-store")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        if self.close_connection:
            self._let_finish()

    def _let_finish(self) -> None:
        """Take what is still being sent, or closing would cut off the answer; not for long."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1)
            for _ in range(64):
                if not self.connection.recv(1 << 16):
                    break

    def _path(self) -> str:
        """What is asked for, behind the token.

        Raises:
            _Refused: it is asked for by another name, or without the token.
        """
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0] not in self.server.hosts:
            raise _Refused(HTTPStatus.MISDIRECTED_REQUEST, "this server has another name")
        _, _, rest = urlsplit(self.path).path.partition("/")
        token, slash, path = rest.partition("/")
        if not slash or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise _Refused(HTTPStatus.NOT_FOUND, "not found; use the whole address that sdbuild printed")
        return path

    def _get(self, path: str) -> tuple[int, str, bytes]:
        if path and self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise _Refused(HTTPStatus.FORBIDDEN, "other pages may not read this")
        if path in PAGES:
            name, kind = PAGES[path]
            return HTTPStatus.OK, kind, files("sdbuild.review").joinpath("page", name).read_bytes()
        if path == "api/captions":
            return _json(self.server.desk.look())
        if path.startswith("picture/"):
            return self._picture(unquote(path.removeprefix("picture/")))
        raise _Refused(HTTPStatus.NOT_FOUND, "not found")

    def _picture(self, key: str) -> tuple[int, str, bytes]:
        size = parse_qs(urlsplit(self.path).query).get("size", ["large"])[0]
        entry = self.server.desk.entry(key)
        if entry is None or size not in SIZES:
            raise _Refused(HTTPStatus.NOT_FOUND, "no such picture")
        material = self.server.desk.material
        path = material.project.root / entry.path
        with PIXEL_BUDGET.held():
            try:
                image = open_picture(path, background=material.background, name=entry.path)
            except DataError as error:
                raise _Refused(HTTPStatus.NOT_FOUND, str(error)) from None
            image.thumbnail((SIZES[size], SIZES[size]))
        file = io.BytesIO()
        image.save(file, "PNG" if max(image.size) <= 256 else "JPEG", quality=90)
        return HTTPStatus.OK, "image/png" if max(image.size) <= 256 else "image/jpeg", file.getvalue()

    def _post(self, path: str) -> tuple[int, str, bytes]:
        if self.headers.get("Origin") not in {f"http://{host}" for host in self.server.hosts}:
            raise _Refused(HTTPStatus.FORBIDDEN, "other pages may not write here")
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "JSON is read here")
        actions = {"api/save": self._save, "api/confirm": self._confirm, "api/count": self._count}
        if path not in actions:
            raise _Refused(HTTPStatus.NOT_FOUND, "not found")
        return actions[path](self._body())

    def _body(self) -> Mapping[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or int(length) > LARGEST:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {LARGEST} bytes, and says so")
        try:
            content = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError, TimeoutError):
            raise _Refused(HTTPStatus.BAD_REQUEST, "this is no JSON") from None
        if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
            raise _Refused(HTTPStatus.BAD_REQUEST, "this is no object of texts")
        return content

    def _save(self, body: Mapping[str, Any]) -> tuple[int, str, bytes]:
        self._known(body, "key", "text", "stamp")
        answer = self.server.desk.save(body["key"], body["text"], body["stamp"])
        return _json(answer, HTTPStatus.CONFLICT if "conflict" in answer else HTTPStatus.OK)

    def _confirm(self, body: Mapping[str, Any]) -> tuple[int, str, bytes]:
        self._known(body, "key")
        return _json(self.server.desk.confirm(body["key"]))

    def _count(self, body: Mapping[str, Any]) -> tuple[int, str, bytes]:
        self._known(body, "key", "text")
        return _json({"tokens": self.server.desk.count(body["key"], body["text"])})

    def _known(self, body: Mapping[str, Any], *names: str) -> None:
        if set(body) != set(names):
            raise _Refused(HTTPStatus.BAD_REQUEST, f"this needs {', '.join(names)}")
        if self.server.desk.entry(body["key"]) is None:
            raise _Refused(HTTPStatus.NOT_FOUND, "no such picture")


def _json(content: Any, status: HTTPStatus = HTTPStatus.OK) -> tuple[int, str, bytes]:
    return status, "application/json; charset=utf-8", json.dumps(content).encode()
