"""Recordings in Escribano's database, ``<database>#recording=<id>`` or ``<database>#day=2026-11-21``.

A frame is the image that a row names, else the picture of the recording's video at the row's time. A row
that cannot be read is a frame whose reading says why.
"""

import os
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote_from_bytes, unquote_to_bytes

from cache.base.errors import InputError
from cache.base.text import printable
from cache.manifest import RecordingInfo
from cache.pixel_index import FileStamp
from sources.escribano_db import (
    DAY,
    RECORDING,
    Group,
    Row,
    captured_at,
    find_group,
    is_database_name,
    list_groups,
    list_rows,
    reading,
)
from sources.recording import Frame, FrameChoice, Recording, RecordingListing, Say, id_of, resolve
from sources.video import MomentPictures, open_moments, open_video

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_TEMPORARY = ("/tmp", "/var/tmp", "/var/folders")  # noqa: S108 - looked under, never written
_MOUNTED = ("/Volumes", "/media", "/mnt", "/run/media")
KIND = "escribano"
_PLACE = re.compile(rf"(?P<database>.+)#(?P<kind>{RECORDING}|{DAY})=(?P<id>[^/#]+)")


@dataclass(frozen=True, slots=True)
class UsersFolders:
    """The folders under which a database may name files."""

    _roots: tuple[str, ...]
    _home: str
    _followed: dict[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, database: Path) -> "UsersFolders":
        """Give them for this user and a database."""
        home = os.environ.get("HOME", "")
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

    def has_file(self, path: object) -> bool:
        """Tell whether a database names a file that may be opened and is there."""
        try:
            return self.locate(path).is_file()
        except (InputError, OSError):
            return False

    def _real(self, path: str) -> str:
        """Follow links as ``os.path.realpath`` does; of the folder that thousands of images share once."""
        folder, name = os.path.split(path)
        if folder not in self._followed:
            self._followed[folder] = os.path.realpath(folder)
        place = os.path.join(self._followed[folder], name)  # noqa: PTH118
        follow = name in ("", ".", "..") or os.path.islink(place)  # noqa: PTH114 (never raises)
        return os.path.realpath(path) if follow else place


@dataclass(frozen=True, slots=True)
class Place:
    """A recording in a database: ``kind`` is ``recording`` or ``day``."""

    database: Path
    kind: str
    id: str

    def __str__(self) -> str:
        """Give it as the path that opens it again."""
        return f"{printable(self.database)}#{self.kind}={_quoted(self.id)}"


def listings(say: Say) -> Iterable[RecordingListing]:
    """List the recordings and the recorder's days; what is wrong with the database is said."""
    database = default_database()
    if database is None:
        return []
    try:
        return _listings(database, say)
    except InputError as error:
        say(str(error))
        return []


def holds(path: Path) -> bool:
    """Tell whether a path is a database, or names a recording in one."""
    return is_database_name(path) or (_PLACE.fullmatch(str(path)) is not None and not os.path.lexists(path))


def listing(path: Path) -> RecordingListing | None:  # noqa: ARG001
    """Describe nothing: a database is listed where it is named, as many recordings."""
    return None


def open_path(path: Path, choice: FrameChoice) -> Recording:
    """Open a recording in a database; of a database alone the newest that is there."""
    place = path
    if _PLACE.fullmatch(str(path)) is None:
        database = resolve(path)
        found = _listings(database, lambda _: None)
        there = [listing for listing in found if listing.is_there]
        if not there:
            raise InputError(f"{printable(path)}: no recording in it whose frames are there")
        place = max(there, key=lambda listing: listing.captured_at).path
    return open_escribano(split_place(str(place)), choice)


def split_place(path: str) -> Place:
    """Take apart the path of a recording in a database.

    Raises:
        InputError: it is not one.
    """
    match = _PLACE.fullmatch(path)
    if match is None:
        raise InputError(f"{path}: expected <database>#recording=<id> or <database>#day=2026-11-21")
    return Place(Path(match["database"]), match["kind"], os.fsdecode(unquote_to_bytes(match["id"])))


def default_database() -> Path | None:
    """Return the database that is looked at without being told, or None when there is none."""
    if chosen := os.environ.get("ESCRIBANO_DB", ""):
        return resolve(Path(chosen))
    home = os.environ.get("HOME", "")
    usual = Path(home) / ".escribano" / "escribano.db"
    there = home and os.path.isfile(usual)  # noqa: PTH113 (never raises)
    return resolve(usual) if there else None


def open_escribano(place: Place, choice: FrameChoice) -> Recording:
    """Open one recording, or one day of the recorder.

    Raises:
        InputError: the database cannot be read, or has no such recording.
    """
    database = place.database
    with reading(database) as connection:
        try:
            group = find_group(connection, place.kind, place.id)
        except ValueError as error:
            raise InputError(f"{printable(database)}: no day {printable(place.id)[:80]} ({error})") from error
        rows = list_rows(connection, group)
    if not rows and not group.video:
        raise InputError(
            f"{printable(database)}: no {place.kind} {printable(place.id)[:80]!r} in it (any more): "
            "see seeonce recordings"
        )
    folders = UsersFolders.of(database)
    if not rows:
        return _only_video(database, group, folders, choice)
    info = _info(database, group, len(rows[: choice.limit]), None, choice.limit)
    return _with_frames(info, rows[: choice.limit], group.video, folders)


