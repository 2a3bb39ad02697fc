"""Where an interrupted check of every byte goes on: a small file in ``index/``.

Owns: that file; it may be deleted at any time. Does not own: the check (``cache.checking``).
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field

from cache.canonical_json import SEAL_FIELD, UNSEALED, JsonValue, seal, unseal
from cache.errors import StoreError
from cache.files import Durability, Folder
from cache.inventory import StoredEntry
from cache.key import EntryKey
from cache.layout import INDEX
from cache.store import Store

_MAX_BYTES = 64 << 20
_GOOD_FOR_S = 30 * 24 * 3600  # disks rot: what was right longer ago is looked at again


@dataclass(frozen=True, slots=True)
class CheckState:
    """Every key up to ``after`` was looked at since ``since_s``, and is right but for the ``suspects``."""

    since_s: float
    after: EntryKey | None = None
    suspects: frozenset[EntryKey] = field(default_factory=frozenset)

    def is_done(self, entry: StoredEntry) -> bool:
        """Say whether an entry need not be looked at again: one that came since then must be."""
        if self.after is None or entry.changed_s >= self.since_s:
            return False
        return entry.key.raw <= self.after.raw and entry.key not in self.suspects


def load_state(store: Store, name: str) -> CheckState:
    """Return how far the last check of this part came; the beginning when nothing is known, or too old."""
    now_s = time.time()
    with suppress(OSError, StoreError, ValueError), Folder.open(store.path / INDEX) as folder:
        document = unseal(folder.read(name, _MAX_BYTES), name)
        since_s, suspects = document.number("since_s"), document.raw("suspects")
        if isinstance(suspects, list) and now_s - _GOOD_FOR_S < since_s <= now_s:
            keys = frozenset(EntryKey.from_hex(str(suspect)) for suspect in suspects)
            return CheckState(since_s, EntryKey.from_hex(document.text("after")), keys)
    return CheckState(now_s)


def save_state(store: Store, name: str, state: CheckState) -> None:
    """Remember how far a check came; best effort, and not in a store that is read-only."""
    if not store.writable or state.after is None:
        return
    suspects = sorted(key.hex for key in state.suspects)
    document: dict[str, JsonValue] = {
        "after": state.after.hex,
        SEAL_FIELD: UNSEALED,
        "since_s": state.since_s,
        "suspects": suspects,
    }
    with suppress(OSError), Folder.open(store.path / INDEX) as folder:
        folder.replace(name, seal(document), Durability.none)


def forget_state(store: Store, name: str) -> None:
    """Let the next check begin anew."""
    with suppress(OSError), Folder.open(store.path / INDEX) as folder:
        folder.unlink(name)
