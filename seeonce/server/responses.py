"""The API's responses in their basic form: a chat under other names, whole or as a stream of named events."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from infer.request import TokenLogprob
from infer.sampling import MOST_LOGPROBS
from seeonce.server.asked import (
    AnswerRequest,
    ChatRequest,
    ImagePart,
    ImageUrl,
    JsonSchema,
    Message,
    ResponseFormat,
    Strict,
    TextPart,
)
from seeonce.server.errors import ApiError, refused
from seeonce.server.jobs import Delta, Ended
from seeonce.server.replies import Json, chat_logprobs, event, usage

_LOGPROBS = "message.output_text.logprobs"
# What a chat calls by another name.
_NAMES = {
    "response_format.json_schema": "text.format",
    "messages": "input",
    "response_format": "text",
    "max_completion_tokens": "max_output_tokens",
}


class InputText(Strict):
    """A text of the user."""

    type: Literal["input_text"]
    text: str


class InputImage(Strict):
    """A picture of the user, by its URL."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high"] | None = None
    file_id: None = None
    max_pixels: Annotated[int, Field(ge=1)] | None = None


class OutputText(Strict):
    """A text of an earlier response."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputMessage(Strict):
    """One turn of a conversation, or the message of an earlier response."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[InputText | InputImage | OutputText, Field(discriminator="type")]]
    id: str | None = None
    status: str | None = None
    phase: str | None = None

    def as_message(self) -> Message:
        """Return the chat's message."""
        if isinstance(self.content, str):
            return Message(role=self.role, content=self.content)
        parts: list[TextPart | ImagePart] = []
        for part in self.content:
            if isinstance(part, InputImage):
                url = ImageUrl(url=part.image_url, detail=part.detail, max_pixels=part.max_pixels)
                parts.append(ImagePart(type="image_url", image_url=url))
            else:
                parts.append(TextPart(type="text", text=part.text))
        return Message(role=self.role, content=parts)


