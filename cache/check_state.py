"""Where an interrupted check of every byte goes on: a small file in ``index/``.

Owns: that file; it may be deleted at any time. Does not own: the check (``cache.checking``).
"""

from contextlib import suppress
from dataclasses import dataclass, field

from cache.canonical_json import canonical, parse
from cache.errors import StoreError
from cache.files import Durability, Folder
from cache.key import EntryKey
from cache.layout import INDEX
from cache.store import Store

_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class CheckState:
    """Every key up to ``after`` was found right by then, but for the ``suspects``."""

    after: EntryKey | None = None
    suspects: frozenset[EntryKey] = field(default_factory=frozenset)

    def is_done(self, key: EntryKey) -> bool:
        """Say whether an entry need not be looked at again."""
        return self.after is not None and key.raw <= self.after.raw and key not in self.suspects


def load_state(store: Store, name: str) -> CheckState:
    """Return how far the last check of this part came; the beginning when nothing is known."""
    with suppress(OSError, StoreError, ValueError), Folder.open(store.path / INDEX) as folder:
        document = parse(folder.read(name, _MAX_BYTES), name)
        suspects = document.raw("suspects")
        if isinstance(suspects, list):
            keys = frozenset(EntryKey.from_hex(str(suspect)) for suspect in suspects)
            return CheckState(EntryKey.from_hex(document.text("after")), keys)
    return CheckState()


def save_state(store: Store, name: str, state: CheckState) -> None:
    """Remember how far a check came; best effort, and not in a store that is read-only."""
    if not store.writable or state.after is None:
        return
    suspects = sorted(key.hex for key in state.suspects)
    content = canonical({"after": state.after.hex, "suspects": suspects})
    with suppress(OSError), Folder.open(store.path / INDEX) as folder:
        folder.replace(name, content, Durability.none)


def forget_state(store: Store, name: str) -> None:
    """Let the next check begin anew."""
    with suppress(OSError), Folder.open(store.path / INDEX) as folder:
        folder.unlink(name)
