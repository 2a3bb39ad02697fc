"""Quarantine: damaged entries are moved here, with a note that says why, and kept for 30 days."""

import logging
import secrets
import time
from contextlib import suppress
from pathlib import Path

from cache.base.canonical_json import canonical, parse
from cache.base.errors import StoreError
from cache.base.files import Durability, Folder
from cache.key import Digest, EntryKey
from cache.layout import FRAMES, QUARANTINE, group_name, names_in, now

_NOTE_SUFFIX = ".reason.json"
_MAX_NOTE_BYTES = 64 << 10

_log = logging.getLogger("seeonce.cache")


def quarantine(store: Path, key: Digest, identity: tuple[int, int] | None, reason: str) -> None:
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
            if identity is None or group.identity_of(key.hex) != identity:
                return
            name = f"{key.hex}.{secrets.token_hex(4)}"
            group.rename(key.hex, target, name)
            if target.identity_of(name) != identity:
                target.rename(name, group, key.hex)
                return
            note = canonical({"key": key.hex, "reason": reason, "at": now()})
            _log.warning("entry %s was damaged and moved to quarantine: %s", key, reason)
            target.write(name + _NOTE_SUFFIX, note, Durability.none)


def quarantined(store: Path, key: EntryKey | None = None) -> list[str]:
    """Return the names of what lies in ``quarantine/``, or of the copies of one entry there."""
    start = f"{key.hex}." if key else ""
    names = names_in(store / QUARANTINE)
    return [name for name in names if name.startswith(start) and not name.endswith(_NOTE_SUFFIX)]


def old_quarantined(store: Path, min_age_s: float) -> list[str]:
    """Return the names of what has been in ``quarantine/`` for so long."""
    oldest = time.time() - min_age_s
    with suppress(FileNotFoundError), Folder.open(store / QUARANTINE) as folder:
        return [name for name in quarantined(store) if folder.moved_s(name) < oldest]
    return []


def why_quarantined(store: Path, key: EntryKey) -> str | None:
    """Say that an entry lies in quarantine, since when and why; None when it does not."""
    notes = [(*_note(store, name), name) for name in quarantined(store, key)]
    if not notes:
        return None
    at, reason, name = max(notes)
    return f"it lies in {QUARANTINE}/{name} since {at or 'some time'}: {reason or 'the reason is not known'}"


def _note(store: Path, name: str) -> tuple[str, str]:
    """Return when and why something came here, both empty when the note is lost."""
    with suppress(OSError, StoreError), Folder.open(store / QUARANTINE) as folder:
        note = parse(folder.read(name + _NOTE_SUFFIX, _MAX_NOTE_BYTES), name)
        return note.text("at"), note.text("reason")
    return "", ""


def remove_quarantined(store: Path, name: str) -> None:
    """Remove a damaged entry and its note for good; best effort."""
    with suppress(FileNotFoundError), Folder.open(store / QUARANTINE) as folder:
        folder.remove_tree(name)
        folder.remove_tree(name + _NOTE_SUFFIX)
