"""A reply as JSON text, and back."""

from dataclasses import asdict

from cache.canonical_json import JsonObject, JsonValue, canonical, parse
from seeonce.runs.known import Reply
from seeonce.runs.run import Candidate, TokenLogprob, Usage


def reply_to_json(reply: Reply) -> str:
    """Return a reply without an error as JSON."""
    document: JsonValue = {
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "usage": asdict(reply.usage),
        "logprobs": None if reply.logprobs is None else [asdict(one) for one in reply.logprobs],
    }
    return canonical(document).decode("ascii")


def reply_from_json(text: str) -> Reply:
    """Read a reply.

    Raises:
        StoreError: it is none.
    """
    found = parse(text.encode(), "a kept reply")
    usage = found.child("usage")
    return Reply(
        found.text("text"),
        found.text("finish_reason"),
        Usage(usage.integer("prompt_tokens"), usage.integer("completion_tokens")),
        logprobs_from_json(found, "logprobs"),
    )


def logprobs_from_json(found: JsonObject, name: str) -> tuple[TokenLogprob, ...] | None:
    """Read log-probabilities; a field that is missing or null has none.

    Raises:
        StoreError: they are something else.
    """
    if not found.has(name) or found.raw(name) is None:
        return None
    return tuple(map(_logprob, found.children(name)))


def _logprob(found: JsonObject) -> TokenLogprob:
    top = (
        Candidate(one.integer("token"), one.text("text"), one.number("logprob"))
        for one in found.children("top")
    )
    return TokenLogprob(found.integer("token"), found.text("text"), found.number("logprob"), tuple(top))
