"""The API's objects: completions, chunks of a stream, log-probabilities and usage."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from infer.request import TokenLogprob
from seeonce.server.errors import ApiError
from seeonce.server.jobs import Delta, Ended

Json = dict[str, Any]
_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


@dataclass(slots=True)
class Reply:
    """One completion, under one id, as a whole or in chunks."""

    model: str
    is_chat: bool
    wants_usage: bool = False
    num_choices: int = 1
    num_prompts: int = 1
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.is_chat else "cmpl-") + uuid.uuid4().hex

    def whole(self, ended: Sequence[Ended]) -> Json:
        """Return the object of a request that does not stream."""
        choices = [self._choice(each) for each in sorted(ended, key=lambda each: each.index)]
        return self._object(choices, is_whole=True) | {"usage": usage(ended, self.num_prompts)}

    async def chunks(self, pieces: AsyncIterator[Sequence[Delta | Ended]]) -> AsyncIterator[bytes]:
        """Return the events of a stream, its end or its error included."""
        head = b""
        if self.is_chat:
            first = {"role": "assistant", "content": ""}
            head = b"".join(event(self._chunk(index, first)) for index in range(self.num_choices))
        ended: list[Ended] = []
        try:
            async for piece in pieces:
                ended += [each for each in piece if isinstance(each, Ended)]
                tail = self._tail(ended) if len(ended) == self.num_choices else b""
                yield head + b"".join(map(self._events_of, piece)) + tail
                head = b""
        except ApiError as error:  # the status has been sent
            yield event(error.body)

    def _tail(self, ended: Sequence[Ended]) -> bytes:
        """Return the events after the last choice's end."""
        done = event("[DONE]")
        if not self.wants_usage:
            return done
        return event(self._object([]) | {"usage": usage(ended, self.num_prompts)}) + done

    def _events_of(self, news: Delta | Ended) -> bytes:
        if isinstance(news, Delta):
            return event(self._more(news))
        rest = news.rest
        more = event(self._more(rest)) if rest.content or rest.reasoning or rest.logprobs else b""
        reason, extension = _finish(news)
        last = self._chunk(news.index, {} if self.is_chat else {"text": ""}, finish_reason=reason)
        last["choices"][0] |= extension
        return more + event(last)

    def _more(self, delta: Delta) -> Json:
        """Return a chunk with what came to a choice."""
        if not self.is_chat:
            return self._chunk(delta.index, {"text": delta.content}, text_logprobs(delta.logprobs))
        said: Json = {}
        if delta.reasoning:
            said["reasoning_content"] = delta.reasoning
        if delta.content or not said:
            said["content"] = delta.content
        return self._chunk(delta.index, said, chat_logprobs(delta.logprobs))

    def _choice(self, ended: Ended) -> Json:
        answer = ended.answer
        reason, extension = _finish(ended)
        common = {"index": ended.index, "finish_reason": reason}
        if not self.is_chat:
            return common | {"text": answer.text, "logprobs": text_logprobs(answer.logprobs)} | extension
        message: Json = {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        return common | {"message": message, "logprobs": chat_logprobs(answer.logprobs)} | extension

    def _chunk(
        self, index: int, said: Json, logprobs: Json | None = None, finish_reason: str | None = None
    ) -> Json:
        """Return a part of a stream about one choice, of which it says ``said``."""
        content = {"delta": said} if self.is_chat else said
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._object([choice]) | ({"usage": None} if self.wants_usage else {})

    def _object(self, choices: list[Json], *, is_whole: bool = False) -> Json:
        kind = "text_completion"
        if self.is_chat:
            kind = "chat.completion" if is_whole else "chat.completion.chunk"
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices
        }  # fmt: skip


def usage(ended: Sequence[Ended], num_prompts: int = 1) -> Json:
    """Return what a request cost; a prompt counts once, however many answers it has."""
    answers = sorted(ended, key=lambda each: each.index)
    num_each = len(answers) // num_prompts
    prompts = [answers[start : start + num_each] for start in range(0, len(answers), num_each)]
    prompt = sum(max(each.answer.usage.prompt_tokens for each in same) for same in prompts)
    completion = sum(each.answer.usage.completion_tokens for each in ended)
    cached = sum(min(each.cached_tokens for each in same) for same in prompts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def chat_logprobs(found: Sequence[TokenLogprob] | None) -> Json | None:
    """Return log-probabilities in the chat's form, ``None`` without any."""
    if not found:
        return None
    return {
        "content": [
            _token(each.text, each.logprob)
            | {"top_logprobs": [_token(other.text, other.logprob) for other in each.top]}
            for each in found
        ],
        "refusal": None,
    }


def text_logprobs(found: Sequence[TokenLogprob] | None) -> Json | None:
    """Return log-probabilities in the older form of text completions, ``None`` without any."""
    if not found:
        return None
    starts = [0]
    for each in found:
        starts.append(starts[-1] + len(each.text))
    return {
        "tokens": [each.text for each in found],
        "token_logprobs": [each.logprob for each in found],
        "top_logprobs": [{other.text: other.logprob for other in each.top} for each in found],
        "text_offset": starts[:-1],
    }


def event(found: Json | str, name: str = "") -> bytes:
    """Return one server-sent event."""
    text = found if isinstance(found, str) else _to_json(found)
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {text}\n\n".encode()


def _token(text: str, logprob: float) -> Json:
    whole = None if "\ufffd" in text else list(text.encode())
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": whole}


def _finish(ended: Ended) -> tuple[str, Json]:
    """Return the API's finish reason, and ours beside it where the API has no word for it."""
    reason = ended.answer.finish_reason
    if reason in ("stop", "length"):
        return reason, {}
    return "stop", {"seeonce": {"finish_reason": reason}}
