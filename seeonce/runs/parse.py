"""What an answer says: the description line taken apart."""

import re
from dataclasses import dataclass

# A field begins the text, a line, or what follows a "|"; models like to add Markdown's asterisks.
_FIELD = re.compile(r"(?:^|[|\n])[\s*_>#-]*(description|activity|apps|topics)[*_]*\s*:[\s*_]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Description:
    """A parsed description line."""

    description: str
    activity: str
    apps: tuple[str, ...]
    topics: tuple[str, ...]


def parse_description(text: str) -> Description | None:
    """Read ``description: … | activity: … | apps: [...] | topics: [...]``; ``None`` for anything else.

    Fields may stand on lines of their own, and lists may lack brackets or have quotes.
    """
    matches = list(_FIELD.finditer(text))
    fields: dict[str, str] = {}
    ends = [*(match.start() for match in matches[1:]), len(text)]
    for match, end in zip(matches, ends, strict=False):
        fields.setdefault(match[1].lower(), text[match.end() : end].strip().rstrip("|").strip())
    if not {"description", "activity", "apps", "topics"} <= fields.keys():
        return None
    return Description(
        fields["description"], fields["activity"], _items(fields["apps"]), _items(fields["topics"])
    )


def _items(text: str) -> tuple[str, ...]:
    inside = text.partition("]")[0].strip().removeprefix("[")
    items = (item.strip().strip("\"'").strip() for item in inside.split(","))
    return tuple(item for item in items if item)
