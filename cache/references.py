"""Which entries the manifests name: what a collection may never touch.

Owns: reading keys out of every manifest, and saying so when one cannot be read. Does not own: where
manifests lie (``cache.manifest``). Manifests are looked at again and again during a collection; one
that has not changed is not read again.
"""

import os
from pathlib import Path

from cache.errors import StoreError
from cache.home import Home
from cache.key import EntryKey, PixelDigest
from cache.layout import RECORDINGS
from cache.manifest import ManifestNames, manifest_files, manifest_names

_Stamp = tuple[int, int, int]


class References:
    """The keys, and the pictures as ``pixels``, that all manifests of a home name."""

    def __init__(self, home: Home) -> None:
        """Read every manifest. Raises as ``refresh``."""
        self._home = home
        self._known: dict[Path, tuple[_Stamp, ManifestNames]] = {}
        self._keys: frozenset[EntryKey] = frozenset()
        self.pixels: frozenset[PixelDigest] = frozenset()
        self.refresh()

    def refresh(self) -> None:
        """Look at every manifest again.

        Raises:
            StoreError: one cannot be read, so nobody knows what it names.
        """
        try:
            os.lstat(self._home.store / RECORDINGS)  # when it is not there, nothing can be concluded
            found = dict(filter(None, map(self._look, manifest_files(self._home))))
        except OSError as error:
            raise StoreError(
                f"cannot read {error.filename}: {error.strerror}; nothing is collected while manifests "
                "cannot be read: check its permissions"
            ) from error
        if found != self._known:
            self._known = found
            self._keys = frozenset().union(*(names.keys for _, names in found.values()))
            self.pixels = frozenset().union(*(names.pixels for _, names in found.values()))

    def __contains__(self, key: EntryKey) -> bool:
        """Say whether a manifest names the entry."""
        return key in self._keys

    def _look(self, path: Path) -> tuple[Path, tuple[_Stamp, ManifestNames]] | None:
        try:
            stamp = _stamp(path)
            known = self._known.get(path)
            return path, known if known and known[0] == stamp else (stamp, manifest_names(path))
        except (OSError, StoreError):
            if os.path.lexists(path):
                raise
            return None  # forgotten between two looks


def _stamp(path: Path) -> _Stamp:
    found = os.lstat(path)
    return found.st_mtime_ns, found.st_size, found.st_ino
