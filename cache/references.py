"""What the manifests name: what a collection may never touch.

Owns: reading names out of every manifest, and saying so when one cannot be read. Does not own: where
manifests lie (``cache.manifest``). Manifests are looked at again and again during a collection; one
that has not changed is not read again.
"""

import os
from pathlib import Path

from cache.errors import StoreError
from cache.home import Home
from cache.key import EntryKey
from cache.layout import RECORDINGS
from cache.manifest import ManifestNames, manifest_files, manifest_names

_Stamp = tuple[int, int, int]


class References:
    """The keys, and all that the manifests of a home name as ``names``."""

    def __init__(self, home: Home, leave_out: str = "") -> None:
        """Read every manifest, but of the recording ``leave_out``. Raises as ``refresh``."""
        self._home, self._left_out = home, home.store / RECORDINGS / leave_out if leave_out else None
        self._known: dict[Path, tuple[_Stamp, ManifestNames]] = {}
        self.names = ManifestNames()
        self.refresh()

    def refresh(self) -> None:
        """Look at every manifest again.

        Raises:
            StoreError: one cannot be read, so nobody knows what it names.
        """
        try:
            os.lstat(self._home.store / RECORDINGS)  # when it is not there, nothing can be concluded
            paths = [path for path in manifest_files(self._home) if path.parent.parent != self._left_out]
            found = dict(filter(None, map(self._look, paths)))
        except OSError as error:
            raise StoreError(
                f"cannot read {error.filename}: {error.strerror}; nothing is collected while manifests "
                "cannot be read: check its permissions"
            ) from error
        if found != self._known:
            self._known = found
            self.names = ManifestNames.of_all(names for _, names in found.values())

    def __contains__(self, key: EntryKey) -> bool:
        """Say whether a manifest names the entry."""
        return key in self.names.keys

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
