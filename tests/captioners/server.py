"""A server on this machine that speaks the providers' protocols, and fails as it is told to.

It speaks the Messages API, Chat Completions, and the batch interface of both. Alone it serves a benchmark:
``python -m tests.captioners.server --latency 0.05``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import gzip
import hashlib
import io
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from PIL import Image

KEY = "sk-test-0123456789abcdefghijklmnopqrstuvwxyz"
MESSAGES = {
    400: ("invalid_request_error", "the picture is not one"),
    401: ("authentication_error", "invalid x-api-key"),
    402: ("billing_error", "no credit"),
    404: ("not_found_error", "model: nothing"),
    429: ("rate_limit_error", "slow down, or add a payment method at https://example.org/account/billing"),
    500: ("api_error", "internal server error"),
    529: ("overloaded_error", "overloaded"),
}
HANGING = 30.0


@dataclass
class Asked:
    """One request as it arrived."""

    prompt: str
    picture: str
    """Hash of its bytes; empty where there is none."""
    size: tuple[int, int]
    body: Mapping[str, Any]


@dataclass
class Speaker:
    """What the server knows and does; used from the tests' thread while it runs."""

    latency: float = 0.0
    key: str = KEY
    faults: list[str] = field(default_factory=list)
    """What happens to the next requests, first come first served; ``""`` is nothing."""
    say: Callable[[Asked], str] = lambda asked: f"a picture of {asked.picture[:8]}"
    batch_faults: list[str] = field(default_factory=list)
    """The same for requests in batches."""
    refuses_batches: bool = False
    """Whether batches of OpenAI end without having been tried."""
    before_cancel: int = 1
    """Requests of a batch that are answered when it is cancelled."""
    patience: int = 1
    """How often a batch is looked at before it ends."""
    asked: list[Asked] = field(default_factory=list)
    """Every request, answered or not."""
    paid: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Answers that were sent whole, by picture and prompt."""
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    looks: Counter[str] = field(default_factory=Counter)
    cancelled: set[str] = field(default_factory=set)
    bodies: list[bytes] = field(default_factory=list)
    """Answers word for word, for the fault `body`."""
    elsewhere: str = ""
    """Where the fault `redirect` sends requests on to."""
    at_once: int = 0
    most_at_once: int = 0
    url: str = ""

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=256 * 1024 * 1024, middlewares=[self._with_key])
        app.router.add_post("/v1/messages", self.messages)
        app.router.add_post("/v1/messages/batches", self.create_message_batch)
        app.router.add_get("/v1/messages/batches/{id}", self.message_batch)
        app.router.add_get("/v1/messages/batches/{id}/results", self.message_results)
        app.router.add_post("/v1/messages/batches/{id}/cancel", self.cancel_message_batch)
        app.router.add_post("/v1/chat/completions", self.completions)
        app.router.add_post("/v1/files", self.upload)
        app.router.add_get("/v1/files/{id}/content", self.content)
        app.router.add_post("/v1/batches", self.create_batch)
        app.router.add_get("/v1/batches/{id}", self.batch)
        app.router.add_post("/v1/batches/{id}/cancel", self.cancel_batch)
        return app

    @web.middleware
    async def _with_key(self, request: web.Request, handler: Any) -> web.StreamResponse:
        error = wrapped if request.path.startswith("/v1/messages") else openai_error
        found: web.StreamResponse = self._refused(request, error) or await handler(request)
        return found

    async def messages(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, asked_of_claude, message, wrapped)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, asked_of_chat, completion, openai_error)

    async def _answer(
        self, request: web.Request, read: Any, written: Any, error: Callable[[int, str], dict[str, Any]]
    ) -> web.StreamResponse:
        asked: Asked = read(json.loads(await request.read()))
        self.asked.append(asked)
        fault = self.faults.pop(0) if self.faults else ""
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.latency)
            return await self._fail(request, asked, fault, error) or await self._say(asked, fault, written)
        finally:
            self.at_once -= 1

    async def _say(self, asked: Asked, fault: str, written: Any) -> web.Response:
        if fault in ("", "cut", "empty", "refusal"):
            self.paid[asked.picture, asked.prompt] += 1
        return web.json_response(written(self.say(asked), fault))

    async def _fail(
        self, request: web.Request, asked: Asked, fault: str, error: Callable[[int, str], dict[str, Any]]
    ) -> web.StreamResponse | None:
        name, _, after = fault.partition("-after-")
        if name.isdigit():
            headers = {"retry-after": after} if after else {}
            return web.json_response(error(int(name), MESSAGES[int(name)][1]), status=int(name), headers=headers)
        if fault == "quota":
            body = openai_error(429, "You exceeded your current quota", "insufficient_quota")
            if error is wrapped:
                return web.json_response(error(400, "Your credit balance is too low"), status=400)
            return web.json_response(body, status=429)
        if fault == "timeout":
            await asyncio.sleep(HANGING)
        if fault == "garbage":
            return web.Response(text="<html>not {json", content_type="application/json")
        if fault == "shape":
            return web.json_response({"content": "nothing", "choices": 3})
        if fault == "redirect":
            return web.Response(status=307, headers={"location": self.elsewhere})
        if fault == "body":
            return web.Response(body=self.bodies.pop(0), content_type="application/json")
        if fault == "gzip":
            packed = gzip.compress(b" " * 1000)
            return web.Response(body=packed, headers={"content-encoding": "gzip", "content-type": "application/json"})
        if fault in ("endless", "endless-error"):
            endless = web.StreamResponse(status=200 if fault == "endless" else 400)
            await endless.prepare(request)
            with contextlib.suppress(ConnectionError):
                for _ in range(4000):
                    await endless.write(b" " * 65536)
            return endless
        if fault in ("reset", "trickle", "trickle-error"):
            headers = {"content-type": "application/json", "content-length": "1000"}
            response = web.StreamResponse(headers=headers, status=500 if fault == "trickle-error" else 200)
            await response.prepare(request)
            await response.write(b'{"id": "x", ')
            if fault == "reset":
                await asyncio.sleep(0.02)
                assert request.transport is not None
                request.transport.abort()
                return response
            for _ in range(900):
                await response.write(b" ")
                await asyncio.sleep(0.05)
            return response
        return None

    def _refused(self, request: web.Request, error: Callable[[int, str], dict[str, Any]]) -> web.Response | None:
        given = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        if given == self.key:
            return None
        self.asked.append(Asked(prompt="", picture="", size=(0, 0), body={}))
        return web.json_response(error(401, f"Incorrect API key provided: {given}"), status=401)

    # Batches of the Messages API.

    async def create_message_batch(self, request: web.Request) -> web.Response:
        rows = json.loads(await request.read())["requests"]
        name = f"msgbatch_{len(self.batches)}"
        self.batches[name] = {row["custom_id"]: row["params"] for row in rows}
        return web.json_response(self._message_batch(name, ended=False))

    async def message_batch(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if name not in self.batches:
            return web.json_response(wrapped(404, "no such batch"), status=404)
        return web.json_response(self._message_batch(name, ended=self._has_ended(name)))

    async def cancel_message_batch(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        self.cancelled.add(name)
        return web.json_response({**self._message_batch(name, ended=False), "processing_status": "canceling"})

    def _message_batch(self, name: str, *, ended: bool) -> dict[str, Any]:
        count = len(self.batches[name])
        counts: dict[str, int] = {"processing": 0 if ended else count, "succeeded": count if ended else 0}
        return {
            "id": name,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": {**counts, "errored": 0, "canceled": 0, "expired": 0},
            "created_at": "2026-01-01T00:00:00Z",
            "expires_at": "2026-01-02T00:00:00Z",
            "results_url": f"{self.url}/v1/messages/batches/{name}/results" if ended else None,
        }

    async def message_results(self, request: web.Request) -> web.Response:
        lines = []
        for key, params, cancelled in self._rows(request.match_info["id"]):
            if cancelled:
                lines.append(json.dumps({"custom_id": key, "result": {"type": "canceled"}}))
                continue
            asked, fault = self._batched(asked_of_claude(params))
            result: dict[str, Any] = {"type": "succeeded", "message": message(self.say(asked), fault)}
            if fault.isdigit():
                result = {"type": "errored", "error": wrapped(int(fault), MESSAGES[int(fault)][1])}
            elif fault == "expired":
                result = {"type": "expired"}
            else:
                self.paid[asked.picture, asked.prompt] += 1
            lines.append(json.dumps({"custom_id": key, "result": result}))
        return web.Response(text="\n".join(reversed(lines)) + "\n", content_type="application/x-jsonl")

    def _rows(self, name: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
        """Requests of a batch by key, and whether it was cancelled before them."""
        for index, (key, params) in enumerate(self.batches[name].items()):
            yield key, params, name in self.cancelled and index >= self.before_cancel

    def _has_ended(self, name: str) -> bool:
        self.looks[name] += 1
        return self.looks[name] > self.patience or name in self.cancelled

    def _batched(self, asked: Asked) -> tuple[Asked, str]:
        self.asked.append(asked)
        return asked, self.batch_faults.pop(0) if self.batch_faults else ""

    # Files and batches of OpenAI.

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        file = form["file"]
        assert isinstance(file, web.FileField)
        name = f"file-{len(self.files)}"
        self.files[name] = file.file.read().decode()
        return web.json_response(
            {"id": name, "object": "file", "bytes": 1, "created_at": 1, "filename": "x", "purpose": form["purpose"]}
        )

    async def content(self, request: web.Request) -> web.Response:
        return web.Response(text=self.files[request.match_info["id"]])

    async def create_batch(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        name = f"batch_{len(self.batches)}"
        rows = [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
        self.batches[name] = {row["custom_id"]: row["body"] for row in rows}
        return web.json_response(self._batch(name, "validating"))

    async def batch(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if name not in self.batches:
            return web.json_response(openai_error(404, "no such batch"), status=404)
        if self.refuses_batches:
            errors = {"object": "list", "data": [{"code": "x", "message": "the file is too large"}]}
            return web.json_response({**self._batch(name, "failed"), "errors": errors})
        if not self._has_ended(name):
            return web.json_response(self._batch(name, "in_progress"))
        if f"{name}-out" not in self.files:
            self._complete(name)
        return web.json_response(self._batch(name, "cancelled" if name in self.cancelled else "completed"))

    async def cancel_batch(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        self.cancelled.add(name)
        return web.json_response(self._batch(name, "cancelling"))

    def _complete(self, name: str) -> None:
        good: list[dict[str, Any]] = []
        bad: list[dict[str, Any]] = []
        for key, body, cancelled in self._rows(name):
            if cancelled:
                bad.append({"custom_id": key, "response": None, "error": {"code": "batch_cancelled", "message": ""}})
                continue
            asked, fault = self._batched(asked_of_chat(body))
            if fault == "expired":
                bad.append({"custom_id": key, "response": None, "error": {"code": "batch_expired", "message": "late"}})
            elif fault.isdigit():
                error = openai_error(int(fault), MESSAGES[int(fault)][1])
                bad.append({"custom_id": key, "response": {"status_code": int(fault), "body": error}, "error": None})
            else:
                self.paid[asked.picture, asked.prompt] += 1
                answer = completion(self.say(asked), fault)
                good.append({"custom_id": key, "response": {"status_code": 200, "body": answer}, "error": None})
        self.files[f"{name}-out"] = "".join(json.dumps(row) + "\n" for row in reversed(good))
        self.files[f"{name}-err"] = "".join(json.dumps(row) + "\n" for row in bad)

    def _batch(self, name: str, status: str) -> dict[str, Any]:
        count = len(self.batches[name])
        files: dict[str, str | None] = {
            "output_file_id": f"{name}-out",
            "error_file_id": f"{name}-err" if self.files.get(f"{name}-err") else None,
        }
        return {
            "id": name,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "input_file_id": "file",
            "completion_window": "24h",
            "created_at": 1,
            "status": status,
            "request_counts": {"total": count, "completed": count, "failed": 0},
            **(files if status in ("completed", "cancelled") else {}),
        }


def asked_of_claude(body: Mapping[str, Any]) -> Asked:
    """Read a request of the Messages API; a wrong one raises."""
    assert isinstance(body["max_tokens"], int)
    (turn,) = body["messages"]
    assert turn["role"] == "user"
    picture, size = "", (0, 0)
    for block in turn["content"]:
        if block["type"] == "image":
            assert block["source"]["type"] == "base64"
            picture, size = _picture(block["source"]["data"], block["source"]["media_type"])
    prompt = next(block["text"] for block in turn["content"] if block["type"] == "text")
    return Asked(prompt=prompt, picture=picture, size=size, body=body)


def asked_of_chat(body: Mapping[str, Any]) -> Asked:
    """Read a request of Chat Completions; a wrong one raises."""
    (turn,) = body["messages"]
    assert turn["role"] == "user"
    picture, size = "", (0, 0)
    for part in turn["content"]:
        if part["type"] == "image_url":
            kind, _, data = part["image_url"]["url"].removeprefix("data:").partition(";base64,")
            picture, size = _picture(data, kind)
    prompt = next(part["text"] for part in turn["content"] if part["type"] == "text")
    return Asked(prompt=prompt, picture=picture, size=size, body=body)


def _picture(data: str, kind: str) -> tuple[str, tuple[int, int]]:
    content = base64.b64decode(data, validate=True)
    with Image.open(io.BytesIO(content)) as image:
        assert image.get_format_mimetype() == kind
        return hashlib.sha256(content).hexdigest(), image.size


def message(text: str, fault: str) -> dict[str, Any]:
    """An answer of the Messages API."""
    said = "" if fault in ("empty", "refusal") else text
    reason = {"cut": "max_tokens", "refusal": "refusal"}.get(fault, "end_turn")
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [{"type": "text", "text": said}] if said else [],
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 1000, "output_tokens": 20},
    }


def completion(text: str, fault: str) -> dict[str, Any]:
    """An answer of Chat Completions."""
    refused = {"content": None, "refusal": "I cannot do that."}
    said = refused if fault == "refusal" else {"content": "" if fault == "empty" else text, "refusal": None}
    choice = {
        "index": 0,
        "finish_reason": "length" if fault == "cut" else "stop",
        "logprobs": None,
        "message": {"role": "assistant", **said},
    }
    usage = {"prompt_tokens": 1000, "completion_tokens": 20, "total_tokens": 1020}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


def wrapped(status: int, message: str) -> dict[str, Any]:
    """An error of the Messages API."""
    return {"type": "error", "error": {"type": MESSAGES[status][0], "message": message}}


def openai_error(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """An error of Chat Completions."""
    return {"error": {"message": message, "type": "error", "param": None, "code": code}}


@contextmanager
def serving(speaker: Speaker) -> Iterator[Speaker]:
    """Serve on a free port of this machine while the block runs."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(speaker.app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        speaker.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    def serve() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield speaker
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)


def environment(speaker: Speaker) -> dict[str, str]:
    """What a command needs to ask this server."""
    return {
        "ANTHROPIC_API_KEY": speaker.key,
        "ANTHROPIC_BASE_URL": speaker.url,
        "OPENAI_API_KEY": speaker.key,
        "OPENAI_BASE_URL": f"{speaker.url}/v1",
        "NO_PROXY": "127.0.0.1",
    }


def main() -> int:
    """Serve until the standard input ends; the address is the first line of the output."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.0)
    with serving(Speaker(latency=parser.parse_args().latency)) as speaker:
        sys.stdout.write(f"{speaker.url}\n")
        sys.stdout.flush()
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
