"""Where damaged entries go: out of every reader's way, kept for who wants to know why."""

import logging
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cache.base.canonical_json import canonical, parse
from cache.base.errors import StoreError
from cache.base.files import Durability, Folder
from cache.key import EntryKey
from cache.layout import FRAMES, QUARANTINE, group_name, names_in, now

REASON_SUFFIX = ".reason.json"
_MAX_NOTE_BYTES = 64 << 10

_log = logging.getLogger("seeonce.cache")


def quarantine(store: Path, key: EntryKey, identity: tuple[int, int], reason: str) -> None:
    """Move the entry folder of that (device, inode) to ``quarantine/``; best effort.

    Several readers may find the same damage, and a writer may have replaced the entry meanwhile:
    a good entry that was caught by mistake is put back.
    """
    with suppress(OSError), Folder.open_root(store) as root:
        root.make_folder(QUARANTINE, exist_ok=True)
        with (
            root.folder(QUARANTINE) as target,
            root.folder(FRAMES) as frames,
            frames.folder(group_name(key)) as group,
        ):
            if group.identity_of(key.hex) != identity:
                return
            name = f"{key.hex}.{secrets.token_hex(4)}"
            group.rename(key.hex, target, name)
            if target.identity_of(name) != identity:
                target.rename(name, group, key.hex)
                return
            note = canonical({"key": key.hex, "reason": reason, "at": now()})
            _log.warning("entry %s was damaged and moved to quarantine: %s", key, reason)
            target.write(name + REASON_SUFFIX, note, Durability.none)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A damaged entry that was put away. ``name`` is that of its folder; ``reason`` is empty when lost."""

    name: str
    key: EntryKey
    reason: str
    at: str


def quarantined_entries(store: Path) -> dict[EntryKey, list[Quarantined]]:
    """Return what lies in ``quarantine/``, by key, the latest last."""
    found: dict[EntryKey, list[Quarantined]] = {}
    for name in names_in(store / QUARANTINE):
        with suppress(ValueError):
            key = EntryKey.from_hex(name.partition(".")[0])
            if not name.endswith(REASON_SUFFIX):
                found.setdefault(key, []).append(_quarantined(store, name, key))
    for items in found.values():
        items.sort(key=lambda item: item.at)
    return found


def why_quarantined(store: Path, key: EntryKey) -> str | None:
    """Say that an entry lies in quarantine, since when and why; None when it does not."""
    items = [name for name in names_in(store / QUARANTINE) if name.startswith(f"{key.hex}.")]
    found = [_quarantined(store, name, key) for name in items if not name.endswith(REASON_SUFFIX)]
    return in_words(max(found, key=lambda item: item.at)) if found else None


def in_words(item: Quarantined) -> str:
    """Say why an entry is not there, in one line."""
    since, reason = item.at or "some time", item.reason or "the reason is not known"
    return f"it lies in {QUARANTINE}/{item.name} since {since}: {reason}"


def old_quarantined(store: Path, min_age_s: float) -> list[str]:
    """Return the names of what has been in ``quarantine/`` for so long."""
    oldest = time.time() - min_age_s
    with suppress(FileNotFoundError), Folder.open(store / QUARANTINE) as folder:
        names = [name for name in folder.names() if not name.endswith(REASON_SUFFIX)]
        return [name for name in names if folder.moved_s(name) < oldest]
    return []


def remove_quarantined(store: Path, name: str) -> None:
    """Remove a damaged entry and its note for good; best effort."""
    with suppress(FileNotFoundError), Folder.open(store / QUARANTINE) as folder:
        folder.remove_tree(name)
        folder.remove_tree(name + REASON_SUFFIX)


def _quarantined(store: Path, name: str, key: EntryKey) -> Quarantined:
    with suppress(OSError, StoreError), Folder.open(store / QUARANTINE) as folder:
        note = parse(folder.read(name + REASON_SUFFIX, _MAX_NOTE_BYTES), name)
        return Quarantined(name, key, note.text("reason"), note.text("at"))
    return Quarantined(name, key, "", "")
