"""Claude, through the Messages API."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbuild.captioners.asking import spelled
from sdbuild.captioners.contract import AskError, Captioner, Question, Reply
from sdbuild.captioners.hosted import (
    Secret,
    client_module,
    count_of,
    faults,
    read_whole,
    refused,
    status_error,
    text_of,
    understanding,
    whole,
)
from sdbuild.captioners.pictures import encoded
from sdbuild.captioners.running import Hosted

if TYPE_CHECKING:
    from PIL.Image import Image

_STATUS = {"invalid_request_error": 400, "authentication_error": 401, "permission_error": 403, "billing_error": 402}
"""HTTP status of the errors in a batch that are not worth another try."""


def captioner(settings: Mapping[str, Any], project: Path, store: Path) -> Captioner:
    """Make the captioner of some settings."""
    return Hosted(Claude(settings), settings, store)


class Claude:
    """`contract.Provider` of Anthropic."""

    name = "anthropic"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._secret = Secret("ANTHROPIC_API_KEY")
        self._module = client_module("anthropic")
        from sdbuild.captioners.http_client import http_client

        self._client = self._module.Anthropic(
            api_key=self._secret.value,
            max_retries=0,
            timeout=settings["timeout"],
            open_telemetry=False,
            http_client=http_client(self._module),
        )
        self._model: str = settings["model"]
        own = {"temperature": settings["temperature"]} if settings.get("temperature") is not None else {}
        self._own = {**own, **spelled(settings)}
        self._timeout: float = settings["timeout"]

    def request(self, question: Question, picture: Image | None) -> Any:
        """See `contract.Provider`."""
        content: list[dict[str, Any]] = [{"type": "text", "text": question.prompt}]
        if picture is not None:
            kind, data = encoded(picture)
            source = {"type": "base64", "media_type": kind, "data": data}
            content.insert(0, {"type": "image", "source": source})
        return {"model": self._model, **self._own, "messages": [{"role": "user", "content": content}]}

    def ask(self, request: Any, max_tokens: int, timeout: float) -> Reply:
        """See `contract.Provider`."""
        started = time.monotonic()
        body = {"max_tokens": max_tokens, **request}
        with (
            faults(self._module, self._secret, self._model, timeout),
            self._client.messages.with_streaming_response.create(**_arguments(body), timeout=timeout) as response,
        ):
            return _reply(read_whole(response.iter_bytes(), timeout, started))

    def submit(self, requests: Sequence[tuple[str, Any]], max_tokens: int) -> str:
        """See `contract.Provider`."""
        rows = [{"custom_id": key, "params": {"max_tokens": max_tokens, **request}} for key, request in requests]
        with self._faults():
            return str(self._client.messages.batches.create(requests=rows).id)

    def progress(self, batch: str) -> tuple[bool, int]:
        """See `contract.Provider`."""
        with self._faults():
            found = self._client.messages.batches.retrieve(batch)
            counts = found.request_counts
            return found.processing_status == "ended", counts.succeeded + counts.errored

    def cancel(self, batch: str) -> None:
        """See `contract.Provider`."""
        with self._faults():
            self._client.messages.batches.cancel(batch)

    def results(self, batch: str) -> Iterator[tuple[str, Reply | AskError]]:
        """See `contract.Provider`."""
        with self._faults():
            for row in self._client.messages.batches.results(batch):
                try:
                    with understanding():
                        key, result = str(row.custom_id), self._result(row.result.to_dict(warnings=False))
                except AskError:  # what is no answer is asked for again
                    continue
                yield key, result

    def _result(self, result: Mapping[str, Any]) -> Reply | AskError:
        if result["type"] == "succeeded":
            try:
                return _reply(result["message"])
            except AskError as error:
                return error
        if result["type"] != "errored":
            return AskError(f"the batch ended before it was asked ({result['type']})", "again")
        status = _STATUS.get(result["error"]["error"]["type"], 500)
        return status_error(status, result["error"], {}, self._secret, self._model)

    def close(self) -> None:
        """See `contract.Provider`."""
        self._client.close()

    def _faults(self) -> Any:
        return faults(self._module, self._secret, self._model, self._timeout)


def _arguments(body: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the client: what it does not know goes along as it is."""
    known = ("model", "max_tokens", "messages")
    return {
        **{name: body[name] for name in known},
        "extra_body": {name: value for name, value in body.items() if name not in known},
    }


def _reply(message: Mapping[str, Any]) -> Reply:
    """What an answer says.

    Raises:
        AskError: the model refuses, or it is no answer.
    """
    with understanding():
        content = message["content"]
        if not isinstance(content, list):
            raise TypeError("an answer is a list of parts")
        usage = message["usage"]
        cached = sum(count_of(usage.get(f"cache_{kind}_input_tokens")) for kind in ("creation", "read"))
        reply = Reply(
            text=text_of(content),
            cut=message["stop_reason"] in ("max_tokens", "model_context_window_exceeded"),
            input_tokens=count_of(usage["input_tokens"]) + cached,
            output_tokens=count_of(usage["output_tokens"]),
        )
        if message["stop_reason"] == "refusal":
            raise refused(reply)
        return whole(reply)
