"""Which paths that stand in other programs' databases are opened.

Owns the rule (docs/decisions/011): a local, absolute path whose target, links followed, lies under the
user's home, the database's folder, a folder for temporary files or a mounted volume. A database is not
the user: nothing in it may have seeonce look at devices, other users' files or the network. Opens nothing.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cache.errors import InputError
from sources.recording import printable

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_TEMPORARY = ("/tmp", "/var/tmp", "/var/folders")  # noqa: S108 - looked under, never written
_MOUNTED = ("/Volumes", "/media", "/mnt", "/run/media")


@dataclass(frozen=True, slots=True)
class UsersFolders:
    """The folders under which a database may name files."""

    _roots: tuple[str, ...]
    _home: str
    _followed: dict[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, environ: Mapping[str, str], database: Path) -> "UsersFolders":
        """Give them for a user's environment and a database."""
        home = environ.get("HOME", "")
        named = [home, str(database.parent), tempfile.gettempdir(), *_TEMPORARY, *_MOUNTED]
        roots = (os.path.realpath(root) for root in named if root)
        return cls(tuple(root for root in dict.fromkeys(roots) if root != os.sep), home)

    def locate(self, text: object) -> Path:
        """Return the file that a database names, links followed; it may not be there.

        Raises:
            InputError: it is no path that may be opened.
        """
        if not isinstance(text, str) or not text:
            raise InputError("names no file")
        shown = printable(text)[:200]
        if "\0" in text:
            raise InputError(f"{shown}: not a path (it holds a NUL)")
        if _SCHEME.match(text):
            raise InputError(f"{shown}: an address, not a file of this computer")
        if text.startswith("~/") and self._home:
            text = os.path.join(self._home, text[2:])  # noqa: PTH118
        if not os.path.isabs(text):  # noqa: PTH117
            raise InputError(f"{shown}: not an absolute path")
        try:
            place = self._real(text)
        except (OSError, ValueError) as error:
            raise InputError(f"{shown}: not a path ({error})") from error
        if not any(place.startswith(root + os.sep) for root in self._roots):
            raise InputError(
                f"{shown}: outside your home, temporary folders, volumes and the database's folder; "
                "move it into one of them, or encode its folder by path"
            )
        return Path(place)

    def _real(self, path: str) -> str:
        """Follow links as ``os.path.realpath`` does; of the folder that thousands of images share once."""
        folder, name = os.path.split(path)
        if folder not in self._followed:
            self._followed[folder] = os.path.realpath(folder)
        place = os.path.join(self._followed[folder], name)  # noqa: PTH118
        follow = name in ("", ".", "..") or os.path.islink(place)  # noqa: PTH114 (never raises)
        return os.path.realpath(path) if follow else place
