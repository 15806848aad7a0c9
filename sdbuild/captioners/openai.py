"""Models behind OpenAI's Chat Completions, on whatever server speaks it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbuild.captioners import api_keys
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

_ENDPOINT = "/v1/chat/completions"


def captioner(settings: Mapping[str, Any], project: Path, store: Path) -> Captioner:
    """Make the captioner of some settings."""
    return Hosted(ChatCompletions(settings), settings, store)


class ChatCompletions:
    """`contract.Provider` of OpenAI and of servers like it."""

    name = "openai"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        address = api_keys.server_of(settings)
        variable = settings["key_variable"]
        withheld = None if api_keys.is_sent(settings) else f"{variable} is not sent there; {api_keys.remedy(settings)}"
        self._secret = Secret(variable, optional=address is not None, withheld=withheld)
        self._module = client_module("openai")
        from sdbuild.captioners.http_client import http_client

        self._client = self._module.OpenAI(
            api_key=self._secret.value,
            base_url=address,
            max_retries=0,
            timeout=settings["timeout"],
            http_client=http_client(self._module),
        )
        if withheld:  # and neither are the names of organization and project
            self._client.organization = self._client.project = None
        self._model: str = settings["model"]
        self._own = {name: settings[name] for name in ("temperature",) if settings.get(name) is not None}
        self._own |= spelled(settings)
        self._detail = {"detail": settings["detail"]} if settings.get("detail") else {}
        # OpenAI's newer models know the one name alone, other servers often only the older one.
        is_openai = self._client.base_url.host == "api.openai.com"
        self._limit = "max_completion_tokens" if is_openai else "max_tokens"
        self._timeout: float = settings["timeout"]

    def request(self, question: Question, picture: Image | None) -> Any:
        """See `contract.Provider`."""
        content: list[dict[str, Any]] = [{"type": "text", "text": question.prompt}]
        if picture is not None:
            kind, data = encoded(picture)
            url = {"url": f"data:{kind};base64,{data}", **self._detail}
            content.insert(0, {"type": "image_url", "image_url": url})
        return {"model": self._model, **self._own, "messages": [{"role": "user", "content": content}]}

    def ask(self, request: Any, max_tokens: int, timeout: float) -> Reply:
        """See `contract.Provider`."""
        started = time.monotonic()
        body = {self._limit: max_tokens, **request}
        with (
            faults(self._module, self._secret, self._model, timeout),
            self._client.chat.completions.with_streaming_response.create(
                model=body.pop("model"), messages=body.pop("messages"), extra_body=body, timeout=timeout
            ) as response,
        ):
            return _reply(read_whole(response.iter_bytes(), timeout, started))

    def submit(self, requests: Sequence[tuple[str, Any]], max_tokens: int) -> str:
        """See `contract.Provider`."""
        rows = (
            {"custom_id": key, "method": "POST", "url": _ENDPOINT, "body": {self._limit: max_tokens, **request}}
            for key, request in requests
        )
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        with self._faults():
            file = self._client.files.create(file=("captions.jsonl", data), purpose="batch")
            batch = self._client.batches.create(input_file_id=file.id, endpoint=_ENDPOINT, completion_window="24h")
            return str(batch.id)

    def progress(self, batch: str) -> tuple[bool, int]:
        """See `contract.Provider`."""
        with self._faults():
            found = self._client.batches.retrieve(batch)
            counts = found.request_counts
            ended = found.status in ("completed", "failed", "expired", "cancelled")
            return ended, 0 if counts is None else counts.completed + counts.failed

    def cancel(self, batch: str) -> None:
        """See `contract.Provider`."""
        with self._faults():
            self._client.batches.cancel(batch)

    def results(self, batch: str) -> Iterator[tuple[str, Reply | AskError]]:
        """See `contract.Provider`."""
        with self._faults():
            found = self._client.batches.retrieve(batch)
            if found.status == "failed" and not found.output_file_id:
                errors = (found.errors.data if found.errors else None) or []
                reasons = "; ".join(each.message or "" for each in errors[:3])
                raise AskError(f"the batch is refused ({reasons})", "skip")
            for file in filter(None, (found.output_file_id, found.error_file_id)):
                for line in self._client.files.content(file).text.split("\n"):
                    if line.strip():
                        try:
                            with understanding():
                                row = json.loads(line)
                                key, result = str(row["custom_id"]), self._result(row)
                        except AskError:  # what is no answer is asked for again
                            continue
                        yield key, result

    def _result(self, row: Mapping[str, Any]) -> Reply | AskError:
        response = row.get("response")
        if response is None:
            return AskError(f"the batch ended before it was asked ({(row.get('error') or {}).get('code')})", "again")
        if response["status_code"] != 200:
            return status_error(response["status_code"], response["body"], {}, self._secret, self._model)
        try:
            return _reply(response["body"])
        except AskError as error:
            return error

    def close(self) -> None:
        """See `contract.Provider`."""
        self._client.close()

    def _faults(self) -> Any:
        return faults(self._module, self._secret, self._model, self._timeout)


def _reply(completion: Mapping[str, Any]) -> Reply:
    """What an answer says.

    Raises:
        AskError: the model refuses, or it is no answer.
    """
    with understanding():
        choice = completion["choices"][0]
        usage = completion.get("usage") or {}
        reply = Reply(
            text=text_of(choice["message"].get("content") or ""),
            cut=choice["finish_reason"] == "length",
            input_tokens=count_of(usage.get("prompt_tokens")),
            output_tokens=count_of(usage.get("completion_tokens")),
        )
        if choice["finish_reason"] == "content_filter" or choice["message"].get("refusal"):
            raise refused(reply)
        return whole(reply)
