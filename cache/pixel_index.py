"""Remembered pixel digests of files, so that an unchanged file is not even decoded."""

import json
import os
import re
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Self

from cache.base.errors import StoreError
from cache.base.files import Folder
from cache.base.home import Home
from cache.base.sqlite import DisposableDatabase
from cache.base.text import printable
from cache.key import FieldHasher, PixelDigest
from cache.layout import INDEX
from cache.manifest import ManifestNames

# A file changed twice within the granularity of its timestamps looks unchanged, as in git's index.
RACY_NS = 2_000_000_000
_FILE = "pixels-1.sqlite"
_CHECK = "seeonce 2026-11 pixel index row, format 2"  # raised when the same file gives other pixels
_DIGEST_DIGITS = 64
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path BLOB NOT NULL, position TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    inode TEXT NOT NULL, ctime_ns INTEGER NOT NULL, pixels BLOB NOT NULL, width INTEGER NOT NULL,
    height INTEGER NOT NULL, row_digest BLOB NOT NULL, PRIMARY KEY (path, position)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (
    name TEXT PRIMARY KEY, text TEXT NOT NULL, row_digest BLOB NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells a changed file from an unchanged one; take it before the file is read.

    ``position`` is a place in it, such as a video's timestamp; ``taken_ns`` is when it was taken.
    """

    path: str
    size: int
    mtime_ns: int
    inode: int
    position: str = ""
    ctime_ns: int = 0
    taken_ns: int = field(default=0, compare=False)

    @classmethod
    def of(cls, path: Path, position: str = "") -> Self:
        """Take the stamp of a file.

        Raises:
            OSError: there is no such file.
        """
        taken_ns = time.time_ns()
        found = path.stat()
        absolute = os.path.abspath(path)  # noqa: PTH100 - resolve() would stat every parent
        return cls(
            absolute, found.st_size, found.st_mtime_ns, found.st_ino, position, found.st_ctime_ns, taken_ns
        )

    def current(self) -> Self:
        """Return the stamp as it is taken now, if the file is still the same, else this one.

        Taken right before a file is read, it is racy for fewer files than when they were listed.
        """
        try:
            now = self.of(Path(self.path), self.position)
        except OSError:
            return self
        return now if now == self else self

    @property
    def racy(self) -> bool:
        """Whether the file was changed so shortly before that another change may go unseen."""
        taken_ns = self.taken_ns or time.time_ns()
        return taken_ns - max(self.mtime_ns, self.ctime_ns) < RACY_NS


@dataclass(frozen=True, slots=True)
class KnownPixels:
    """The digest and the size of a decoded picture."""

    pixels: PixelDigest
    width: int
    height: int


class PixelIndex(DisposableDatabase):
    """The index of one home; threads and processes may share it. ``close`` it, or use ``with``."""

    def __init__(self, home: Home) -> None:
        """Nothing is opened until it is asked."""
        super().__init__(home.store / INDEX / _FILE, _SCHEMA)

    def get(self, stamp: FileStamp) -> KnownPixels | None:
        """Return what is known of an unchanged file, or None."""
        return self.get_many([stamp]).get(stamp)

    def get_many(self, stamps: Sequence[FileStamp]) -> dict[FileStamp, KnownPixels]:
        """Return what is known of those files that are unchanged."""

        def work(connection: sqlite3.Connection) -> dict[FileStamp, KnownPixels]:
            found = ((stamp, _find(connection, stamp)) for stamp in stamps)
            return {stamp: known for stamp, known in found if known is not None}

        return self.work(work) or {}

    def put(self, stamp: FileStamp, known: KnownPixels) -> None:
        """Remember a file; nothing if it was changed within the last two seconds."""
        if stamp.racy:
            return

        def work(connection: sqlite3.Connection) -> None:
            with connection:
                connection.execute(
                    "INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?,?,?,?,?)", _row(stamp, known)
                )

        self.work(work)

    def get_note(self, name: str) -> str | None:
        """Return the text last put under a name, or None."""

        def work(connection: sqlite3.Connection) -> str | None:
            row = connection.execute("SELECT text, row_digest FROM notes WHERE name = ?", (name,)).fetchone()
            return row[0] if row is not None and row[1] == _note_digest(name, row[0]) else None

        return self.work(work)

    def put_note(self, name: str, text: str) -> None:
        """Remember a small text under a name.

        A note about a picture has its digest at the end of its name, one about files their paths as JSON
        strings in it: ``forget`` goes by that.
        """

        def work(connection: sqlite3.Connection) -> None:
            with connection:
                row = (name, text, _note_digest(name, text))
                connection.execute("INSERT OR REPLACE INTO notes VALUES (?,?,?)", row)

        self.work(work)

    def forget(self, gone: ManifestNames, needed: ManifestNames) -> int:
        """Remove what is remembered of files and pictures that are ``gone`` and not ``needed``.

        Returns how many files, or places in files, were removed.

        Raises:
            StoreError: the index is in use for long, or cannot be written.
        """
        places, needed_places = _files_of(gone.places), _files_of(needed.places)
        pictures = gone.pixels - needed.pixels

        def is_gone(path: str) -> bool:
            """Say whether a file is gone, or lies anywhere in a folder that is."""
            whole = printable(path)
            named = whole in places or any(str(folder) in places for folder in PurePath(whole).parents)
            return named and whole not in needed_places

        def work(connection: sqlite3.Connection) -> int:
            rows = [
                (path, position, pixels)
                for path, position, pixels in connection.execute("SELECT path, position, pixels FROM files")
                if is_gone(os.fsdecode(path)) or PixelDigest(pixels) in pictures
            ]
            unknown = pictures | {PixelDigest(pixels) for *_, pixels in rows} - needed.pixels
            digests = {digest.hex for digest in unknown}
            notes = [
                (name,)
                for (name,) in connection.execute("SELECT name FROM notes")
                if name[-_DIGEST_DIGITS:] in digests or any(map(is_gone, _json_strings(name)))
            ]
            connection.executemany("DELETE FROM files WHERE path = ? AND position = ?", [r[:2] for r in rows])
            connection.executemany("DELETE FROM notes WHERE name = ?", notes)
            return len(rows)

        found = self.erase(work)
        if found is None and self.path.exists():
            raise StoreError(
                f"{self.path} is in use or cannot be written, so the paths of files would stay in it: "
                "run the same command again, or remove that file"
            )
        return found or 0

    def prepare_folder(self) -> None:
        """Refuse a symlink, which would lead out of the store."""
        with Folder.open(self.path.parent):
            pass


def _files_of(places: Iterable[str]) -> set[str]:
    """Return files and folders of places, of which some are in a file, as in ``video.mp4#pts=12``."""
    return {form for place in places for form in (place, place.rpartition("#")[0]) if form}


def _json_strings(text: str) -> list[str]:
    return [json.loads(found) for found in _JSON_STRING.findall(text)]


def _find(connection: sqlite3.Connection, stamp: FileStamp) -> KnownPixels | None:
    row = connection.execute(
        "SELECT * FROM files WHERE path = ? AND position = ?", (os.fsencode(stamp.path), stamp.position)
    ).fetchone()
    if row is None:
        return None
    known = KnownPixels(PixelDigest(row[6]), row[7], row[8])
    # The row's own digest: SQLite does not notice a flipped bit, and a wrong digest is a wrong answer.
    return known if row == _row(stamp, known) else None


def _row(
    stamp: FileStamp, known: KnownPixels
) -> tuple[bytes, str, int, int, str, int, bytes, int, int, bytes]:
    path, inode = os.fsencode(stamp.path), str(stamp.inode)  # inodes may exceed SQLite's 63 bits
    file = path, stamp.position, stamp.size, stamp.mtime_ns, inode, stamp.ctime_ns
    picture = known.pixels.raw, known.width, known.height
    hasher = FieldHasher(_CHECK)
    hasher.add(file)
    hasher.add(picture)
    return (*file, *picture, hasher.digest()[:16])


def _note_digest(name: str, text: str) -> bytes:
    hasher = FieldHasher(_CHECK)
    hasher.add((name, text))
    return hasher.digest()[:16]
