"""The frames that were chosen of a recording's videos, and their memory, so that none is looked at twice.

Owns choosing (every so many seconds, scene changes, a limit) and remembering a choice that needed
decoding. Does not own the moments (``sampling``) or the measure (``scene_change``).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cache.errors import InputError
from sources.container import read_header
from sources.decoder import Player
from sources.picture_times import Keyframe, Pick
from sources.sampling import Chosen, Timeline, Track
from sources.scene_change import changes
from sources.source import FrameChoice, Looked

_NOTE = "chosen pictures, format 1"


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen pictures in order, and what is missing of their videos."""

    chosen: tuple[Chosen, ...]
    remarks: tuple[str, ...]


def select(tracks: Sequence[Track], choice: FrameChoice, player: Player) -> Selection:
    """Choose the pictures; those that had to be decoded for it are remembered in its ``notes``.

    Raises:
        InputError: None of the videos has a picture.
    """
    notes = choice.notes
    if choice.scene_change is None or notes is None:
        return _select(tracks, choice, player)
    name = _note_name(tracks, choice)
    known = _from_note(notes.get_note(name))
    if known is None:
        known = _select(tracks, choice, player)
        if not any(track.stamp.racy for track in tracks):
            notes.put_note(name, _to_note(known))
    return known


def _select(tracks: Sequence[Track], choice: FrameChoice, player: Player) -> Selection:
    timeline = Timeline(tracks, choice.every_s)
    pictures = iter(timeline)
    if choice.scene_change is not None:
        pictures = _told(pictures, tracks, choice.looked) if choice.looked else pictures
        pictures = changes(
            pictures, lambda one: player.look(tracks[one.track].decoder, one.pick), choice.scene_change
        )
    chosen = tuple(islice(pictures, choice.limit))
    if not chosen:
        raise InputError(timeline.remarks[0] if timeline.remarks else "a recording without a video")
    return Selection(chosen, tuple(timeline.remarks))


def _told(pictures: Iterator[Chosen], tracks: Sequence[Track], looked: Looked) -> Iterator[Chosen]:
    """Tell how far the look at pictures is, each time when the next one is asked for."""
    length_s = float(sum(read_header(Path(track.stamp.path)).length_s or 0 for track in tracks))
    for picture in pictures:
        yield picture
        looked(picture.timestamp_s, length_s)
    looked(length_s, length_s)


def _note_name(tracks: Sequence[Track], choice: FrameChoice) -> str:
    stamps = [
        (stamp.path, stamp.size, stamp.mtime_ns, stamp.inode, stamp.ctime_ns)
        for stamp in (track.stamp for track in tracks)
    ]
    return f"{_NOTE}: {json.dumps([choice.every_s, choice.limit, choice.scene_change, stamps])}"


def _to_note(selection: Selection) -> str:
    rows = [
        [one.track, one.timestamp_s, one.pick.pts, one.pick.at, *one.pick.key, one.pick.before_key]
        for one in selection.chosen
    ]
    return json.dumps([rows, selection.remarks])


def _from_note(text: str | None) -> Selection | None:
    """Read a note that ``_to_note`` wrote: the index has checked that it is unchanged."""
    if text is None:
        return None
    rows, remarks = json.loads(text)
    chosen = (
        Chosen(track, Pick(pts, at, Keyframe(key_pts, seek_to), before_key), timestamp_s)
        for track, timestamp_s, pts, at, key_pts, seek_to, before_key in rows
    )
    return Selection(tuple(chosen), tuple(remarks))
