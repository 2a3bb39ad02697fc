"""A store that may only be read is readable by every command that reads. Asks the system, not a mock."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Run
from store_samples import PROVENANCE, SPEC, features, frame, manifest, new_store, pixels, same, write

from cache.base.errors import StoreError
from cache.base.home import Home
from cache.manifest import write_manifest
from cache.store import Store

NOBODY = 65534


@pytest.fixture
def store(run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store of somebody else, open to be read, as seen by a user who may not write there."""
    # Below the folder of pytest nobody but its user may look.
    folder = Path(tempfile.mkdtemp())
    made = new_store(folder)
    for number in range(3):
        write(made, number)
    write_manifest(made.home, manifest(3))
    is_root = os.getuid() == 0
    for path in [folder, *folder.rglob("*")]:
        path.chmod((0o755 if is_root else 0o555) if path.is_dir() else 0o444)
    monkeypatch.setenv("SEEONCE_HOME", str(made.home.path))
    # What commands import late is imported now: that user may not read our packages either.
    assert run("seeonce store check").code == run("verify-cache a-recording --level bytes").code == 0
    if is_root:
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield Store.open(Home(made.home.path), create=False)
    finally:
        if is_root:
            os.setresuid(0, 0, 0)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_entries_are_read_and_nothing_is_written(store: Store) -> None:
    assert not store.writable
    assert all(same(store.read(frame(number).key), features(number)) for number in range(3))
    with pytest.raises(StoreError, match="read-only"):
        store.write(pixels(9), SPEC, features(9), PROVENANCE)


@pytest.mark.parametrize(
    "command", ["stats", "ls", "ls --entries", "check", "check --read-data", "gc --dry-run"]
)
def test_commands_that_read_work(store: Store, run: Run, command: str) -> None:
    assert run(f"seeonce store {command}").code == 0


@pytest.mark.parametrize("command", ["gc", "repair", "forget a-recording", "forget a-recording --purge"])
def test_commands_that_write_say_that_it_is_read_only(store: Store, run: Run, command: str) -> None:
    ended = run(f"seeonce store {command}")
    assert ended.code == 1
    assert "is read-only" in ended.error


def test_the_bytes_are_verified(store: Store, run: Run) -> None:
    assert run("verify-cache a-recording --level bytes").code == 0
