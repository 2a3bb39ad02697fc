"""Which recordings a command line asks for: several, a list on standard input, all since a time."""

import io
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import Run
from screens import folder_of

from cache.base.errors import InputError
from cache.base.home import Home
from cache.manifest import list_manifests, read_manifest
from precompute.options import EncodeOptions, options_of_each
from sources.folder import open_list, split_paths
from sources.recordings import is_since, parse_since

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


class _Piped:
    """Standard input with bytes in it."""

    def __init__(self, raw: bytes) -> None:
        self.buffer = io.BytesIO(raw)


def _pipe(monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", _Piped(raw))


# --- words


@pytest.mark.parametrize(
    ("raw", "paths"),
    [
        (b"a.png\nb c.png\r\n\n", ["a.png", "b c.png"]),
        (b"a\nb.png\0c.png\0", ["a\nb.png", "c.png"]),
        (b"", []),
        (b"caf\xc3\xa9.png", ["café.png"]),
    ],
)
def test_a_list_is_split_by_line_or_where_there_are_nuls_by_those(raw: bytes, paths: list[str]) -> None:
    assert split_paths(raw) == paths


def test_piped_images_are_one_recording_and_other_paths_one_each() -> None:
    wanted = options_of_each(
        EncodeOptions(), ["monday", "-"], ["b.png", "tuesday.mp4", "a.JPG", "monday"], None
    )
    assert [(one.recording, one.images) for one in wanted] == [
        ("monday", ()),
        ("tuesday.mp4", ()),
        ("latest", (Path("b.png"), Path("a.JPG"))),
    ]


def test_no_word_at_all_means_the_latest() -> None:
    assert [one.recording for one in options_of_each(EncodeOptions(), [], [], None)] == ["latest"]


@pytest.mark.parametrize(
    ("selectors", "since", "said"), [(["-"], None, "pipe them in"), (["demo"], "2d", "leave --since out")]
)
def test_words_that_contradict_each_other_are_refused(
    selectors: list[str], since: str | None, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        options_of_each(EncodeOptions(), selectors, [], since)


@pytest.mark.parametrize(
    ("text", "ago"),
    [("2d", timedelta(2)), ("12 h", timedelta(hours=12)), ("1W", timedelta(7)), ("1.5m", timedelta(0, 90))],
)
def test_an_age_counts_back_from_now(text: str, ago: timedelta) -> None:
    assert parse_since(text, NOON) == NOON - ago


def test_a_date_is_taken_as_it_stands() -> None:
    assert parse_since("2026-11-20T10:00:00+02:00") == datetime(2026, 11, 20, 8, tzinfo=UTC)
    assert parse_since("2026-11-20") == datetime(2026, 11, 20).astimezone()


@pytest.mark.parametrize(
    "text", ["", "2", "d", "-2d", "9" * 30 + "w", "yesterday", "2026-13-01", "0001-01-01"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--since is .*expected an age as in 2d"):
        print(parse_since(text))


def test_a_recording_of_unknown_time_is_not_since_anything() -> None:
    assert not is_since("", NOON)
    assert is_since("2026-11-21T12:00:00.000+00:00", NOON)
    assert is_since("2026-11-21T12:00:00", NOON)


# --- lists of images


def test_a_list_keeps_its_order_unless_every_name_tells_a_time(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images")
    files = sorted(folder.iterdir(), reverse=True)
    assert [frame.timestamp_s for frame in open_list(files).frames()] == [0.0, 10.0, 20.0]
    files[0] = files[0].rename(folder / "last.png")
    listed = open_list([*files, files[0]])
    assert [Path(frame.source).name for frame in listed.frames()] == [
        "last.png",
        "001_10.0s.png",
        "000_0.0s.png",
    ]
    assert (listed.info.kind, listed.info.num_frames) == ("list", 3)


def test_a_part_of_a_list_keeps_the_times_that_the_whole_gave_it(
    run: Run, home: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(folder_of(tmp_path / "images").iterdir())
    files[2] = files[2].rename(tmp_path / "images" / "other.png")
    _pipe(monkeypatch, b"\n".join(map(os.fsencode, [files[1], files[0], files[1], files[2]])))
    ended = run("seeonce encode --json --limit 2 --model", plain, "-")
    manifest = read_manifest(list_manifests(Home(home))[0].path)
    assert [(Path(f.source).name, f.timestamp_s) for f in manifest.frames] == [
        ("001_10.0s.png", 0.0),
        ("000_0.0s.png", 1.0),
    ]
    assert run("verify-cache --level embeddings --model", plain, ended.json["recording"]).code == 0


def test_piped_images_are_encoded_verified_and_encoded_again_by_id(
    run: Run, home: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "images", 2)
    gone = folder / "000_5.0s.png"
    _pipe(monkeypatch, b"\0".join(os.fsencode(path) for path in [*sorted(folder.iterdir()), gone]))
    ended = run("seeonce encode --json --model", plain, "-")
    assert (ended.code, ended.json["num_encoded"], len(ended.json["skipped"])) == (3, 2, 1)
    recording = ended.json["recording"]
    assert run(f"verify-cache --level embeddings {recording} --model", plain).code == 0
    again = run(f"seeonce encode --json {recording} --model", plain)
    assert (again.json["recording"], again.json["num_hits"], again.json["num_frames"]) == (recording, 2, 3)
    assert [ref.recording.id for ref in list_manifests(Home(home))] == [recording]


# --- several


def test_several_recordings_are_encoded_and_a_bad_one_among_them_is_named(
    run: Run, home: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = folder_of(tmp_path / "first", 2), folder_of(tmp_path / "second", 1, first=10)
    _pipe(monkeypatch, os.fsencode(second))
    ended = run("seeonce encode --model", plain, first, tmp_path / "nowhere", "-")
    assert ended.code == 3
    assert "no recording" in ended.error
    assert [line.partition("-")[0] for line in ended.out.splitlines()] == ["first", "second"]
    assert len(list_manifests(Home(home))) == 2


def test_several_recordings_that_all_are_missing_are_an_error(run: Run, home: Path, plain: Path) -> None:
    assert run("seeonce encode --model", plain, "./a", "./b").code == 1


def test_several_recordings_load_the_encoder_once(
    run: Run, home: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from precompute import encoder as vision

    loads = []
    load = vision.VisionEncoder.__init__

    def counted(self: vision.VisionEncoder, *words: object) -> None:
        loads.append(words)
        load(self, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(vision.VisionEncoder, "__init__", counted)
    folders = [folder_of(tmp_path / name, 1, first=20 + index) for index, name in enumerate("ab")]
    assert run("seeonce encode --model", plain, *folders).code == 0
    assert len(loads) == 1


def test_since_takes_all_that_are_new_enough_and_the_listing_shows_the_same(
    run: Run, home: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "recordings"
    for name in ("old", "new", "newer"):
        folder_of(place / name, 1)
    os.utime(place / "old" / "000_0.0s.png", (1_700_000_000, 1_700_000_000))
    monkeypatch.setenv("SEEONCE_RECORDINGS", str(place))
    listed = [found["name"] for found in run("seeonce recordings --json --since 2d").json]
    assert sorted(listed) == ["new", "newer"]
    ended = run("seeonce encode --since 2d --model", plain)
    assert ended.code == 0
    assert sorted(ref.recording.name for ref in list_manifests(Home(home))) == ["new", "newer"]
    os.utime(place / "new" / "000_0.0s.png", (1_700_000_000, 1_700_000_000))
    os.utime(place / "newer" / "000_0.0s.png", (1_700_000_000, 1_700_000_000))
    assert "No recording since 2d" in run("seeonce encode --since 2d --model", plain).error
