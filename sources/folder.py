"""Recordings that are folders of pictures, single pictures, or lists of them.

Names may tell the time of a frame:

    0007_70.0s.png, frame-12.5s.jpg             seconds from the start, at the end of the name
    Screenshot 2026-11-21 at 9.05.01 AM.png     date and time, local or UTC, in the form of any
    截屏2026-11-21 下午4.12.30, 20261121_103205   of the usual tools and languages (name_times.py)
    1795257125.png, shot_1795257125532.png      Unix seconds (10 digits) or milliseconds (13)

Where one form fits half of the names or more, the order is by time, and pictures whose names have none
come last, at the last time. Otherwise the order is natural (frame2 before frame10) and a frame's timestamp
is its index.
"""

import os
import re
import time
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from stat import S_ISDIR

from blake3 import blake3

from cache.base.errors import InputError
from cache.base.text import printable
from cache.manifest import RecordingInfo
from cache.objects import check_address, is_address
from cache.pixel_index import FileStamp
from sources.container import VIDEO_SUFFIXES
from sources.in_bucket import NUM_READERS, list_folder, stamps_of
from sources.name_times import moments_of, order_is_unknown
from sources.recording import (
    Frame,
    FrameChoice,
    Recording,
    RecordingListing,
    Say,
    id_of,
    iso_utc,
    recording_id,
    resolve,
)

FOLDER, LIST, PICTURE = "folder", "list", "picture"
IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"
)  # fmt: skip
_OF_THE_SYSTEM = ("thumbs.db", "desktop.ini", "icon\r")
_NUM_NAMED = 3  # of each kind that is left out

_SECONDS = re.compile(r"(?:^|[^0-9.])(?<![0-9]m)(?<!min)([0-9]+(?:\.[0-9]+)?)s$")
_UNIX = re.compile(r"(?:^|[^0-9.])(?:([1-9][0-9]{12})|([1-9][0-9]{9}(?:\.[0-9]+)?))$")


def listings(say: Say) -> Iterable[RecordingListing]:  # noqa: ARG001
    """List nothing: folders have no place of their own."""
    return ()


def holds(path: Path) -> bool:
    """Tell whether a path is a folder, with images in it or without, or named like an image."""
    return os.path.isdir(path) or (is_image_path(str(path)) and os.path.exists(path))  # noqa: PTH110, PTH112


def listing(path: Path) -> RecordingListing | None:
    """Describe a folder with images; None for any other, and for an image, which is not listed."""
    try:
        recording = open_folder(path)
    except InputError:
        return None
    info = recording.info
    return RecordingListing.of(info, resolve(path), recording.length_s, info.num_frames)


def open_path(path: Path, choice: FrameChoice) -> Recording:
    """Open a folder or an image; ``InputError`` when it has no images or cannot be listed."""
    if not os.path.isdir(path):  # noqa: PTH112 (never raises)
        picture = resolve(path)
        place = printable(picture)
        files = [stamp_of(picture)]
        return _recording(
            files, choice.limit, recording_id(picture), printable(picture.name), kind=PICTURE, path=place
        )
    return open_folder(path, limit=choice.limit)


def open_folder(path: Path, *, limit: int | None = None) -> Recording:
    """List a folder's images as a recording, the first `limit` of them if given.

    Hidden files (AppleDouble `._x` among them) do not count; folders, videos and other files are
    remarked on. An image that cannot be read counts; reading it raises.

    Raises:
        InputError: No such folder, no permission, or no images in it.
    """
    folder = resolve(path)
    name = printable(folder.name or folder)
    files, left_out = _list_images(folder)
    return _folder(files, left_out, limit, recording_id(folder), name, printable(folder))


def open_address(address: str, *, limit: int | None = None) -> Recording:
    """List the pictures right below an address as a recording, as `open_folder` does; or open a single one.

    Raises:
        InputError: It cannot be listed, or no pictures are there.
    """
    name = printable(address.rpartition("/")[2])
    id_ = id_of(name, "recording", address.encode())
    if address.lower().endswith(IMAGE_SUFFIXES):
        return _recording(stamps_of([address]), limit, id_, name, kind=PICTURE, path=printable(address))
    found, folders = list_folder(address)
    named = [(file.path.rpartition("/")[2], file) for file in found]
    files = [file for name_, file in named if _is_image_name(name_)]
    others = [name_ for name_, _ in named if not _is_image_name(name_) and not name_.startswith(".")]
    left_out = tuple(sorted(map(printable, [*others, *folders]), key=natural_key))
    opened = _folder(files, left_out, limit, id_, name, printable(address))
    return replace(opened, max_readers=NUM_READERS)