def _listings(database: Path, say: Say) -> list[RecordingListing]:
    found, folders = [], UsersFolders.of(database)
    with reading(database) as connection:
        try:
            groups, num_untimed = list_groups(connection)
        except InputError as error:
            raise InputError(f"{printable(database)}: {error}") from error
        for group in groups:
            there = _is_there(connection, group, folders.has_file)
            if group.num_rows or there:  # a recording without frames and video is nothing to see
                found.append(_listing(database, group, is_there=there))
    if num_untimed:
        untimed = f"{num_untimed} frames have no time in Unix seconds, so they are of no day"
        say(f"{printable(database)}: {untimed}")
    return found


def _is_there(connection: sqlite3.Connection, group: Group, is_file: Callable[[object], bool]) -> bool:
    """Tell whether a frame can be read: by two images and the video, and by all when those are gone."""
    if any(map(is_file, (*group.images, group.video))):
        return True
    rows = list_rows(connection, group) if group.num_rows else []
    return any(row.problem is None and is_file(row.image) for row in rows)


def _listing(database: Path, group: Group, *, is_there: bool) -> RecordingListing:
    info = _info(database, group, group.num_rows, None, None)
    return RecordingListing.of(
        info, Path(info.path), group.length_s, group.num_rows or None, is_there=is_there
    )


def _info(
    database: Path, group: Group, num_frames: int, every_s: float | None, limit: int | None
) -> RecordingInfo:
    named = (os.fsencode(part) for part in (str(database), group.kind, group.id))
    return RecordingInfo(
        id=id_of(group.id, group.kind, b"\0".join(named)),
        name=printable(group.id)[:200],
        kind=KIND,
        path=str(Place(database, group.kind, group.id)),
        captured_at=captured_at(group),
        num_frames=num_frames,
        every_s=every_s,
        limit=limit,
    )


def _only_video(database: Path, group: Group, folders: UsersFolders, choice: FrameChoice) -> Recording:
    """Open the video of a recording that Escribano has not looked at yet: it has no observations."""
    try:
        video = open_video(folders.locate(group.video), choice)
    except InputError as error:
        raise InputError(
            f"{printable(database)}: recording {printable(group.id)[:80]} has no visual observations and no "
            f"video that can be read ({error})"
        ) from error
    info = _info(database, group, len(video.frames()), choice.every_s, choice.limit)
    return replace(video, info=replace(info, scene_change=choice.scene_change))


def _with_frames(info: RecordingInfo, rows: Sequence[Row], video: object, folders: UsersFolders) -> Recording:
    """Make frames of rows: from their images, else from the recording's video at their times."""
    frames: list[Frame | None] = []
    reasons: dict[int, str] = {}
    for index, row in enumerate(rows):
        try:
            frames.append(_of_image(index, row, folders))
        except InputError as error:
            frames.append(None)
            reasons[index] = str(error)
    lost = [index for index in reasons if rows[index].problem is None]
    pictures, remarks = _moments([rows[index].timestamp_s for index in lost], video, folders)
    for index, reason in reasons.items():
        frames[index] = _of_video(index, rows[index], reason, pictures if index in lost else None)
    there = tuple(frame for frame in frames if frame is not None)
    if pictures is None:
        return Recording(info, there, remarks=remarks)
    return Recording(info, there, 1, remarks, _close=pictures.close)


def _moments(
    moments_s: Sequence[float], video: object, folders: UsersFolders
) -> tuple[MomentPictures | None, tuple[str, ...]]:
    """Open the video for rows whose images are gone, and say that it stands in for them."""
    if not moments_s or not video:
        return None, ()
    try:
        place = folders.locate(video)
        pictures = open_moments(place, moments_s)
    except InputError as error:
        return None, (f"{len(moments_s)} images cannot be read, nor the video instead ({error})",)
    return pictures, (f"{len(moments_s)} images cannot be read; {printable(place)} is read at their times",)


def _of_image(index: int, row: Row, folders: UsersFolders) -> Frame:
    """Make a frame of the image that a row names; one glance at its file, which is not opened."""
    if row.problem is not None:
        raise InputError(row.problem)
    image = folders.locate(row.image)
    try:
        stamp = FileStamp.of(image)
    except OSError as error:
        raise InputError(f"{printable(image)[:200]}: {error.strerror}") from error
    source = f"{printable(image)}#{row.kind}={_quoted(row.id)}"
    return Frame(index, row.timestamp_s, source, stamp, perceptual_hash=row.perceptual_hash)


def _of_video(index: int, row: Row, reason: str, pictures: MomentPictures | None) -> Frame:
    name = f"{row.kind}={_quoted(row.id)}"
    try:
        if pictures is None:
            raise InputError(reason)
        frame = pictures.frame(index, row.timestamp_s, name)
    except InputError as error:
        return _unreadable(index, row, name, str(error))
    return replace(frame, perceptual_hash=row.perceptual_hash)


def _unreadable(index: int, row: Row, name: str, reason: str) -> Frame:
    """Give a frame whose reading says what is wrong with its row."""

    def refuse() -> NoReturn:
        raise InputError(f"{row.kind} {printable(row.id)[:80]}: {reason}")

    return Frame(index, row.timestamp_s, f"#{name}", FileStamp("", 0, 0, 0, name), refuse)


def _quoted(id_: str) -> str:
    return quote_from_bytes(os.fsencode(id_), safe="")
