"""Remembered pixels: right or forgotten, never wrong."""

import os
import sqlite3
import stat
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from store_samples import new_store, pixels

from cache import pixel_index
from cache.base.home import Home
from cache.pixel_index import FileStamp, KnownPixels, PixelIndex

KNOWN = KnownPixels(pixels(1), 1920, 1080)


def old_file(tmp_path: Path, name: str = "frame.png", content: bytes = b"a picture") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    os.utime(path, (1_000_000, 1_000_000))
    return path


def settled(path: Path, position: str = "") -> FileStamp:
    """Stamp a file as if it had been there for an hour."""
    stamp = FileStamp.of(path, position)
    return replace(stamp, taken_ns=stamp.taken_ns + 3_600_000_000_000)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return new_store(tmp_path).home


def test_an_unchanged_file_is_known(tmp_path: Path, home: Home) -> None:
    path = old_file(tmp_path)
    with PixelIndex(home) as index:
        index.put(settled(path), KNOWN)
    with PixelIndex(home) as index:
        assert index.get(FileStamp.of(path)) == KNOWN


def test_positions_in_one_file_are_kept_apart(tmp_path: Path, home: Home) -> None:
    path = old_file(tmp_path, "video.mp4")
    other = KnownPixels(pixels(2), 1920, 1080)
    with PixelIndex(home) as index:
        index.put(settled(path, "pts=1"), KNOWN)
        index.put(settled(path, "pts=2"), other)
        stamps = [FileStamp.of(path, f"pts={number}") for number in range(3)]
        assert index.get_many(stamps) == {stamps[1]: KNOWN, stamps[2]: other}


@pytest.mark.parametrize("field", ["size", "mtime_ns", "inode", "ctime_ns"])
def test_a_file_that_changed_in_any_way_is_not_known(tmp_path: Path, home: Home, field: str) -> None:
    stamp = settled(old_file(tmp_path))
    with PixelIndex(home) as index:
        index.put(stamp, KNOWN)
        assert index.get(replace(stamp, **{field: getattr(stamp, field) + 1})) is None


def test_a_file_written_again_with_its_old_time_is_not_known(tmp_path: Path, home: Home) -> None:
    path = old_file(tmp_path)
    with PixelIndex(home) as index:
        index.put(settled(path), KNOWN)
        time.sleep(0.02)
        path.write_bytes(b"b picture")
        os.utime(path, (1_000_000, 1_000_000))
        assert index.get(FileStamp.of(path)) is None


def test_a_stamp_taken_again_later_is_racy_no_more_unless_the_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixel_index, "RACY_NS", 100_000_000)
    path = tmp_path / "frame.png"
    path.write_bytes(b"a picture")
    stamp = FileStamp.of(path)
    time.sleep(0.15)
    assert stamp.racy
    assert not stamp.current().racy
    path.write_bytes(b"another picture")
    assert stamp.current() is stamp


def test_a_file_changed_just_before_it_was_stamped_is_not_remembered(tmp_path: Path, home: Home) -> None:
    path = tmp_path / "frame.png"
    path.touch()
    with PixelIndex(home) as index:
        index.put(FileStamp.of(path), KNOWN)
        assert index.get(FileStamp.of(path)) is None


def test_a_name_that_is_no_utf8_and_an_inode_of_64_bits_are_kept(home: Home) -> None:
    stamp = FileStamp("/frames/\udcff.png", 1, 2, (1 << 64) - 1, taken_ns=time.time_ns())
    with PixelIndex(home) as index:
        index.put(stamp, KNOWN)
        assert index.get(stamp) == KNOWN


def test_notes_are_kept_and_replaced(home: Home) -> None:
    with PixelIndex(home) as index:
        assert index.get_note("encoder") is None
        index.put_note("encoder", "{}")
        index.put_note("encoder", '{"a":1}')
    with PixelIndex(home) as index:
        assert index.get_note("encoder") == '{"a":1}'


def test_a_corrupt_file_starts_anew(tmp_path: Path, home: Home) -> None:
    (home.store / "index" / "pixels-1.sqlite").write_bytes(b"no database" * 1000)
    with PixelIndex(home) as index:
        assert index.get_note("encoder") is None
        index.put_note("encoder", "again")
        assert index.get_note("encoder") == "again"


def test_a_row_that_was_changed_behind_its_back_is_not_believed(tmp_path: Path, home: Home) -> None:
    stamp = settled(old_file(tmp_path))
    with PixelIndex(home) as index:
        index.put(stamp, KNOWN)
        index.put_note("encoder", "text")
    connection = sqlite3.connect(home.store / "index" / "pixels-1.sqlite")
    connection.execute("UPDATE files SET pixels = ?", (pixels(2).raw,))
    connection.execute("UPDATE notes SET text = 'other'")
    connection.commit()
    connection.close()
    with PixelIndex(home) as index:
        assert index.get(stamp) is None
        assert index.get_note("encoder") is None


def test_without_a_store_it_is_silently_off(tmp_path: Path) -> None:
    with PixelIndex(Home(tmp_path / "nowhere")) as index:
        index.put_note("encoder", "text")
        assert index.get_note("encoder") is None
    assert not (tmp_path / "nowhere").exists()


def test_a_disk_that_refuses_turns_it_off(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr(sqlite3, "connect", refuse)
    with PixelIndex(home) as index:
        index.put_note("encoder", "text")
        assert index.get_note("encoder") is None


def test_its_files_are_private(home: Home) -> None:
    before = os.umask(0)
    try:
        with PixelIndex(home) as index:
            index.put_note("encoder", "text")
            modes = {stat.S_IMODE(path.stat().st_mode) for path in (home.store / "index").iterdir()}
    finally:
        os.umask(before)
    assert modes == {0o600}


def test_many_threads_and_connections_lose_nothing(home: Home) -> None:
    now = time.time_ns()

    def work(shared: PixelIndex, thread: int) -> None:
        with PixelIndex(home) as own:
            for number in range(20):
                stamp = FileStamp(f"/{thread}/{number}", 1, 1, 1, taken_ns=now)
                (own if number % 2 else shared).put(stamp, KNOWN)

    with PixelIndex(home) as shared:
        threads = [threading.Thread(target=work, args=(shared, thread)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stamps = [FileStamp(f"/{thread}/{number}", 1, 1, 1) for thread in range(4) for number in range(20)]
        assert len(shared.get_many(stamps)) == 80
