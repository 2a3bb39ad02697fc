"""How the prompts of a run were asked, in a few words: what tells two columns apart that ask the same.

Owns the words. What is not shown whole bears a digest, so that no two look the same.
"""

import json
from dataclasses import dataclass

from blake3 import blake3

from seeonce.runs.visible import visible

_WIDTH = 40


@dataclass(frozen=True, slots=True)
class Manner:
    """What run.json says of it; ``schema`` and ``system`` are empty where there was none."""

    schema: str = ""
    system: str = ""
    frames_per_prompt: int = 1
    stride: int | None = None
    image_position: str = "before"

    def __str__(self) -> str:
        """Say what is not as usual; nothing when all is."""
        parts = [f"schema {_schema(self.schema)}"] if self.schema else []
        if self.system:
            parts.append(f"system {_short(self.system)}")
        if self.frames_per_prompt > 1:
            parts.append(f"{self.frames_per_prompt} frames a prompt")
        if self.stride not in (None, self.frames_per_prompt):
            parts.append(f"stride {self.stride}")
        if self.image_position != "before":
            parts.append(f"images {visible(self.image_position)}")
        return "; ".join(parts)


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
