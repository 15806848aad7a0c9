"""Models on this machine: BLIP and its like, which go on from a beginning, and vision models that chat."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbuild.captioners.contract import AskError, Captioner, Desk, Question, Reply
from sdbuild.captioners.models import place
from sdbuild.errors import DataError, Problem, lacks_memory

if TYPE_CHECKING:
    from PIL.Image import Image


def captioner(settings: Mapping[str, Any], project: Path, store: Path) -> Captioner:
    """Make the captioner of some settings.

    Raises:
        DataError: the model is not there, or is none.
    """
    folder = place(settings, project)
    if folder is None:
        raise DataError(f"captioning model {settings['model']} is not ready on this machine; `doit` brings it")
    return Local(settings, folder)


@dataclass(frozen=True)
class Local:
    """`contract.Captioner` of a model in a folder."""

    settings: Mapping[str, Any]
    folder: Path

    def answer(self, questions: Sequence[Question], desk: Desk) -> None:
        """See `contract.Captioner`; answers are taken as long as they are."""
        model = _Model(self.folder, self.settings)
        for group in _groups(questions, self.settings["batch"]):
            pictures = [desk.picture(question) for question in group]
            try:
                texts = model.describe(group, pictures)
            except (MemoryError, RuntimeError) as error:
                if not lacks_memory(error):
                    raise
                message = f"memory ran out with {len(group)} pictures at once; set a smaller batch, dtype: bfloat16"
                raise AskError(f"{message}, a smaller longest_side, or device: cpu", "stop") from None
            for question, text in zip(group, texts, strict=True):
                desk.deliver(question, Reply(text=text))


class _Model:
    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import torch
        from accelerate import PartialState
        from transformers import AutoModelForImageTextToText, AutoProcessor, logging

        logging.disable_progress_bar()
        self._device = settings.get("device") or str(PartialState().device)
        self._limit = int(settings["max_tokens"])
        name = settings["model"]
        try:
            # Pictures are made ready with Pillow, so that captions do not depend on whether torchvision is there.
            self._processor: Any = AutoProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, backend="pil"
            )
            self._model: Any = AutoModelForImageTextToText.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=getattr(torch, settings["dtype"]),
            )
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            message = f"is no model that describes pictures, or not whole ({reason}); name another"
            raise DataError([Problem(file=name, message=message)]) from error
        try:
            self._model = self._model.eval().to(self._device)
        except RuntimeError as error:
            raise DataError([Problem(field="device", message=str(error).splitlines()[0])]) from error
        self._chats = getattr(self._processor, "chat_template", None) is not None
        if self._chats:
            self._processor.tokenizer.padding_side = "left"

    def describe(self, questions: Sequence[Question], pictures: Sequence[Image | None]) -> list[str]:
        """What the model says to each question, chosen without chance."""
        import torch

        given = self._chat(questions, pictures) if self._chats else self._begin(questions, pictures)
        given = given.to(self._device, dtype=self._model.dtype)  # numbers of tokens stay whole
        with torch.inference_mode():
            said = self._model.generate(**given, max_new_tokens=self._limit, do_sample=False)
        if self._chats:
            said = said[:, given["input_ids"].shape[1] :]
        return [str(text) for text in self._processor.batch_decode(said, skip_special_tokens=True)]

    def _chat(self, questions: Sequence[Question], pictures: Sequence[Image | None]) -> Any:
        turns = [
            [
                {
                    "role": "user",
                    "content": [
                        *([{"type": "image", "image": picture}] if picture is not None else []),
                        {"type": "text", "text": question.prompt},
                    ],
                }
            ]
            for question, picture in zip(questions, pictures, strict=True)
        ]
        return self._processor.apply_chat_template(
            turns,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"padding": True, "return_tensors": "pt"},
        )

    def _begin(self, questions: Sequence[Question], pictures: Sequence[Image | None]) -> Any:
        if any(picture is None for picture in pictures):
            raise AskError("this model knows pictures only; a pass without one (picture: false) needs another", "stop")
        beginnings = [question.instruction for question in questions]
        if any(beginnings):
            return self._processor(images=list(pictures), text=beginnings, return_tensors="pt", padding=True)
        return self._processor(images=list(pictures), return_tensors="pt")


def _groups(questions: Sequence[Question], most: int) -> Iterator[Sequence[Question]]:
    """Cut questions into groups of one kind: with an instruction or without, with a picture or without."""
    by: dict[str, list[Question]] = {}
    for question in questions:
        by.setdefault(json.dumps([question.shown, question.instruction is not None]), []).append(question)
    for alike in by.values():
        yield from (alike[start : start + most] for start in range(0, len(alike), most))
