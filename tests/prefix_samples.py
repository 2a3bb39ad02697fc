"""Imagined prefixes for the tests of the cache on disk."""

from pathlib import Path

import numpy as np

from cache.base.home import Home
from cache.key import EntryKey
from cache.prefixes import PrefixInfo, PrefixKey, PrefixStore

NUM_BYTES = 3 * 4096 + 5


def key(number: int) -> PrefixKey:
    return PrefixKey(number.to_bytes(32, "big"))


def entry(number: int) -> EntryKey:
    return EntryKey(number.to_bytes(32, "big"))


def parts(number: int, num_bytes: int = NUM_BYTES) -> list[np.ndarray]:
    """Return the payload of a prefix, in two arrays of random bytes."""
    raw = np.random.default_rng(number).integers(0, 256, num_bytes, dtype=np.uint8)
    return [raw[:1000], raw[1000:]]


def prefix_store(folder: Path, max_bytes: int = 1 << 30) -> PrefixStore:
    folder.mkdir(parents=True, exist_ok=True)
    store = PrefixStore(Home(folder), max_bytes)
    store.prepare()
    return store


def write(store: PrefixStore, number: int, num_bytes: int = NUM_BYTES) -> bool:
    info = PrefixInfo(key(number), (entry(number), entry(1000)), 7, 0.5)
    return store.write(info, parts(number, num_bytes))


def is_right(store: PrefixStore, number: int, num_bytes: int = NUM_BYTES) -> bool:
    """Read a prefix; say whether it is there. What is there must be what was written."""
    found = store.read(key(number), num_bytes)
    if found is None:
        return False
    info, payload = found
    assert info.keys == (entry(number), entry(1000))
    assert np.array_equal(payload, np.concatenate(parts(number, num_bytes)))
    return True
