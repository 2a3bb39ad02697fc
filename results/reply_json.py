"""A reply as JSON text, and back."""

from dataclasses import asdict

from cache.canonical_json import JsonValue, canonical, parse
from results.known import Reply
from results.run import Usage


def reply_to_json(reply: Reply) -> str:
    """Return a reply without an error as JSON."""
    document: JsonValue = {
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "usage": asdict(reply.usage),
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
    )