def _folder(
    files: Sequence[FileStamp], left_out: tuple[str, ...], limit: int | None, id_: str, name: str, path: str
) -> Recording:
    if not files:
        expected = f"no images in this folder; expected files ending in {', '.join(IMAGE_SUFFIXES)}"
        raise InputError(f"{path}: {expected}{f'; {_named(left_out)}' if left_out else ''}")
    files = sorted(files, key=lambda file: _place_in_order(Path(file.path)))
    recording = _recording(files, limit, id_, name, kind=FOLDER, path=path)
    remarks = (f"{path}: {_named(left_out)}",) if left_out else ()
    return replace(recording, remarks=(*recording.remarks, *remarks), left_out=left_out)


def _recording(
    files: Sequence[FileStamp], limit: int | None, id_: str, name: str, *, kind: str, path: str
) -> Recording:
    """Make image files one recording: by time where names tell it, else in the order given."""
    names = [Path(file.path).stem for file in files]
    times, is_posix = _times_of_names(names)
    known = [time_s for time_s in times if time_s is not None]
    untimed = [
        printable(Path(file.path).name) for file, time_s in zip(files, times, strict=True) if time_s is None
    ]
    is_timed = _are_timed(times, kind)
    remarks = (_untimed_words(untimed, len(files), is_timed=is_timed),) if untimed and known else ()
    if untimed and order_is_unknown(names):
        words = "some names have dates whose day or month may come first, so no time is read from them"
        remarks = (f"{words}; write the year first, as in 2026-11-21 16.12.30", *remarks)
    if is_timed:
        files, times = _by_time(files, names, times)
        start_s = min(known) if is_posix else 0.0
        timestamps = [round((max(known) if time_s is None else time_s) - start_s, 6) for time_s in times]
    else:
        timestamps = [float(index) for index in range(len(files))]
    frames = tuple(
        Frame(index, timestamp_s, printable(file.path), file)
        for index, (file, timestamp_s) in enumerate(zip(files, timestamps, strict=True))
    )[:limit]
    changed_s = min((file.mtime_ns for file in files if file.mtime_ns), default=0) / 1e9
    info = RecordingInfo(
        id=id_,
        name=name,
        kind=kind,
        path=path,
        captured_at=iso_utc(min(known) if is_timed and is_posix else changed_s),
        num_frames=len(frames),
        every_s=None,
        limit=limit,
    )
    length_s = frames[-1].timestamp_s - frames[0].timestamp_s if is_timed and frames else None
    return Recording(info, frames, remarks=remarks, length_s=length_s)


def _are_timed(times: Sequence[float | None], kind: str) -> bool:
    """Tell whether times go before the order: one name decides nothing, a list has an order of its own."""
    num_untimed = times.count(None)
    return not num_untimed or (kind != LIST and len(times) - num_untimed >= max(2, num_untimed))


def has_times(kind: str, sources: Sequence[str]) -> bool:
    """Tell whether the times of a recording's frames are those of their pictures, and not their indexes."""
    names = [Path(source).stem for source in sources]
    return kind not in (FOLDER, LIST, PICTURE) or _are_timed(_times_of_names(names)[0], kind)


def _untimed_words(untimed: Sequence[str], num_files: int, *, is_timed: bool) -> str:
    named = ", ".join(untimed[:3]) + (", …" if len(untimed) > 3 else "")
    guess = "they come last, at the last known time" if is_timed else "all times are 0, 1, 2, …, in order"
    return f"{len(untimed)} of {num_files} names tell no time as the others do ({named}): {guess}"


def _by_time(
    files: Sequence[FileStamp], names: Sequence[str], times: Sequence[float | None]
) -> tuple[list[FileStamp], list[float | None]]:
    """Sort files by time, equal times by name; those without a time stay last, in the order given."""
    timed = [i for i, time_s in enumerate(times) if time_s is not None]
    timed.sort(key=lambda i: (times[i], natural_key(names[i])))
    order = [*timed, *(i for i, time_s in enumerate(times) if time_s is None)]
    return [files[i] for i in order], [times[i] for i in order]


def stamp_of(path: Path) -> FileStamp:
    """Stamp a file; what cannot be looked at is kept, to be reported when it is read."""
    try:
        return FileStamp.of(path)
    except (OSError, ValueError):
        return FileStamp(str(path), 0, 0, 0)


def _stamps_of(places: Sequence[str]) -> list[FileStamp]:
    """Stamp files and objects of buckets, as `stamp_of` does."""
    in_buckets = iter(stamps_of([place for place in places if is_address(place)]))
    return [next(in_buckets) if is_address(place) else stamp_of(Path(place)) for place in places]


