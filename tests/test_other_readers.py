"""zarr-python and TensorStore read every entry and agree with us bit for bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from store_samples import PROVENANCE, SPEC, entry_folder, features, new_store, other_spec, pixels, write
from test_golden_store import ENTRIES, GOLDEN

from cache.base.home import Home
from cache.entry import Features
from cache.key import EntryKey
from cache.store import Durability, Store

DTYPES = ("bfloat16", "float16", "float32")


def by_zarr(folder: Path) -> np.ndarray[Any, Any]:
    return np.asarray(zarr.open_array(str(folder), mode="r")[:])


def by_tensorstore(folder: Path) -> np.ndarray[Any, Any]:
    tensorstore = pytest.importorskip(
        "tensorstore", reason="TensorStore has no wheel for this Python or system"
    )
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}}
    return np.asarray(tensorstore.open(spec, open=True, read=True).result().read().result())


readers = pytest.mark.parametrize("read", [by_zarr, by_tensorstore])


def store_of_all_kinds(folder: Path) -> Store:
    """Every dtype and some shapes: no DeepStack, one token, more than a slice."""
    store = new_store(folder)
    for number, dtype in enumerate(DTYPES):
        store.write(pixels(number), SPEC, features(number, dtype), PROVENANCE)
        for offset, shape in ((10, (1, 6, 8)), (20, (4, 1, 8)), (30, (4, 300, 640))):
            layers, tokens, hidden = shape
            spec = other_spec(deepstack_visual_indexes=tuple(range(layers - 1)), out_hidden_size=hidden)
            plain = features(number, dtype).array.dtype
            raw = np.random.default_rng(number).integers(
                0, 256, layers * tokens * hidden * plain.itemsize, "u1"
            )
            stored = Features(raw.view(plain).reshape(shape), dtype, (1, 2, 2 * tokens), 2)
            store.write(pixels(offset + number), spec, stored, PROVENANCE)
    return store


@readers
def test_another_reader_agrees_bit_for_bit(tmp_path: Path, read: Any) -> None:
    store = store_of_all_kinds(tmp_path)
    keys = list(store.keys())
    assert len(keys) == 12
    for key in keys:
        ours = store.read(key)
        assert ours is not None
        theirs = read(entry_folder(store, key))
        assert (theirs.dtype, theirs.shape) == (ours.array.dtype, ours.array.shape)
        assert theirs.tobytes() == ours.array.tobytes()


@readers
def test_another_reader_reads_the_golden_store(read: Any) -> None:
    store = Store(Home(GOLDEN / "home"), "", Durability.none, writable=False)
    for entry in ENTRIES:
        ours = store.read(EntryKey.from_hex(entry["key"]))
        assert ours is not None
        folder = GOLDEN / "home" / "store" / "frames" / entry["key"][:2] / entry["key"]
        assert read(folder).tobytes() == ours.array.tobytes()


def test_zarr_lists_the_groups_and_the_entries_of_one(tmp_path: Path) -> None:
    store = Store.open(Home(tmp_path / "home"), durability=Durability.none)
    key = write(store)
    frames = zarr.open_group(str(store.path), mode="r")["frames"]
    assert isinstance(frames, zarr.Group)
    assert len(list(frames.group_keys())) == 256
    group = frames[key.hex[:2]]
    assert isinstance(group, zarr.Group)
    assert list(group.array_keys()) == [key.hex]


@readers
def test_another_reader_refuses_a_flipped_bit_too(tmp_path: Path, read: Any) -> None:
    store = new_store(tmp_path)
    chunk = entry_folder(store, write(store)) / "c.0.0.0"
    content = bytearray(chunk.read_bytes())
    content[17] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(Exception, match=r"(?i)checksum|digest mismatch"):
        read(chunk.parent)


def test_an_entry_is_plain_json_to_another_program(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    document = json.loads((entry_folder(store, write(store)) / "zarr.json").read_text())
    assert (document["zarr_format"], document["node_type"], document["shape"]) == (3, "array", [4, 6, 8])
