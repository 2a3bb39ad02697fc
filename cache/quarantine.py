"""Where damaged entries go: out of every reader's way, kept for who wants to know why.

Owns: the move and the note of its reason. Does not own: what counts as damage (``cache.reading``).
"""

import logging
import secrets
from contextlib import suppress
from pathlib import Path

from cache.canonical_json import canonical
from cache.files import Durability, Folder
from cache.key import EntryKey
from cache.layout import FRAMES, QUARANTINE, group_name, now

REASON_SUFFIX = ".reason.json"

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
