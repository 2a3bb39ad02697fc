"""From a reply to the lines of results.jsonl: one line a frame, whatever the request showed together."""

import json
from collections.abc import Sequence
from math import isfinite

from cache.canonical_json import JsonValue
from infer.grouping import split_by_frame
from infer.schema import DESCRIPTION
from seeonce.runs.answers import Description, parse_description
from seeonce.runs.known import Reply
from seeonce.runs.plan import Ask
from seeonce.runs.run import Result


def results_of(ask: Ask, reply: Reply, recording: str) -> list[Result]:
    """Return what a reply says of each frame of its ask."""
    texts: Sequence[str | None] = [reply.text] * len(ask.frames)
    if ask.numbered and reply.error is None:
        texts = split_by_frame(reply.text, len(ask.frames))
    return [_result(ask, number, text, reply, recording) for number, text in enumerate(texts)]


def _result(ask: Ask, number: int, text: str | None, reply: Reply, recording: str) -> Result:
    frame, error = ask.frames[number], reply.error
    parsed: Description | JsonValue = None
    if error is None and ask.schema is not None:
        parsed, error = _under_schema(ask.schema, text, reply, is_last=number == len(ask.frames) - 1)
    elif error is None and text is None:
        error = _left_out(number + 1, reply)
    elif error is None and text is not None:
        parsed = parse_description(text)
    return Result(
        recording=recording,
        frame=frame.index,
        timestamp_s=frame.timestamp_s,
        source=frame.source,
        key=frame.key.hex,
        prompt_id=ask.prompt.prompt_id,
        prompt=ask.prompt.text,
        text=text or "",
        finish_reason=reply.finish_reason,
        usage=reply.usage,
        parsed=parsed,
        error=error,
        group=ask.group,
        logprobs=reply.logprobs,
    )


def _under_schema(
    schema: str, text: str | None, reply: Reply, *, is_last: bool
) -> tuple[Description | JsonValue, str | None]:
    """Take an answer apart; one that was cut is an error, even where what is left could be read.

    Of several frames the last that is there was cut, those before it are whole.
    """
    cut = (
        f"The answer ended by {reply.finish_reason} after {reply.usage.completion_tokens} tokens, before its "
        "schema was fulfilled: give more --max-tokens, or a schema with bounds."
    )
    if text is None or (reply.finish_reason != "stop" and (is_last or reply.text.endswith(text))):
        return None, cut
    if schema == DESCRIPTION:
        found = parse_description(text)
        return found, None if found is not None else cut
    try:
        return json.loads(text, parse_float=_finite), None
    except json.JSONDecodeError:
        return None, cut
    except (ValueError, RecursionError) as error:
        return None, f"The answer is JSON that cannot be kept ({error}): give a schema with bounds."


def _finite(text: str) -> float:
    """Read a number; one that only infinity stands for would make results.jsonl no JSON."""
    if isfinite(value := float(text)):
        return value
    raise ValueError(f"{text[:20]} is too large")


def _left_out(number: int, reply: Reply) -> str:
    said = " ".join(reply.text.split())[:80]
    return (
        f"The answer has no line for Frame {number}: it ended by {reply.finish_reason} after "
        f"{reply.usage.completion_tokens} tokens and begins {said!r}. Show fewer frames together, or give "
        "more --max-tokens."
    )
