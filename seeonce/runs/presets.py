"""Questions that come with the answers' form, by name: what another program asks, for what it does next."""

import json
from dataclasses import dataclass

ACTIVITIES = ("debugging", "coding", "review", "meeting", "research", "reading", "terminal", "other")
"""The activities that Escribano groups frames by; any other word makes a segment of its own."""

_TEXT = r"^[^\s|\[\]\"\\][^|\[\]\"\\\x00-\x1f\x7f]*$"
_ITEM = r"^[^\s|\[\],\"\\][^|\[\],\"\\\x00-\x1f\x7f]*$"


@dataclass(frozen=True, slots=True)
class Preset:
    """A prompt, the JSON Schema of its answers, and how long those get at most, in tokens."""

    prompt: str
    schema: str
    max_tokens: int


def _list_of(what: str) -> dict[str, object]:
    return {
        "type": "array",
        "items": {"type": "string", "maxLength": 32, "pattern": _ITEM},
        "maxItems": 5,
        "description": what,
    }


ESCRIBANO = Preset(
    prompt=(
        "This is one screenshot of a screen recording. Say in one sentence what the user is doing in it: "
        "name the file, page, error or task that is worked on, and what for, as far as the screen shows it. "
        f"Choose the activity among {', '.join(ACTIVITIES)}. Name the applications that are seen, and the "
        "projects or technical subjects that it is about. Answer with one JSON object of this form: "
        '{"description": "...", "activity": "...", "apps": ["..."], "topics": ["..."]}'
    ),
    schema=json.dumps(
        {
            "title": "escribano",
            "type": "object",
            "properties": {
                "description": {"type": "string", "minLength": 1, "maxLength": 240, "pattern": _TEXT},
                "activity": {"enum": list(ACTIVITIES)},
                "apps": _list_of("applications on the screen"),
                "topics": _list_of("projects and subjects"),
            },
            "required": ["description", "activity", "apps", "topics"],
            "additionalProperties": False,
        }
    ),
    max_tokens=768,
)
PRESETS = {"escribano": ESCRIBANO}
