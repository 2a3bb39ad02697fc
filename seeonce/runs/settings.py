"""How a run was asked, in a few words: nothing when as usual, never the same words for two ways."""

import json
from dataclasses import fields

from blake3 import blake3

from cache.base.text import visible
from infer.sampling import Sampling
from seeonce.runs.prompts import Showing

_WIDTH = 40
_SAMPLING = tuple(
    field.name for field in fields(Sampling) if field.name not in ("schema", "stop", "logprobs")
)


def in_words(sampling: Sampling, showing: Showing) -> str:
    """Say what is not as usual; nothing when all is."""
    return "; ".join(unusual(sampling, showing))


def unusual(sampling: Sampling, showing: Showing) -> list[str]:
    """Return each setting that is not as usual, in words."""
    parts = [f"schema {_schema(sampling.schema)}"] if sampling.schema else []
    if showing.system:
        parts.append(f"system {_short(showing.system)}")
    if showing.frames_per_prompt > 1:
        parts.append(f"{showing.frames_per_prompt} frames a prompt")
    if showing.stride not in (None, showing.frames_per_prompt):
        parts.append(f"stride {showing.stride}")
    if showing.image_position != Showing().image_position:
        parts.append(f"images {showing.image_position}")
    if showing.thinking:
        parts.append("thinking")
    usual = Sampling()
    for name in _SAMPLING:
        value = getattr(sampling, name)
        if value != getattr(usual, name):
            parts.append(f"{name} {value}")
    if sampling.stop:
        parts.append(f"stop {_short(json.dumps(sampling.stop, ensure_ascii=False))}")
    return parts


def _schema(schema: str) -> str:
    """Name a JSON Schema by its title or its properties; any other text is shown as it is."""
    try:
        found = json.loads(schema)
    except (ValueError, RecursionError):
        return _short(schema)
    named = found.get("title") or found.get("properties") if isinstance(found, dict) else None
    if isinstance(named, dict):
        named = ", ".join(named)
    return f"{_cut(named)} ({_digest(schema)})" if isinstance(named, str) and named else _short(schema)


def _short(text: str) -> str:
    shown = _cut(text)
    return shown if shown == text else f"{shown} ({_digest(text)})"


def _cut(text: str) -> str:
    shown = " ".join(visible(text[: 2 * _WIDTH]).split())
    return shown if len(shown) <= _WIDTH else f"{shown[: _WIDTH - 1].rstrip()}…"


def _digest(text: str) -> str:
    return blake3(text.encode("utf-8", "replace")).hexdigest()[:6]
