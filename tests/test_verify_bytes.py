"""The bytes level: all problems of a recording or of the whole store, and an interrupted check goes on."""

import shutil
from pathlib import Path
from unittest.mock import patch

import pytest
from store_samples import entry_files, entry_folder, flip_bit, manifest, new_store, write

from cache.base.errors import CannotCheckError
from cache.base.listener import Listener
from cache.key import EntryKey
from cache.manifest import write_manifest
from cache.store import Store
from seeonce.verifier.byte_check import check_recording_bytes, check_store_bytes
from seeonce.verifier.report import Check


class Heard(Listener):
    """A listener that can interrupt."""

    def __init__(self, interrupt_after: int | None = None) -> None:
        self._interrupt_after = interrupt_after

    def show(self, what: str, unit: str, num_done: int, num_all: int, note: str = "") -> None:
        """Interrupt when so many are done."""
        if num_done == self._interrupt_after:
            raise KeyboardInterrupt


def filled(tmp_path: Path, num_entries: int = 12) -> tuple[Store, list[EntryKey]]:
    store = new_store(tmp_path)
    return store, [write(store, number) for number in range(num_entries)]


def notes(store: Store) -> list[Path]:
    return list((store.path / "index").glob("check-*"))


def read_by(store: Store, listener: Heard) -> tuple[Check | None, list[EntryKey]]:
    """Check the whole store and return which entries were read for it."""
    read: list[EntryKey] = []
    right = Store.check

    def counted(self: Store, key: EntryKey, *, payload: bool) -> object:
        read.append(key)
        return right(self, key, payload=payload)

    with patch.object(Store, "check", counted):
        try:
            return check_store_bytes(store, listener), read
        except KeyboardInterrupt:
            return None, read


def test_the_whole_store_is_checked_and_every_problem_told(tmp_path: Path) -> None:
    store, keys = filled(tmp_path)
    flip_bit(entry_files(store, keys[3])[1], 77)
    flip_bit(entry_files(store, keys[5])[0], 77)
    path = write_manifest(store.home, manifest(14))
    check, read = read_by(store, Heard())
    assert check is not None
    assert sorted(read, key=lambda key: key.hex) == sorted(
        {*keys, *(frame.key for frame in manifest(14).frames)}, key=lambda key: key.hex
    )
    told = "\n".join(check.problems)
    assert (check.equal, len(check.problems)) == (False, 4)
    assert keys[3].hex[:12] in told
    assert "there is no such entry" in told
    flip_bit(path, 999)
    damaged, _ = read_by(store, Heard())
    assert damaged is not None
    assert "manifest" in "\n".join(damaged.problems)


def test_an_interrupted_check_goes_on_where_it_was(tmp_path: Path) -> None:
    store, keys = filled(tmp_path)
    interrupted, _ = read_by(store, Heard(interrupt_after=7))
    check, read = read_by(store, Heard())
    assert interrupted is None
    assert check is not None
    assert len({*read}) == len(read) == len(keys) - 7
    assert "7 of them by the run of" in check.words
    assert (check.equal, check.num_checked) == (True, 12)


def test_a_check_that_ended_is_not_believed_by_the_next(tmp_path: Path) -> None:
    store, keys = filled(tmp_path)
    read_by(store, Heard())
    _, read = read_by(store, Heard())
    assert len(read) == len(keys)
    assert not notes(store)


def test_an_entry_that_changed_since_the_interruption_is_read_again(tmp_path: Path) -> None:
    store, keys = filled(tmp_path)
    read_by(store, Heard(interrupt_after=11))
    for key in keys:
        flip_bit(entry_files(store, key)[1], 8)
    check, read = read_by(store, Heard())
    assert check is not None
    assert (len(read), len(check.problems)) == (12, 12)


@pytest.mark.parametrize("content", ["", "{}", '{"after":1,"suspects":"x"}', '{"after":"f'])
def test_a_broken_note_of_progress_costs_nothing_but_time(tmp_path: Path, content: str) -> None:
    store, keys = filled(tmp_path)
    read_by(store, Heard(interrupt_after=5))
    [note] = notes(store)
    note.write_text(content)
    check, read = read_by(store, Heard())
    assert check is not None
    assert (check.equal, len(read)) == (True, len(keys))


def test_a_manifest_that_names_more_than_there_is_has_every_gap_told(tmp_path: Path) -> None:
    store, keys = filled(tmp_path, 3)
    shutil.rmtree(entry_folder(store, keys[0]))
    shutil.rmtree(entry_folder(store, keys[2]))
    check = check_recording_bytes(store, [manifest(3)], Heard())
    assert len(check.problems) == 2


def test_an_empty_store_is_no_proof(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with pytest.raises(CannotCheckError, match="no entry"):
        check_store_bytes(store, Heard())