class EarlierReasoning(Strict):
    """What was thought for an earlier response: no model is shown it."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[Any] | None = None
    content: list[Any] | None = None
    encrypted_content: str | None = None
    status: str | None = None


def _type_of(item: Any) -> str:
    return str(item.get("type") or "message") if isinstance(item, dict) else "message"


Item = Annotated[
    Annotated[InputMessage, Tag("message")] | Annotated[EarlierReasoning, Tag("reasoning")],
    Discriminator(
        _type_of,
        custom_error_type="item_type",
        custom_error_message="type: expected message or reasoning; the others are not supported here",
    ),
]


class TextFormat(Strict):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Strict):
    """How the answer's text is to be."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Strict):
    """Whether the model reasons: it does not, so there is nothing to sum up."""

    effort: Literal["none"] | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseRequest(AnswerRequest):
    """A request to /v1/responses. Nothing of it is kept, so no later one can refer to it."""

    neutral_values: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "background": (False,),
        "context_management": ([],),
        "conversation": (),
        "frequency_penalty": (0,),
        "max_tool_calls": (),
        "presence_penalty": (0,),
        "previous_response_id": (),
        "prompt": (),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "truncation": ("disabled",),
    }
    ignored: ClassVar[Sequence[str]] = (
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "user",
    )

    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    text: TextOptions | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, str] | None = None

    def as_chat(self) -> ChatRequest:
        """Return the chat that it is, but for ``instructions``. Raises ``ApiError``."""
        items = [InputMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        messages = [item.as_message() for item in items if isinstance(item, InputMessage)]
        if not messages:
            raise refused("input: expected a message.", "input")
        wants_logprobs = bool(self.include) or bool(self.top_logprobs)
        return ChatRequest(
            model=self.model,
            messages=messages,
            temperature=self.temperature,
            top_p=self.top_p,
            max_completion_tokens=self.max_output_tokens,
            stream=self.stream,
            stream_options=self.stream_options,
            seeonce=self.seeonce,
            logprobs=wants_logprobs or None,
            top_logprobs=self.top_logprobs if wants_logprobs else None,
            response_format=self._format(),
        )

    def _format(self) -> ResponseFormat | None:
        asked = None if self.text is None else self.text.format
        if asked is None:
            return None
        if asked.type != "json_schema":
            return ResponseFormat(type=asked.type)
        if asked.schema_ is None:
            raise refused("text.format.schema: Field required", "text")
        return ResponseFormat(type="json_schema", json_schema=JsonSchema(schema=asked.schema_))


def in_response_terms(error: ApiError) -> ApiError:
    """Return the error of a chat in the words of a response."""
    for name, own in _NAMES.items():
        if error.param == name:
            error.param = own
        if error.message.startswith(name):
            error.message = own + error.message.removeprefix(name)
    return error


class ResponseReply:
    """One response, whole or as events."""

    def __init__(self, asked: ResponseRequest, model: str) -> None:
        self._asked, self._model = asked, model
        self._id = f"resp_{uuid.uuid4().hex}"
        self._created_at = int(time.time())
        self._num_events = 0
        self._shown = ""  # what kind of item is being streamed
        self._texts = {"reasoning": "", "message": ""}
        self._logprobs: list[TokenLogprob] = []
        self._num_items = 0

    def whole(self, ended: Sequence[Ended]) -> Json:
        """Return the object of a request that does not stream."""
        return self._ended(ended[0])

    async def chunks(self, pieces: AsyncIterator[Sequence[Delta | Ended]]) -> AsyncIterator[bytes]:
        """Return the events of a stream, its end or its error included."""
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response=self._object("in_progress"))
        try:
            async for piece in pieces:
                yield b"".join(chunk for each in piece for chunk in self._events_of(each))
        except ApiError as error:  # the status has been sent
            found = in_response_terms(error)
            failure = {"code": found.code or "server_error", "message": found.message}
            yield self._event("response.failed", response=self._object("failed") | {"error": failure})
        yield event("[DONE]")

    def _events_of(self, news: Delta | Ended) -> Iterator[bytes]:
        yield from self._grown(news if isinstance(news, Delta) else news.rest)
        if isinstance(news, Ended):
            yield from self._finished(news)

    def _grown(self, delta: Delta) -> Iterator[bytes]:
        """Return the events of what came to the reasoning and to the message."""
        for kind, text in (("reasoning", delta.reasoning), ("message", delta.content)):
            if not text:
                continue
            yield from self._open(kind)
            self._texts[kind] += text
            if kind == "reasoning":
                yield self._part_event("response.reasoning_text.delta", delta=text)
                continue
            self._logprobs.extend(delta.logprobs)
            yield self._part_event(
                "response.output_text.delta", delta=text, logprobs=_logprobs(delta.logprobs)
            )

    def _open(self, kind: str) -> Iterator[bytes]:
        if self._shown == kind:
            return
        yield from self._close("completed")
        self._shown = kind
        item = self._item(kind, "", (), "in_progress")
        yield self._event(
            "response.output_item.added", output_index=self._num_items, item=item | {"content": []}
        )
        yield self._part_event("response.content_part.added", part=item["content"][0])

    def _close(self, status: str) -> Iterator[bytes]:
        kind = self._shown
        if not kind:
            return
        text = self._texts[kind]
        item = self._item(kind, text, self._logprobs, status)
        if kind == "reasoning":
            yield self._part_event("response.reasoning_text.done", text=text)
        else:
            yield self._part_event("response.output_text.done", text=text, logprobs=_logprobs(self._logprobs))
        yield self._part_event("response.content_part.done", part=item["content"][0])
        yield self._event("response.output_item.done", output_index=self._num_items, item=item)
        self._num_items += 1
        self._shown = ""

    def _finished(self, ended: Ended) -> Iterator[bytes]:
        whole = self._ended(ended)
        self._logprobs = list(ended.answer.logprobs or ())
        yield from self._open("message")
        yield from self._close(whole["output"][-1]["status"])
        yield self._event(f"response.{whole['status']}", response=whole)

    def _ended(self, ended: Ended) -> Json:
        answer = ended.answer
        is_cut = answer.finish_reason == "length"
        status = "incomplete" if is_cut else "completed"
        output = [self._item("reasoning", answer.reasoning, (), "completed")] if answer.reasoning else []
        output.append(self._item("message", answer.text, answer.logprobs or (), status))
        cost = usage([ended])
        found = self._object(status) | {
            "output": output,
            "completed_at": None if is_cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "usage": {
                "input_tokens": cost["prompt_tokens"],
                "input_tokens_details": cost["prompt_tokens_details"],
                "output_tokens": cost["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": cost["total_tokens"],
            },
        }
        if answer.finish_reason not in ("stop", "length"):
            found["seeonce"] = {"finish_reason": answer.finish_reason}
        return found

    def _item(self, kind: str, text: str, logprobs: Sequence[TokenLogprob], status: str) -> Json:
        tail = self._id.removeprefix("resp_")
        if kind == "reasoning":
            part: Json = {"type": "reasoning_text", "text": text}
            return {
                "type": kind, "id": f"rs_{tail}", "summary": [], "content": [part], "status": status
            }  # fmt: skip
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": _logprobs(logprobs)}
        return {
            "type": kind, "id": f"msg_{tail}", "status": status, "role": "assistant", "content": [part]
        }  # fmt: skip

    def _object(self, status: str) -> Json:
        asked = self._asked
        text = TextOptions() if asked.text is None else asked.text
        form = TextFormat(type="text", schema=None) if text.format is None else text.format
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": None,
            "model": self._model,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": "none", "summary": None},
            "background": False,
            "store": False,
            "service_tier": "default",
            "temperature": asked.temperature or 0.0,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "top_logprobs": asked.top_logprobs or 0,
            "text": {"format": json.loads(form.model_dump_json(by_alias=True, exclude_none=True))},
            "tool_choice": "none",
            "tools": [],
            "truncation": "disabled",
            "usage": None,
            "user": None,
            "safety_identifier": None,
            "prompt_cache_key": None,
            "metadata": asked.metadata or {},
        }

    def _part_event(self, name: str, **fields: object) -> bytes:
        """Return an event of the item that is being streamed: it has one part."""
        tail = self._id.removeprefix("resp_")
        item_id = f"{'rs' if self._shown == 'reasoning' else 'msg'}_{tail}"
        return self._event(name, item_id=item_id, output_index=self._num_items, content_index=0, **fields)

    def _event(self, name: str, **fields: object) -> bytes:
        found: Json = {"type": name, "sequence_number": self._num_events, **fields}
        self._num_events += 1
        return event(found, name)


def _logprobs(found: Sequence[TokenLogprob]) -> list[Json]:
    known = chat_logprobs(found)
    return [] if known is None else known["content"]
