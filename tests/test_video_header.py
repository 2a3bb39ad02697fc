"""What a listing knows of a video: its date and length, from the header alone, as when it is opened."""

import os
import random
import struct
from fractions import Fraction
from pathlib import Path

import av
import pytest
from other_environ import list_recordings
from videos import add_stream, make_video, picture

from cache.base.errors import InputError
from sources import container
from sources.container import read_header, read_movie_header
from sources.recording import FrameChoice
from sources.video import open_video

MADE = "2026-03-01T08:30:00.000000Z"
MADE_ISO = "2026-03-01T08:30:00.000+00:00"
FILE_S, FILE_ISO = 1_700_000_000, "2023-11-14T22:13:20.000+00:00"


def _dated(path: Path, made: str) -> Path:
    with av.open(str(path), "w") as output:
        output.metadata["creation_time"] = made
        stream = add_stream(output, "mpeg4")
        for number in range(3):
            shown = av.VideoFrame.from_ndarray(picture(number), "rgb24")
            shown.pts, shown.time_base = number * 1000, Fraction(1, 1000)
            output.mux(stream.encode(shown))
        output.mux(stream.encode(None))
    os.utime(path, (FILE_S, FILE_S))
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
@pytest.mark.parametrize(("made", "captured_at"), [(MADE, MADE_ISO), ("", FILE_ISO)])
def test_listing_and_opened_recording_agree_on_the_date(
    name: str, made: str, captured_at: str, tmp_path: Path
) -> None:
    video = _dated(tmp_path / name, made)
    [listing] = list_recordings({"SEEONCE_RECORDINGS": str(tmp_path)})
    assert listing.captured_at == captured_at == open_video(video, FrameChoice()).info.captured_at
    assert listing.length_s == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize("made", ["1904-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "1979-12-31T00:00:00Z"])
def test_a_clock_that_was_never_set_is_not_believed(made: str, tmp_path: Path) -> None:
    assert read_header(_dated(tmp_path / "a.mp4", made)).captured_at == FILE_ISO


def test_a_listing_opens_no_mp4_file_as_a_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_video(tmp_path / "a.mp4", range(0, 2000, 100))
    monkeypatch.setattr(container, "open_container", None)
    [listing] = list_recordings({"SEEONCE_RECORDINGS": str(tmp_path)})
    assert listing.length_s == pytest.approx(1.901)


def test_the_header_is_what_ffmpeg_reads(tmp_path: Path) -> None:
    video = _dated(tmp_path / "a.mp4", MADE)
    with av.open(str(video)) as opened:
        assert opened.metadata["creation_time"] == MADE
        length_s = Fraction(opened.duration or 0, 1_000_000)
    found = read_movie_header(video)
    assert found is not None
    assert found[1] == pytest.approx(length_s, abs=0.001)


def test_a_header_of_64_bits_behind_large_boxes_is_found(tmp_path: Path) -> None:
    times = struct.pack(">4sB3xQQIQ", b"mvhd", 1, 2_082_844_800 + FILE_S, 0, 1000, 90_500)
    header = struct.pack(">I", len(times) + 4) + times
    movie = struct.pack(">I4s", len(header) + 8, b"moov") + header
    (tmp_path / "a.mp4").write_bytes(struct.pack(">I4sQ", 1, b"mdat", 1016) + bytes(1000) + movie)
    found = read_movie_header(tmp_path / "a.mp4")
    assert found is not None
    assert found == (FILE_S, Fraction(905, 10))


@pytest.mark.parametrize("seed", range(20))
def test_no_header_makes_the_reader_fail_or_turn_in_circles(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    kinds = [b"moov", b"mvhd", b"mdat", b"free", chance.randbytes(4)]
    boxes = [
        struct.pack(">I4s", chance.choice([0, 1, 7, 8, 9, 40, 2**32 - 1]), chance.choice(kinds))
        + chance.randbytes(chance.choice([0, 8, 32]))
        for _ in range(50)
    ]
    (tmp_path / "a.mp4").write_bytes(b"".join(boxes))
    read_movie_header(tmp_path / "a.mp4")


def test_what_is_no_video_is_refused_by_its_header(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video\n")
    (tmp_path / "folder.mp4").mkdir()
    for name, said in [("text", "not a video"), ("folder", "not a file"), ("gone", "cannot be read")]:
        with pytest.raises(InputError, match=said):
            read_header(tmp_path / f"{name}.mp4")
