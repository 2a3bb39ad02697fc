"""Cap bundles: one timeline of several segments, names and dates, and what is wrong with a bundle."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from other_environ import latest_recording, list_recordings, open_recording
from videos import make_video, number_of

from cache.base.errors import InputError
from sources import cap
from sources.cap import open_path as open_cap
from sources.recording import FrameChoice

TENTHS = range(0, 5000, 100)  # five seconds, a picture every tenth
CapJson = dict[str, object]


def _studio(*paths: str, **more: object) -> CapJson:
    """Give a meta file as Cap writes it for a studio recording of so many segments."""
    segments = [{"display": {"path": path, "fps": 30}, "mic": {"path": "content/mic.ogg"}} for path in paths]
    return {"pretty_name": "Cap 2026-11-20 at 10.32.05", "sharing": None, "segments": segments} | more


def _bundle(path: Path, meta: CapJson | str, *videos: str) -> Path:
    path.mkdir(parents=True)
    (path / "recording-meta.json").write_text(meta if isinstance(meta, str) else json.dumps(meta))
    for name in videos:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        make_video(path / name, TENTHS)
    return path


def _two(path: Path, *videos: str) -> Path:
    meta = _studio("content/segments/segment-0/display.mp4", "content/segments/segment-1/display.mp4")
    return _bundle(path, meta, *(f"content/segments/segment-{number}/display.mp4" for number in videos))


def _open(path: Path, every_s: float = 10.0, limit: int | None = None) -> list[tuple[float, int]]:
    frames = open_cap(path, FrameChoice(every_s, limit)).frames()
    return [(frame.timestamp_s, number_of(np.asarray(frame.read()))) for frame in frames]


def test_segments_make_one_timeline_and_the_steps_go_on_over_it(tmp_path: Path) -> None:
    bundle = _two(tmp_path / "a.cap", "0", "1")
    found = _open(bundle, every_s=2)
    lengths_s = [4.901, 4.901]  # as the containers say: x264 was told a thousand ticks a second
    assert found == [(0, 0), (2, 20), (4, 40)] + [
        (pytest.approx(lengths_s[0] + number / 10), number) for number in (10, 30)
    ]
    assert sum(lengths_s) == pytest.approx(cap.listing(bundle).length_s)  # type: ignore[union-attr]


def test_segments_of_different_size_keep_their_own(tmp_path: Path) -> None:
    bundle = _two(tmp_path / "a.cap", "0")
    (bundle / "content/segments/segment-1").mkdir()
    make_video(bundle / "content/segments/segment-1/display.mp4", TENTHS, size=(128, 96))
    sizes = [frame.read().size for frame in open_cap(bundle, FrameChoice(4.0)).frames()]
    assert sizes == [(64, 48), (64, 48), (128, 96)]


def test_the_limit_counts_over_all_segments(tmp_path: Path) -> None:
    bundle = _two(tmp_path / "a.cap", "0", "1")
    assert [number for _, number in _open(bundle, every_s=2, limit=4)] == [0, 20, 40, 10]


def test_pictures_are_found_in_any_order_over_segments(tmp_path: Path) -> None:
    frames = open_cap(_two(tmp_path / "a.cap", "0", "1"), FrameChoice(1.0)).frames()
    expected = [0, 10, 20, 30, 40, 0, 10, 20, 30, 40]
    for index in (9, 0, 5, 4, 6, 3, 3, 8):
        assert number_of(np.asarray(frames[index].read())) == expected[index]


def test_a_frame_names_its_segment_and_the_place_in_it_whatever_the_step(tmp_path: Path) -> None:
    bundle = _two(tmp_path / "a.cap", "0", "1")
    sparse = open_cap(bundle, FrameChoice(4.0)).frames()[-1]
    dense = open_cap(bundle, FrameChoice(0.5)).frames()
    assert "segment-1/display.mp4#pts=" in sparse.source
    assert (sparse.source, sparse.stamp) in [(frame.source, frame.stamp) for frame in dense]


def test_name_and_date_come_from_the_meta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    info = open_cap(_two(tmp_path / "a.cap", "0"), FrameChoice()).info
    assert (info.name, info.kind) == ("Cap 2026-11-20 at 10.32.05", "cap")
    assert info.captured_at == "2026-11-20T10:32:05.000+00:00"


@pytest.mark.parametrize(
    ("name", "captured_at"),
    [
        ("Built-in Display (Display) 2026-11-21 04:32 PM", "2026-11-21T16:32"),
        ("Cap 2026-11-21 at 12.05.09 AM", "2026-11-21T00:05:09"),
        ("Window 2026-11-21 23:59", "2026-11-21T23:59"),
    ],
)
def test_dates_in_names_are_read(
    name: str, captured_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    meta = _studio("display.mp4", pretty_name=name)
    info = open_cap(_bundle(tmp_path / "a.cap", meta, "display.mp4"), FrameChoice()).info
    assert info.captured_at.startswith(captured_at)


def test_the_clock_of_the_first_segment_wins_and_a_name_without_date_takes_the_videos(tmp_path: Path) -> None:
    meta = _studio("display.mp4", pretty_name="Sprint review 2026-13-45 at 99.99")
    bundle = _bundle(tmp_path / "a.cap", meta, "display.mp4")
    os.utime(bundle / "display.mp4", (1_700_000_000, 1_700_000_000))
    assert open_cap(bundle, FrameChoice()).info.captured_at.startswith("2023-11-14T22:13:20")
    meta["segments"] = [{"display": {"path": "display.mp4", "start_time": 1_795_257_125.5}}]
    (bundle / "recording-meta.json").write_text(json.dumps(meta))
    assert open_cap(bundle, FrameChoice()).info.captured_at == "2026-11-21T10:32:05.500+00:00"


@pytest.mark.parametrize(
    ("meta", "video"),
    [
        ({"pretty_name": "One", "display": {"path": "content/display.mp4"}}, "content/display.mp4"),
        (
            {"display": {"path": "content/display.mp4"}, "segments": [{"start": 0.0, "end": 4.9}]},
            "content/display.mp4",
        ),
        ({"display": {"path": "content\\display.mp4"}, "segments": []}, "content/display.mp4"),
        ({"pretty_name": "Instant", "fps": 30, "sample_rate": 48000}, "content/output.mp4"),
    ],
)
def test_bundles_of_one_video_in_every_shape_are_read(meta: CapJson, video: str, tmp_path: Path) -> None:
    assert _open(_bundle(tmp_path / "a.cap", meta, video), every_s=4) == [(0, 0), (4, 40)]


def test_a_missing_segment_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    recording = open_cap(_two(tmp_path / "a.cap", "1"), FrameChoice(4.0))
    assert [frame.timestamp_s for frame in recording.frames()] == [0, 4]
    [remark] = recording.remarks
    assert "segment 0 of a.cap is left out" in remark
    assert "segment-0/display.mp4: cannot be read" in remark


def test_a_segment_that_is_no_video_or_has_a_broken_tail_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    meta = _studio("0.mp4", "1.mp4", "2.mp4")
    bundle = _bundle(tmp_path / "a.cap", meta, "0.mp4", "2.mp4")
    (bundle / "1.mp4").write_text("no video\n")
    os.truncate(bundle / "0.mp4", (bundle / "0.mp4").stat().st_size * 2 // 3)
    recording = open_cap(bundle, FrameChoice(0.1))
    assert "1.mp4: not a video" in recording.remarks[0]
    assert "0.mp4: breaks off" in recording.remarks[1]
    assert recording.frames()[-1].timestamp_s == pytest.approx(4.901 + 4.9, abs=0.1)


def _outside(tmp_path: Path) -> Path:
    return make_video(tmp_path / "secret.mp4", [0, 100])


@pytest.mark.parametrize("path", ["../secret.mp4", "content/../../secret.mp4", "..\\secret.mp4", "link.mp4"])
def test_a_path_that_leaves_the_bundle_is_not_opened(path: str, tmp_path: Path) -> None:
    bundle = _bundle(tmp_path / "a.cap", _studio(path, "ok.mp4"), "ok.mp4")
    (bundle / "link.mp4").symlink_to(_outside(tmp_path))
    recording = open_cap(bundle, FrameChoice(4.0))
    assert {Path(frame.stamp.path).name for frame in recording.frames()} == {"ok.mp4"}
    assert "leaves the bundle; not opened" in recording.remarks[0]


def test_an_absolute_path_is_not_opened(tmp_path: Path) -> None:
    bundle = _bundle(tmp_path / "a.cap", _studio(str(_outside(tmp_path))))
    with pytest.raises(InputError, match="leaves the bundle; not opened"):
        open_cap(bundle, FrameChoice())


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ("", "not what Cap writes"),
        ("[1, 2]", r"not what Cap writes \(not an object\)"),
        ("{" * 100_000, "not what Cap writes"),
        ('{"a":' * 100_000, "not what Cap writes"),
        ("{}", "names no video of a screen"),
        ({"segments": [1, None, {"display": 5}, {"display": {"path": 7}}]}, "names no video of a screen"),
        (_studio("ok.mp4", status={"status": "InProgress"}), "still being recorded"),
        ({"pretty_name": "x", "recording": True}, "still being recorded"),
        ({"pretty_name": "x", "error": "disk full"}, "output.mp4: cannot be read"),
        (_studio(""), "names no video of a screen"),
        (_studio("."), "open it in Cap once"),
        (_studio("recording-meta.json"), "not named like a video"),
        (_studio("a\0.mp4"), "not opened"),
    ],
)
def test_a_bundle_that_cannot_be_read_says_why_in_one_line(
    meta: CapJson | str, said: str, tmp_path: Path
) -> None:
    bundle = _bundle(tmp_path / "a.cap", meta)
    with pytest.raises(InputError, match=said) as caught:
        open_cap(bundle, FrameChoice())
    assert "\n" not in str(caught.value)


def test_a_folder_without_meta_is_refused_when_it_is_called_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "a.cap").mkdir()
    with pytest.raises(InputError, match=r"recording-meta\.json: cannot be read"):
        open_recording(str(tmp_path / "a.cap"))


def test_bundles_are_listed_where_cap_keeps_them_and_the_bad_ones_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    place = tmp_path / "Library/Application Support/so.cap.desktop/recordings"
    _two(place / "good.cap", "0", "1")
    _bundle(place / "bad.cap", "{")
    said: list[str] = []
    [listing] = cap.listings(said.append)
    assert (listing.name, listing.kind) == ("Cap 2026-11-20 at 10.32.05", "cap")
    assert listing.length_s == pytest.approx(9.802)
    assert len(said) == 1
    assert "bad.cap" in said[0]


def test_cap_recordings_names_another_place_and_latest_finds_the_bundle_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    bundle = _two(tmp_path / "caps" / "good.cap", "0")
    environ = {"CAP_RECORDINGS": str(tmp_path / "caps")}
    latest = latest_recording(environ)
    assert latest is not None
    assert latest.path == bundle
    assert open_recording("latest", environ=environ).info.captured_at == latest.captured_at


def test_a_place_that_is_not_there_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    assert list_recordings({"CAP_RECORDINGS": str(tmp_path / "gone")}, said.append) == []
    assert "CAP_RECORDINGS" in said[0]


def test_a_folder_that_may_not_be_looked_into_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: object, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    (tmp_path / "secret").mkdir()
    real = os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, **more: (forbidden if "secret/" in str(path) else real)(path, **more)
    )
    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(InputError, match=r"secret: cannot list this folder \(Permission denied\)"):
        open_recording(str(tmp_path / "secret"))
    with pytest.raises(InputError, match=r"a\.png: cannot be read \(Permission denied\)"):
        open_recording(str(tmp_path / "secret" / "a.png"))
