"""The size that a store may have: SEEONCE_STORE_MAX.

Owns: the limit, what is left of it, and the words when nothing is. Does not own: freeing anything
(``cache.collecting``, ``cache.forgetting``). Only entries count: they are what a store consists of.
"""

import os
from collections.abc import Mapping
from itertools import islice
from typing import Self

from cache.collecting import collect
from cache.errors import StoreError
from cache.inventory import stored_bytes, stored_entries
from cache.listing import own_bytes, stored_recordings, time_text
from cache.sizes import megabytes, parse_size
from cache.store import Store

VARIABLE = "SEEONCE_STORE_MAX"
_METADATA_BYTES = 2048  # of one entry, about
_NUM_NAMED = 3


def max_store_bytes(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the limit that the environment sets, or None.

    Raises:
        InputError: it is no size.
    """
    text = environ.get(VARIABLE, "").strip()
    return parse_size(text, VARIABLE) if text else None


class LimitReachedError(StoreError):
    """The store is as large as it may be; what was encoded stays."""


class StoreLimit:
    """Counts what is written against the limit. Not for several threads at once.

    The store is looked through at the beginning, and again whenever half of what was left then is used:
    other processes write too, and a look at every entry would cost more with every entry.
    """

    def __init__(self, store: Store, max_bytes: int | None) -> None:
        """``max_bytes`` None is no limit, and costs nothing."""
        self._store, self._max_bytes = store, max_bytes
        self._used_bytes = self._until_look = 0
        if max_bytes is not None:
            self._look()

    @classmethod
    def of(cls, store: Store, environ: Mapping[str, str] = os.environ) -> Self:
        """Take the limit from the environment.

        Raises:
            InputError: it is no size.
        """
        return cls(store, max_store_bytes(environ))

    def require(self, num_bytes: int, num_entries: int) -> None:
        """Refuse what does not fit, before it is begun.

        Raises:
            LimitReachedError: so much more is beyond the limit.
        """
        if self._max_bytes is not None and not self.fits(num_bytes, num_entries):
            raise self._reached(f"Encoding needs up to {megabytes(num_bytes)} more")

    def fits(self, num_bytes: int, num_entries: int) -> bool:
        """Say whether so much more would be within the limit."""
        needed = num_bytes + num_entries * _METADATA_BYTES
        return self._max_bytes is None or self._used_bytes + needed <= self._max_bytes

    def take(self, num_bytes: int) -> None:
        """Count an entry that is about to be written.

        Raises:
            LimitReachedError: it would be beyond the limit.
        """
        if self._max_bytes is None:
            return
        needed = num_bytes + _METADATA_BYTES
        if needed > self._until_look:
            self._look()
        if not self.fits(num_bytes, 1):
            raise self._reached("what is encoded stays, and no more")
        self._used_bytes += needed
        self._until_look -= needed

    def _look(self) -> None:
        # Never less than what was counted: entries on their way are not yet seen.
        self._used_bytes = max(self._used_bytes, stored_bytes(self._store.path))
        self._until_look = max(0, ((self._max_bytes or 0) - self._used_bytes) // 2)

    def _reached(self, what: str) -> LimitReachedError:
        return LimitReachedError(
            f"{what}: the store has {megabytes(self._used_bytes)} and {VARIABLE} allows "
            f"{megabytes(self._max_bytes or 0)}; {_what_would_free(self._store)}, or raise {VARIABLE}"
        )


def _what_would_free(store: Store) -> str:
    try:
        reclaimable = megabytes(collect(store, dry_run=True).num_bytes)
    except StoreError as error:
        return f"nothing can be collected ({error})"
    recordings = stored_recordings(store.home)
    sizes = {entry.key: entry.num_bytes for entry in stored_entries(store.path)}
    named = [
        f"{recording.id} ({megabytes(own_bytes(recording, recordings, sizes))}, last used "
        f"{time_text(recording.used_s)[:10]})"
        for recording in islice(recordings, _NUM_NAMED)
    ]
    oldest = f"; least recently used: {', '.join(named)}: seeonce store forget ID" if named else ""
    return f"seeonce store gc frees {reclaimable}{oldest}"
