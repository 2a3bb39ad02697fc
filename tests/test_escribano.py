"""Recordings in Escribano's database: every version of it, beside a writer, and with nonsense in it."""

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from escribano_samples import (
    PLANNED,
    VERSIONS,
    add_frame,
    add_observation,
    add_recording,
    change,
    dump,
    new_database,
    sample,
)
from hypothesis import given
from hypothesis import strategies as st
from other_environ import list_recordings, open_recording
from screens import noise, python
from videos import make_video, number_of

from cache.base.errors import InputError
from sources import escribano_db
from sources.escribano import Place, split_place
from sources.recording import Frame, FrameChoice, Recording, RecordingListing

NOON_S = 1_795_262_400.0  # 2026-11-21 12:00 UTC


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    _local_time(monkeypatch, "UTC")


def _local_time(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()


def _environ(database: Path) -> Mapping[str, str]:
    return {"ESCRIBANO_DB": str(database)}


def _listed(database: Path) -> list[RecordingListing]:
    return list_recordings(_environ(database), pytest.fail)


def _open(database: Path, selector: str = "latest", choice: FrameChoice | None = None) -> Recording:
    return open_recording(selector, choice, _environ(database))


def _problem(frame: Frame) -> str:
    with pytest.raises(InputError) as caught:
        frame.read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _said(database: Path) -> list[str]:
    lines: list[str] = []
    assert list_recordings(_environ(database), lines.append) == []
    return lines


# --- versions


@pytest.mark.parametrize("version", [PLANNED, *VERSIONS])
def test_a_database_of_every_version_is_listed_and_read_and_not_changed(version: int, tmp_path: Path) -> None:
    database = sample(tmp_path / "o'brien's \"db\" ü#1", version)
    before = dump(database)
    (found,) = _listed(database)
    assert (found.name, found.kind, found.num_frames, found.length_s) == ("rec", "escribano", 3, 600.0)
    assert found.captured_at == "2026-11-20T09:00:00.000+00:00"
    recording = _open(database)
    assert [frame.timestamp_s for frame in recording.frames()] == [0.0, 10.0, 20.0]
    assert recording.frames()[1].read().size == noise(1).size
    assert recording.frames()[1].source.endswith("frame_1.jpg#observation=obs-1")
    assert dump(database) == before


def test_the_usual_place_is_looked_at_without_being_told(tmp_path: Path) -> None:
    sample(tmp_path / ".escribano")
    assert [found.name for found in list_recordings({"HOME": str(tmp_path)}, pytest.fail)] == ["rec"]
    assert list_recordings({"HOME": str(tmp_path / "other")}, pytest.fail) == []
    assert list_recordings({}, pytest.fail) == []


def test_a_recording_is_opened_by_id_by_name_by_place_and_by_its_database(tmp_path: Path) -> None:
    database = sample(tmp_path)
    (found,) = _listed(database)
    for selector in (found.id, found.id[:6], "rec", str(found.path), str(database)):
        assert _open(database, selector).info.id == found.id
    assert _open(database, "rec", FrameChoice(limit=2)).info.num_frames == 2


# --- the recorder's frames


def test_the_recorders_frames_are_one_recording_for_each_local_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = new_database(tmp_path / "escribano.db")
    noise(1).save(tmp_path / "1.jpg")
    for hour in (0, 3, 11, 13):  # UTC 12, 15, 23 and 01 the next day
        add_frame(database, f"f{hour}", NOON_S + hour * 3600, str(tmp_path / "1.jpg"), "ff00")
    days = [(found.name, found.num_frames, found.length_s) for found in _listed(database)]
    assert days == [("2026-11-22", 1, 0.0), ("2026-11-21", 3, 11 * 3600.0)]
    _local_time(monkeypatch, "Asia/Kathmandu")  # 5:45 ahead
    days = [(found.name, found.num_frames, found.length_s) for found in _listed(database)]
    assert days == [("2026-11-22", 2, 2 * 3600.0), ("2026-11-21", 2, 3 * 3600.0)]
    frames = _open(database, "2026-11-22").frames()
    assert [frame.timestamp_s for frame in frames] == [0.0, 7200.0]
    assert [frame.source.partition("#")[2] for frame in frames] == ["frame=f11", "frame=f13"]
    assert frames[0].perceptual_hash == 0xFF00


def test_a_day_without_frames_and_a_day_that_is_none_are_refused(tmp_path: Path) -> None:
    database = new_database(tmp_path / "escribano.db")
    for day in ("2026-11-21", "2026-99-99"):
        with pytest.raises(InputError, match=day):
            _open(database, f"{database}#day={day}")


def test_frames_without_a_time_are_of_no_day_and_that_is_said(tmp_path: Path) -> None:
    database = new_database(tmp_path / "escribano.db")
    for number, timestamp in enumerate((-5.0, "soon", 1e999, NOON_S * 1000)):
        add_frame(database, str(number), timestamp, "/tmp/1.jpg")
    assert _said(database) == [f"{database}: 4 frames have no time in Unix seconds, so they are of no day"]


# --- beside other programs


def test_a_database_that_another_process_writes_to_is_read_in_one_state(tmp_path: Path) -> None:
    database = sample(tmp_path)
    program = (
        "import sqlite3, sys, itertools, time\n"
        "c = sqlite3.connect(sys.argv[1], timeout=30)\n"
        "c.execute('PRAGMA wal_autocheckpoint = 3')\n"
        "for n in itertools.count():\n"
        "    with c:\n"
        "        for part in 'ab':\n"
        '            c.execute("INSERT INTO observations (id, recording_id, type, timestamp, image_path)"\n'
        "                \" VALUES (?, 'rec', 'visual', ?, ?)\", (f'{n}{part}', n % 500, sys.argv[2]))\n"
        "    print(n, flush=True)\n"
        "    time.sleep(0.005)\n"  # or the table grows faster than it is read
    )
    writer = python(program, database, tmp_path / "frame_0.jpg")
    try:
        assert writer.stdout is not None
        counts = []
        for _ in range(20):
            writer.stdout.readline()
            counts += [_listed(database)[0].num_frames or 0, len(_open(database).frames())]
    finally:
        writer.kill()
        writer.communicate()
    assert counts == sorted(counts)
    assert {count % 2 for count in counts} == {1}  # the writer adds two at once to three
    assert counts[-1] > counts[0]


def test_a_writer_that_holds_a_transaction_open_does_not_stop_readers(tmp_path: Path) -> None:
    database = sample(tmp_path)
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM observations")
        assert len(_open(database).frames()) == 3


def test_a_database_that_is_locked_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(escribano_db, "BUSY_TIMEOUT_S", 0.1)
    database = sample(tmp_path)
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        other.execute("DELETE FROM frames")
        assert "locked by another program for more than 0.1 s" in _said(database)[0]


def test_a_database_that_is_replaced_while_it_is_listed_is_read_as_it_was(tmp_path: Path) -> None:
    database, other = sample(tmp_path / "a"), sample(tmp_path / "b", num_frames=1)
    with escribano_db.reading(database) as connection:
        assert list(escribano_db.rows(connection, "SELECT COUNT(*) FROM observations")) == [(4,)]
        other.replace(database)
        assert list(escribano_db.rows(connection, "SELECT COUNT(*) FROM observations")) == [(4,)]
    assert _listed(database)[0].num_frames == 1


def test_a_recording_that_is_deleted_after_it_was_listed_is_missed(tmp_path: Path) -> None:
    database = sample(tmp_path)
    place = str(_listed(database)[0].path)
    for table in ("observations", "recordings"):
        change(database, f"DELETE FROM {table}")
    with pytest.raises(InputError, match="no recording 'rec' in it"):
        _open(database, place)


def _as_nobody(database: Path) -> tuple[int, str]:
    """List a database in a process that may not write to its folder."""
    program = (
        "import os, sys\n"
        "from sources.recordings import list_recordings\n"
        "import sources.escribano, sqlite3\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "os.environ['ESCRIBANO_DB'] = sys.argv[1]\n"
        "print([f.num_frames for f in list_recordings(print)])\n"
    )
    process = python(program, database)
    out, err = process.communicate(timeout=60)
    return process.returncode, out.strip() + err


@pytest.mark.parametrize("holds_back", [False, True])
def test_a_database_in_a_folder_that_cannot_be_written_is_read_with_its_wal(
    holds_back: bool, tmp_path: Path
) -> None:
    database = sample(tmp_path)
    with tempfile.TemporaryDirectory() as name, closing(sqlite3.connect(database)) as other:
        if holds_back:  # its last rows are in the WAL alone
            other.execute("PRAGMA wal_autocheckpoint = 0")
            other.execute(
                "INSERT INTO observations (id, recording_id, type, timestamp) "
                "VALUES ('x', 'rec', 'visual', 1)"
            )
            other.commit()
        folder = Path(name)
        for suffix in ("", "-wal") if holds_back else ("",):
            shutil.copy(f"{database}{suffix}", folder / f"escribano.db{suffix}")
            (folder / f"escribano.db{suffix}").chmod(0o644)
        folder.chmod(0o555)
        code, out = _as_nobody(folder / "escribano.db")
        folder.chmod(0o755)
        assert (code, out) == (0, "[4]" if holds_back else "[3]")
        assert len(list(folder.iterdir())) == 1 + holds_back


def test_a_wal_that_cannot_be_copied_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = sample(tmp_path)
    Path(f"{database}-wal").write_bytes(b"rows that nobody can read")
    refused = sqlite3.OperationalError("unable to open database file")
    monkeypatch.setattr(escribano_db, "_lacks_shared_memory", lambda *_: True)
    monkeypatch.setattr(escribano_db, "_connect", lambda *_: _Refusing(refused))
    monkeypatch.setattr("shutil.copyfile", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    assert _said(database) == [f"{database}: cannot be read (No space left)"]


class _Refusing:
    """A connection that cannot be used."""

    def __init__(self, error: sqlite3.Error) -> None:
        self._error = error

    def execute(self, query: str) -> None:
        raise self._error

    def close(self) -> None:
        """Do nothing."""


# --- what is no database


def test_what_is_no_database_is_said_in_one_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    place = tmp_path / "recordings"
    (place / "monday").mkdir(parents=True)
    noise(1).save(place / "monday" / "1.png")
    for database, said in (
        (tmp_path / "gone.db", "cannot be read (No such file or directory)"),
        (tmp_path, "not a file"),
        (place / "monday" / "1.png", "not a SQLite database"),
    ):
        lines: list[str] = []
        environ = {"ESCRIBANO_DB": str(database), "SEEONCE_RECORDINGS": str(place)}
        assert [found.name for found in list_recordings(environ, lines.append)] == ["monday"]
        assert len(lines) == 1
        assert said in lines[0]


def test_a_database_without_its_wal_or_of_another_program_is_named_so(tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(tmp_path / "whole.db")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE recordings (id TEXT)")
        shutil.copy(tmp_path / "whole.db", copy)  # its table is in the WAL alone
    assert "not Escribano's, or copied without its -wal file" in _said(copy)[0]


@pytest.mark.parametrize("position", [20, 4096 + 50, 3 * 4096])
def test_a_damaged_database_is_an_error_in_one_line_or_nothing_at_all(position: int, tmp_path: Path) -> None:
    database = sample(tmp_path)
    raw = bytearray(database.read_bytes())
    raw[position : position + 400] = os.urandom(400)
    database.write_bytes(raw)
    lines: list[str] = []
    list_recordings(_environ(database), lines.append)
    assert all("\n" not in line for line in lines)


def test_tables_without_the_columns_are_no_recordings(tmp_path: Path) -> None:
    database = tmp_path / "odd.db"
    change(database, "CREATE TABLE recordings (id TEXT)")
    change(database, "CREATE TABLE observations (other TEXT)")
    change(database, "CREATE VIEW frames AS SELECT 1 AS id, 2 AS timestamp")
    change(database, "INSERT INTO recordings VALUES ('rec')")
    lines: list[str] = []
    assert list_recordings(_environ(database), lines.append) == []


# --- rows that make no sense


@pytest.mark.parametrize(
    ("timestamp", "said"),
    [
        (-1.0, "-1.0 is no time in seconds"),
        ("soon", "'soon' is no time in seconds"),
        (b"\xff", "is no time in seconds"),
        (1e999, "inf lies far beyond"),
        (590_000.0, "590000.0 lies far beyond the recording's end (milliseconds?)"),
    ],
)
def test_a_time_that_is_none_costs_its_row_alone(timestamp: object, said: str, tmp_path: Path) -> None:
    database = sample(tmp_path)
    add_observation(database, "bad", timestamp, str(tmp_path / "frame_0.jpg"))
    frames = _open(database).frames()
    assert len(frames) == 4
    (bad,) = (frame for frame in frames if frame.source == "#observation=bad")
    assert said in _problem(bad)
    assert "observation bad: " in _problem(bad)
    assert sum(frame.read().size == noise(0).size for frame in frames if frame is not bad) == 3


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (None, "names no file"),
        (b"/tmp/a.png", "names no file"),
        ("", "names no file"),
        ("https://example.org/a.png", "an address, not a file"),
        ("file:///etc/hostname", "an address, not a file"),
        ("frames/a.png", "not an absolute path"),
        ("/etc/hostname", "outside your home"),
        ("/dev/zero", "outside your home"),
        ("/proc/self/environ", "outside your home"),
        ("/tmp/../etc/hostname", "outside your home"),
        ("/tmp/a\0b.png", "it holds a NUL"),
        ("/tmp/no such \udcff picture.png", "No such file"),
        ("/tmp/" + "x" * 5000, "File name too long"),
        ("$(touch /tmp/executed)", "not an absolute path"),
    ],
)
def test_an_image_path_that_is_none_of_the_users_costs_its_row_alone(
    image: object, said: str, tmp_path: Path
) -> None:
    database = sample(tmp_path)
    stored = image.encode("utf-8", "surrogateescape") if isinstance(image, str) else image
    add_observation(database, "bad", 15, None)
    kind = "TEXT" if isinstance(image, str) else "BLOB"
    change(database, f"UPDATE observations SET image_path = CAST(? AS {kind}) WHERE id = 'bad'", stored)
    frames = _open(database).frames()
    assert [frame.timestamp_s for frame in frames] == [0.0, 10.0, 15.0, 20.0]
    assert said in _problem(frames[2])
    assert frames[3].read().size == noise(2).size


def test_links_out_of_the_users_folders_devices_and_folders_are_not_read(tmp_path: Path) -> None:
    database = sample(tmp_path)
    (tmp_path / "link.png").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("link", "pipe", "folder"):
        add_observation(database, name, 30, str(tmp_path / f"{name}.png"))
    problems = [_problem(frame) for frame in _open(database, "rec").frames()[3:]]
    said = ("outside your home", "not a file", "not a file")
    assert all(words in line for words, line in zip(said, problems, strict=True))


def test_observations_out_of_order_and_at_equal_times_come_in_order(tmp_path: Path) -> None:
    database = sample(tmp_path)
    image = str(tmp_path / "frame_0.jpg")
    for id_, timestamp in (("late", 25), ("early", 5), ("z", 10), ("a", 10)):
        add_observation(database, id_, timestamp, image)
    named = [frame.source.rpartition("=")[2] for frame in _open(database).frames()]
    assert named == ["obs-0", "early", "obs-1", "z", "a", "obs-2", "late"]
    assert len({frame.source for frame in _open(database).frames()}) == 7


def test_a_recording_whose_row_is_gone_or_whose_date_is_none_is_listed_last(tmp_path: Path) -> None:
    database = sample(tmp_path)
    add_recording(database, "undated", "last tuesday", "long")
    add_observation(database, "u", 5, str(tmp_path / "frame_0.jpg"), "undated")
    add_observation(database, "o", 7, str(tmp_path / "frame_0.jpg"), "gone")
    found = [(found.name, found.captured_at, found.length_s) for found in _listed(database)]
    assert found[0][0] == "rec"
    assert sorted(found[1:]) == [("gone", "", 7.0), ("undated", "", 5.0)]


def test_ids_of_any_text_are_told_apart(tmp_path: Path) -> None:
    database = new_database(tmp_path / "escribano.db")
    names = ["../../etc", "a/b#day=1", "ünï 录", "'; DROP TABLE recordings; --", "x" * 500, "."]
    for number, name in enumerate(names):
        add_recording(database, name, f"2026-11-2{number}")
        noise(number).save(tmp_path / f"{number}.png")
        add_observation(database, name, 0, str(tmp_path / f"{number}.png"), name)
    listed = _listed(database)
    assert len({found.id for found in listed}) == len(names)
    for found in listed:
        recording = _open(database, str(found.path))
        assert recording.info.id == found.id
        assert len(recording.frames()) == 1


@given(st.text(min_size=1, max_size=40), st.sampled_from(["recording", "day"]))
def test_every_id_survives_the_way_into_a_path_and_back(id_: str, kind: str) -> None:
    place = Place(Path("/a #day=1/escribano.db"), kind, id_)
    assert split_place(str(place)) == place
    assert split_place(str(Path(str(place)))) == place


def test_recordings_whose_frames_are_gone_are_listed_but_not_the_latest(tmp_path: Path) -> None:
    database = sample(tmp_path)
    add_recording(database, "newer", "2026-11-21")
    add_observation(database, "n", 0, "/tmp/gone.jpg", "newer")
    assert [(found.name, found.is_there) for found in _listed(database)] == [("newer", False), ("rec", True)]
    assert _open(database).info.name == "rec"


def test_the_row_that_stands_for_no_recording_is_none_even_with_observations(tmp_path: Path) -> None:
    database = sample(tmp_path)
    change(database, "UPDATE recordings SET captured_at = '2026-11-21 09:00:00' WHERE id = '__recorder__'")
    add_observation(database, "o", NOON_S, str(tmp_path / "frame_0.jpg"), "__recorder__")
    assert [listing.name for listing in _listed(database)] == ["rec"]


def test_a_recording_of_which_one_image_in_the_middle_is_left_is_not_gone(tmp_path: Path) -> None:
    database = sample(tmp_path)
    (tmp_path / "frame_0.jpg").unlink()
    (tmp_path / "frame_2.jpg").unlink()
    assert [listing.is_there for listing in _listed(database)] == [True]
    change(database, "UPDATE observations SET timestamp = 'never' WHERE id = 'obs-1'")
    assert [listing.is_there for listing in _listed(database)] == [False]


# --- images that are gone


@pytest.fixture
def filmed(tmp_path: Path) -> Path:
    """A database whose recording has a video of ten pictures a second, from its beginning on."""
    database = sample(tmp_path)
    video = make_video(tmp_path / "video of 'rec'.mp4", range(0, 26_000, 100))
    change(database, "UPDATE recordings SET video_path = ? WHERE id = 'rec'", str(video))
    return database


def test_images_that_are_gone_are_read_from_the_video_at_their_times(filmed: Path) -> None:
    for index in (0, 2):
        (filmed.parent / f"frame_{index}.jpg").unlink()
    for id_, timestamp in (("between", 10.04), ("same", 20.0), ("last", 25.9), ("behind", 26.5)):
        add_observation(filmed, id_, timestamp, None)
    recording = _open(filmed, "rec")
    *frames, behind = recording.frames()
    assert [frame.timestamp_s for frame in frames] == [0.0, 10.0, 10.04, 20.0, 20.0, 25.9]
    shown = [number_of(np.asarray(frame.read())) for frame in frames if frame.index != 1]
    assert shown == [0, 100, 200, 200, 259]
    assert frames[1].read().size == noise(1).size
    assert frames[3].source.endswith("video of 'rec'.mp4#pts=320000&observation=obs-2")
    assert "ends before that moment" in _problem(behind)
    assert "6 images cannot be read; " in recording.remarks[0]
    assert recording.max_readers == 1
    recording.close()


def test_two_recordings_of_one_video_are_two_recordings(filmed: Path) -> None:
    add_recording(filmed, "twin", "2026-11-19", video=str(filmed.parent / "video of 'rec'.mp4"))
    add_observation(filmed, "t", 5, "/tmp/gone.jpg", "twin")
    assert [found.name for found in _listed(filmed)] == ["rec", "twin"]
    (frame,) = _open(filmed, "twin").frames()
    assert number_of(np.asarray(frame.read())) == 50


def test_a_recording_that_escribano_has_not_looked_at_is_its_video(filmed: Path) -> None:
    change(filmed, "DELETE FROM observations")
    recording = _open(filmed, "rec", FrameChoice(every_s=10))
    assert [frame.timestamp_s for frame in recording.frames()] == [0.0, 10.0, 20.0]
    assert (recording.info.kind, recording.info.name) == ("escribano", "rec")
    change(filmed, "UPDATE recordings SET video_path = '/etc/video.mp4'")
    assert _listed(filmed) == []
    with pytest.raises(InputError, match="no visual observations and no video that can be read"):
        _open(filmed, f"{filmed}#recording=rec")


def test_without_images_and_video_every_row_says_so_and_the_video_is_named_once(filmed: Path) -> None:
    for file in filmed.parent.glob("*.jpg"):
        file.unlink()
    next(filmed.parent.glob("*.mp4")).write_bytes(b"no video")
    recording = _open(filmed, f"{filmed}#recording=rec")
    assert len(recording.remarks) == 1
    assert "nor the video instead" in recording.remarks[0]
    assert all("No such file" in _problem(frame) for frame in recording.frames())


def test_a_video_with_a_broken_tail_says_so_where_it_stands_in_for_images(filmed: Path) -> None:
    for file in filmed.parent.glob("*.jpg"):
        file.unlink()
    [video] = filmed.parent.glob("*.mp4")
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    first, *_, last = _open(filmed, "rec").frames()
    assert number_of(np.asarray(first.read())) == 0
    assert "breaks off" in _problem(last)


# --- many


def test_thousands_of_observations_are_listed_in_a_few_queries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = sample(tmp_path)
    with closing(sqlite3.connect(database)) as other, other:
        other.execute("PRAGMA synchronous = OFF")
        other.executemany(
            "INSERT INTO observations (id, recording_id, type, timestamp, image_path, embedding) "
            "VALUES (?, 'rec', 'visual', ?, ?, zeroblob(400))",
            [(str(n), n / 20, str(tmp_path / "frame_0.jpg")) for n in range(3_000)],
        )
    queries: list[str] = []
    connect = escribano_db._connect

    def traced(database: Path, mode: str) -> sqlite3.Connection:
        connection = connect(database, mode)
        connection.set_trace_callback(queries.append)
        return connection

    monkeypatch.setattr(escribano_db, "_connect", traced)
    started = time.perf_counter()
    assert _listed(database)[0].num_frames == 3_003
    print(f"3,003 observations listed in {time.perf_counter() - started:.3f} s")
    selects = [query for query in queries if query.startswith("SELECT") and "FROM observations" in query]
    assert len(selects) == 1
    queries.clear()
    assert len(_open(database, f"{database}#recording=rec").frames()) == 3_003
    selects = [query for query in queries if query.startswith("SELECT") and "schema" not in query]
    assert [query.split(" FROM ")[1].split()[0] for query in selects] == ["recordings", "observations"]


# --- as a command


def test_the_newest_of_escribano_is_encoded_and_verified_without_being_named(
    run: Run, home: Path, plain: Path, tmp_path: Path
) -> None:
    database = sample(tmp_path / "user" / ".escribano")
    add_observation(database, "bad", 30, "/etc/hostname")
    ended = run("seeonce encode --json --model", plain)
    assert (ended.code, ended.json["num_encoded"], len(ended.json["skipped"])) == (3, 3, 1)
    assert "observation bad: /etc/hostname: outside your home" in ended.err
    listed = run("seeonce recordings --json").json
    assert [(found["kind"], found["encodings"][0]["num_encoded"]) for found in listed] == [("escribano", 3)]
    assert run("verify-cache --level embeddings --model", plain).code == 0
    again = run("seeonce encode --json --model", plain, ended.json["recording"])
    assert again.json["num_hits"] == 3
