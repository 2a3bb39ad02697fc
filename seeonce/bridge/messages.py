"""What Escribano asks, as a request of ours; and an answer, as its parser reads it."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cache.base.errors import InputError
from cache.base.text import printable
from infer.request import Answer, Request
from seeonce.runs.parse import Description, parse_description
from seeonce.runs.presets import ACTIVITIES
from seeonce.runs.prompts import Prompt
from seeonce.runs.results import results_of

_TIME = re.compile(r"timestamp:\s*(\d{1,12}(?:\.\d+)?)")
_FORM = re.compile(r"description:.*activity:.*apps:.*topics:", re.DOTALL)
_WORDS = r"[^\s|\[\]\"\\\x00-\x1f\x7f][^|\[\]\"\\\x00-\x1f\x7f]{0,239}"
_ITEM = r"[^\s|\[\],\"\\\x00-\x1f\x7f][^|\[\],\"\\\x00-\x1f\x7f]{0,31}"
_LIST = rf"\[({_ITEM}(, {_ITEM}){{0,4}})?\]"

LINE_SCHEMA = json.dumps(
    {
        "title": "a description line of Escribano's",
        "type": "string",
        "pattern": rf"^description: {_WORDS} \| activity: ({'|'.join(ACTIVITIES)}) \| apps: {_LIST} "
        rf"\| topics: {_LIST}$",
    }
)
"""The line that Escribano's prompt asks for, as one JSON string: a schema holds the activity to its words."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that a message shows, at its time in seconds."""

    path: Path
    time_s: float


@dataclass(frozen=True, slots=True)
class Asked:
    """The messages of one request: texts and pictures of the user in order, after a system text.

    ``wants_lines`` tells that each picture is to be answered by a description line.
    """

    parts: tuple[str | Picture, ...]
    system: str | None = None

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The pictures, in order."""
        return tuple(part for part in self.parts if isinstance(part, Picture))

    @property
    def wants_lines(self) -> bool:
        """Whether the prompt asks for description lines of its pictures, as all of Escribano's do."""
        texts = " ".join(part for part in self.parts if isinstance(part, str))
        return bool(self.pictures) and _FORM.search(texts) is not None


def read_messages(params: Mapping[str, object]) -> Asked:
    """Read the messages of a request, or its ``rawPrompt``.

    Raises:
        InputError: there are none, or they are of another form.
    """
    raw = params.get("rawPrompt")
    if isinstance(raw, str) and raw:
        return Asked((_text(raw),))
    messages = params.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InputError("No messages provided")
    system, parts = [], list[str | Picture]()
    for message in messages:
        if not isinstance(message, dict):
            raise InputError("A message is no object")
        content = message.get("content")
        found = [_text(content)] if isinstance(content, str) else list(_parts(content))
        if message.get("role") == "system":
            system += [part for part in found if isinstance(part, str)]
        else:
            parts += found
    if not parts:
        raise InputError("Empty prompt")
    return Asked(tuple(parts), "\n".join(system) or None)


def _parts(content: object) -> Iterator[str | Picture]:
    time_s = 0.0
    for item in content if isinstance(content, list) else ():
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "text" and isinstance(item.get("text"), str):
            if found := _TIME.search(item["text"]):
                time_s = float(found[1])
            yield _text(item["text"])
        elif kind == "image" and isinstance(item.get("imagePath"), str):
            yield Picture(_path(item["imagePath"]), time_s)
        else:
            raise InputError(f"A part of a message is neither text nor an image by its path: {kind!r}")


def _text(text: str) -> str:
    """Return text that a tokenizer takes: half of a surrogate pair, where JavaScript cut one, is a ?."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _path(text: str) -> Path:
    try:
        if b"\0" not in os.fsencode(text):
            return Path(text)
    except UnicodeEncodeError:  # half of a surrogate pair
        pass
    raise InputError(f"{printable(text)}: no path of a picture")


def as_lines(request: Request, answer: Answer) -> str:
    """Return an answer as Escribano's parser reads it, a line for each frame that has one."""
    lines = []
    for number, result in enumerate(results_of(request, Prompt(""), answer, ""), 1):
        said = parse_description(result.parsed) if isinstance(result.parsed, str) else None
        if said is not None:
            lines.append(_line(number, said))
    return "".join(lines)


def _line(number: int, said: Description) -> str:
    """Write one line.

    Its parser takes ``[]`` for one item, so apps that are none are no text, and topics a lone comma. Topics
    have no brackets, since it takes the last one off at the end of the whole text only.
    """
    apps = f"[{', '.join(said.apps)}]" if said.apps else ""
    topics = ", ".join(said.topics) or ","
    fields = f"{said.description} | activity: {said.activity} | apps: {apps} | topics: {topics}"
    return f"Frame {number}: description: {_FRAME.sub(_UNLIKE, fields)}\n"


_FRAME = re.compile(r"(frame \d+):", re.IGNORECASE)  # its parser would begin another frame there
_UNLIKE = r"\1 -"