def _list_images(folder: Path) -> tuple[list[FileStamp], tuple[str, ...]]:
    """Find the images, one `stat` each; and name what else there is."""
    files: list[FileStamp] = []
    others: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                file = _stamped(entry) if _is_image_name(entry.name) else None
                if file is not None:
                    files.append(file)
                elif not entry.name.startswith(".") and entry.name.lower() not in _OF_THE_SYSTEM:
                    others.append(printable(entry.name) + "/" * _is_folder(entry))
    except OSError as error:
        raise InputError(f"{printable(folder)}: cannot list this folder ({error.strerror})") from error
    return files, tuple(sorted(others, key=natural_key))


def _place_in_order(file: Path) -> tuple[object, ...]:
    return natural_key(file.stem), file.suffix  # so that "shot.png" comes before "shot 2.png"


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _named(left_out: Sequence[str]) -> str:
    """Say in one line what is left out: how many of each kind, and some of their names."""
    folders = [name for name in left_out if name.endswith("/")]
    videos = [name for name in left_out if name.lower().endswith(VIDEO_SUFFIXES)]
    files = [name for name in left_out if name not in folders and name not in videos]
    kinds = []
    for kind, names in (("folder", folders), ("video", videos), ("other file", files)):
        if names:
            more = ", …" if len(names) > _NUM_NAMED else ""
            kinds.append(
                f"{len(names)} {kind}{'s' * (len(names) > 1)} ({', '.join(names[:_NUM_NAMED])}{more})"
            )
    advice = "; encode folders and videos by their own paths" if folders or videos else ""
    return f"left out {'is' if len(left_out) == 1 else 'are'} {', '.join(kinds)}{advice}"


def _is_image_name(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def _stamped(entry: "os.DirEntry[str]") -> FileStamp | None:
    """Stamp an entry; None for a folder. What cannot be looked at is kept, to be reported when read."""
    taken_ns = time.time_ns()
    try:
        status = entry.stat()
    except OSError:
        return FileStamp(entry.path, 0, 0, 0)
    if S_ISDIR(status.st_mode):
        return None
    return FileStamp(
        path=entry.path,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        inode=status.st_ino,
        ctime_ns=status.st_ctime_ns,
        taken_ns=taken_ns,
    )


def natural_key(name: str) -> tuple[tuple[str | int, ...], str]:
    """Give the key by which frame2 sorts before frame10, whatever the case."""
    text = unicodedata.normalize("NFC", name).casefold()
    parts = re.split("([0-9]+)", text)  # text and digits in turn, so types never meet
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


def _times_of_names(names: Sequence[str]) -> tuple[list[float | None], bool]:
    """Read names by the form that fits most of them, and tell whether its seconds are POSIX seconds."""
    seconds, moments, unix = _seconds(names), moments_of(names), _unix(names)
    found = min(seconds, moments, unix, key=lambda times: times.count(None))
    return found, found is not seconds


def _seconds(names: Sequence[str]) -> list[float | None]:
    return [float(match[1]) if (match := _SECONDS.search(name)) else None for name in names]


def _unix(names: Sequence[str]) -> list[float | None]:
    found = [_UNIX.search(name) for name in names]
    return [match and (int(match[1]) / 1000 if match[1] else float(match[2])) for match in found]


def split_paths(raw: bytes) -> list[str]:
    """Split what was piped in: by NUL where there is one (``find -print0``), else by line."""
    parts = raw.split(b"\0") if b"\0" in raw else raw.splitlines()
    return [os.fsdecode(part) for part in parts if part.strip()]


def is_image_path(path: str) -> bool:
    """Tell whether a path is named like an image and is no folder."""
    return path.lower().endswith(IMAGE_SUFFIXES) and not os.path.isdir(path)  # noqa: PTH112 (never raises)


def open_list(paths: Sequence[Path | str], *, limit: int | None = None) -> Recording:
    """Make one recording of image files: by time where every name tells one, else as given.

    A file that is given twice is one frame. One that cannot be read counts; reading it raises. What is
    text and no path may be an address.

    Raises:
        InputError: an address is wrong, or its bucket cannot be read.
    """
    places = list(dict.fromkeys(map(_place_of, paths)))
    digest = blake3(b"\0".join(os.fsencode(place) for place in places)).hexdigest()[:8]
    name = f"{len(places)} listed images"
    return _recording(_stamps_of(places), limit, f"list-{digest}", name, kind=LIST, path="-")


def _place_of(path: Path | str) -> str:
    return check_address(path) if isinstance(path, str) and is_address(path) else str(resolve(Path(path)))


def reopen_list(info: RecordingInfo, frames: Sequence[tuple[int, float, str]]) -> Recording:
    """Open a list again, from the indexes, times and sources of its frames, in order.

    What a list was is known to its manifest alone: part of it might tell other times by its names.
    """
    stamps = _stamps_of([source for _, _, source in frames])
    reopened = tuple(Frame(*frame, stamp) for frame, stamp in zip(frames, stamps, strict=True))
    return Recording(replace(info, num_frames=len(reopened)), reopened)
