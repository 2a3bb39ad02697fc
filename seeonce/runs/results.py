"""An answer as the lines of results.jsonl, one for each frame that it is about; and the lines read."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import cast

from cache.base.canonical_json import JsonObject, JsonValue
from cache.base.errors import StoreError
from infer.request import Answer, Request, TokenLogprob, Usage
from infer.schema import DESCRIPTION
from seeonce.runs.parse import Description, parse_description
from seeonce.runs.prompts import Prompt, split_by_frame
from seeonce.runs.run import RESULTS_NAME, Result


def results_of(request: Request, prompt: Prompt, answer: Answer, recording: str) -> list[Result]:
    """Return what an answer says of each frame of its request."""
    frames = request.frames
    texts: Sequence[str | None] = [answer.text] * len(frames)
    if request.numbered and answer.error is None:
        texts = split_by_frame(answer.text, len(frames))
    results = []
    for number, (frame, text) in enumerate(zip(frames, texts, strict=True), 1):
        parsed, error = _parsed(request, number, text, answer)
        results.append(
            Result(
                recording=recording,
                frame=frame.index,
                timestamp_s=frame.timestamp_s,
                source=frame.source,
                key=frame.key.hex,
                prompt_id=prompt.prompt_id,
                prompt=prompt.text,
                text=text or "",
                finish_reason=answer.finish_reason,
                usage=answer.usage,
                parsed=parsed,
                error=error,
                group=tuple(each.index for each in frames),
                logprobs=answer.logprobs,
                reasoning=answer.reasoning,
            )
        )
    return results


def _parsed(
    request: Request, number: int, text: str | None, answer: Answer
) -> tuple[Description | JsonValue, str | None]:
    """Take apart what is said of the frame with this number; or say why nothing is."""
    if answer.error is not None:
        return None, answer.error
    if request.sampling.schema is not None:
        return _under_schema(request.sampling.schema, text, answer, is_last=number == len(request.frames))
    if text is None:
        return None, _left_out(number, answer)
    return parse_description(text), None


def _under_schema(
    schema: str, text: str | None, answer: Answer, *, is_last: bool
) -> tuple[Description | JsonValue, str | None]:
    """Take an answer apart; one that was cut is an error, even where what is left could be read.

    Of several frames the last that is there was cut, those before it are whole.
    """
    cut = (
        f"The answer ended by {answer.finish_reason} after {answer.usage.completion_tokens} tokens, before "
        "its schema was fulfilled: give more --max-tokens, or a schema with bounds."
    )
    if text is None or (answer.finish_reason != "stop" and (is_last or answer.text.endswith(text))):
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


def _left_out(number: int, answer: Answer) -> str:
    said = " ".join(answer.text.split())[:80]
    return (
        f"The answer has no line for Frame {number}: it ended by {answer.finish_reason} after "
        f"{answer.usage.completion_tokens} tokens and begins {said!r}. Show fewer frames together, or give "
        "more --max-tokens."
    )


def read_results(run: Path, say: Callable[[str], None], *, logprobs: bool = False) -> tuple[Result, ...]:
    """Read results.jsonl, in the order in which answers came; lines that are no result are named to ``say``.

    Log-probabilities are most of a file that has them, and are read only when asked for. Fields of a newer
    version are ignored, and lines written before frames were grouped have no group.

    Raises:
        StoreError: the file cannot be read.
    """
    path = run / RESULTS_NAME
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return ()  # killed before its first line
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}): is it a run?") from error
    results = []
    for number, line in enumerate(lines, 1):
        try:
            found = JsonObject(json.loads(line), "the line")
            result = _result(found)
            results.append(replace(result, logprobs=logprobs_of(found)) if logprobs else result)
        except (StoreError, ValueError, RecursionError) as error:
            say(f"{path}, line {number}: not a result ({error}); it is left out")
    return tuple(results)


def _result(found: JsonObject) -> Result:
    return Result(
        recording=found.text("recording"),
        frame=found.integer("frame"),
        timestamp_s=found.number("timestamp_s"),
        source=found.text("source"),
        key=found.text("key"),
        prompt_id=found.text("prompt_id"),
        prompt=found.text("prompt"),
        text=found.text("text"),
        finish_reason=found.text("finish_reason"),
        usage=found.child("usage").record(Usage),
        parsed=cast(JsonValue, found.raw("parsed")),
        error=found.text_or_none("error"),
        group=found.integers("group") if found.has("group") else (),
        reasoning=found.text("reasoning") if found.has("reasoning") else "",
    )


def logprobs_of(found: JsonObject) -> tuple[TokenLogprob, ...] | None:
    """Read the log-probabilities of a result or a kept answer; ``None`` where it has none.

    Raises:
        StoreError: they are something else.
    """
    if not found.has("logprobs") or found.raw("logprobs") is None:
        return None
    return tuple(one.record(TokenLogprob) for one in found.children("logprobs"))
