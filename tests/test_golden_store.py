"""The store that version 0.1.0 left: every later version reads it, and writes format 1 as it did."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_golden_store import make
from store_samples import PROVENANCE

from cache.base.canonical_json import seal
from cache.base.errors import StoreError
from cache.base.home import Home
from cache.key import EntryKey
from cache.manifest import list_manifests, read_manifest
from cache.store import Store

GOLDEN = Path(__file__).parent / "golden_store_1"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
ENTRIES = EXPECTED["entries"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A copy of the store: a read of the one under version control would touch it."""
    shutil.copytree(GOLDEN / "home", tmp_path / "home")
    return Store.open(Home(tmp_path / "home"), create=False)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry["dtype"] for entry in ENTRIES])
def test_an_entry_of_format_1_is_read_bit_for_bit(store: Store, entry: dict[str, Any]) -> None:
    key = EntryKey.from_hex(entry["key"])
    assert store.check(key) is None
    found, info = store.read(key), store.entry_info(key)
    assert found is not None
    assert info is not None
    assert found.array.tobytes() == base64.b64decode(entry["payload_base64"])
    assert (found.dtype, list(found.array.shape), list(found.grid_thw)) == (
        entry["dtype"], entry["shape"], entry["grid_thw"]
    )  # fmt: skip
    assert (info.pixels.hex, info.encoder_id.hex) == (entry["pixels"], entry["encoder_id"])
    assert (info.created_at, info.provenance) == (EXPECTED["created_at"], PROVENANCE)


def test_a_store_of_format_1_holds_these_entries_and_this_recording(store: Store) -> None:
    assert {key.hex for key in store.keys()} == {entry["key"] for entry in ENTRIES}  # noqa: SIM118
    (ref,) = list_manifests(store.home)
    manifest = read_manifest(ref.path)
    assert (manifest.recording.id, manifest.complete) == (EXPECTED["recording"], True)
    assert [frame.key.hex for frame in manifest.frames] == [entry["key"] for entry in ENTRIES[:2]]
    assert [skipped.reason for skipped in manifest.skipped] == ["cannot be read"]


def test_reading_changes_no_file(store: Store) -> None:
    before = files_of(store.home.path)
    for key in list(store.keys()):
        store.read(key)
        store.check(key)
    assert files_of(store.home.path) == before


def test_todays_code_writes_the_same_bytes(tmp_path: Path) -> None:
    """Another byte would be another format: then the number is raised, and this store stays readable."""
    make(tmp_path)
    assert files_of(tmp_path) == files_of(GOLDEN)


def test_the_golden_store_is_small_enough_to_keep() -> None:
    assert sum(map(len, files_of(GOLDEN).values())) < 60_000


def test_a_newer_store_is_refused_and_left_alone(store: Store) -> None:
    path = store.path / "store.json"
    path.write_bytes(path.read_bytes().replace(b'"format":1', b'"format":2'))
    before = files_of(store.home.path)
    for create in (False, True):
        with pytest.raises(StoreError, match="has format 2, this seeonce reads format 1: upgrade seeonce"):
            Store.open(store.home, create=create)
    assert files_of(store.home.path) == before


def test_a_newer_manifest_is_refused_and_left_alone(store: Store) -> None:
    (ref,) = list_manifests(store.home)
    newer: Any = {**json.loads(ref.path.read_bytes()), "format": 2, "metadata_digest": "0" * 64}
    ref.path.write_bytes(seal(newer))
    with pytest.raises(StoreError, match="has format 2, this seeonce reads 1: upgrade seeonce"):
        read_manifest(ref.path)


def test_numpy_alone_reads_the_payload_of_an_entry() -> None:
    for entry in ENTRIES:
        chunk = GOLDEN / "home" / "store" / "frames" / entry["key"][:2] / entry["key"] / "c.0.0.0"
        dtype = {"bfloat16": "<u2", "float16": "<f2", "float32": "<f4"}[entry["dtype"]]
        array = np.frombuffer(chunk.read_bytes()[:-4], dtype).reshape(entry["shape"])
        assert array.tobytes() == base64.b64decode(entry["payload_base64"])
