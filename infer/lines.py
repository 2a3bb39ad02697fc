"""From a reply to the lines of results.jsonl: one line a frame, whatever the request showed together."""

from collections.abc import Sequence

from infer.grouping import split_by_frame
from infer.plan import Ask
from results.answers import parse_description
from results.known import Reply
from results.run import Result


def results_of(ask: Ask, reply: Reply, recording: str) -> list[Result]:
    """Return what a reply says of each frame of its ask."""
    texts: Sequence[str | None] = [reply.text] * len(ask.frames)
    if ask.numbered and reply.error is None:
        texts = split_by_frame(reply.text, len(ask.frames))
    return [
        Result(
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
            parsed=None if text is None else parse_description(text),
            error=_left_out(number, reply) if text is None and reply.error is None else reply.error,
            group=ask.group,
            logprobs=reply.logprobs,
        )
        for number, (frame, text) in enumerate(zip(ask.frames, texts, strict=True), 1)
    ]


def _left_out(number: int, reply: Reply) -> str:
    said = " ".join(reply.text.split())[:80]
    return (
        f"The answer has no line for Frame {number}: it ended by {reply.finish_reason} after "
        f"{reply.usage.completion_tokens} tokens and begins {said!r}. Show fewer frames together, or give "
        "more --max-tokens."
    )
