"""Small encoders, features and stores for the tests of ``cache/``."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

from cache.base.home import Home
from cache.entry import CHUNK_NAME, METADATA_NAME, STORED_DTYPES, Features, Provenance
from cache.key import EncoderSpec, EntryKey, PixelDigest, entry_key
from cache.manifest import FrameEntry, Manifest, RecordingInfo
from cache.store import Durability, Store
from seeonce.bench.store import IMAGINED_ENCODER

SPEC = IMAGINED_ENCODER
PREPROCESSING = SPEC.preprocessing
PROVENANCE = Provenance("0.32.0", "0.7.10", "0.1.0", "cpu", "a chip", "an OS")
GRID_THW = (1, 4, 6)


def pixels(number: int) -> PixelDigest:
    """Return the digest of an imagined picture."""
    return PixelDigest(number.to_bytes(32, "big"))


def features(seed: int = 0, dtype: str = "bfloat16") -> Features:
    """Return features (4, 6, 8) of random bits: NaN with payloads, infinities, subnormals."""
    stored = STORED_DTYPES[dtype]
    raw = np.random.default_rng(seed).integers(0, 256, 4 * 6 * 8 * stored.itemsize, dtype=np.uint8)
    return Features(raw.view(stored).reshape(4, 6, 8), dtype, GRID_THW, 2)


def new_store(tmp_path: Path, durability: Durability = Durability.none) -> Store:
    """Return an empty store whose 256 groups are made when needed: a hundred tests are faster so."""
    with patch("cache.layout._GROUPS", ()):
        return Store.open(Home(tmp_path / "home"), durability=durability)


def write(store: Store, number: int = 0) -> EntryKey:
    """Commit the features of seed ``number`` for the picture ``number``."""
    return store.write(pixels(number), SPEC, features(number), PROVENANCE)


def entry_folder(store: Store, key: EntryKey) -> Path:
    """Return where an entry lies."""
    return store.path / "frames" / key.hex[:2] / key.hex


def entry_files(store: Store, key: EntryKey) -> list[Path]:
    """Return both files of an entry."""
    return [entry_folder(store, key) / METADATA_NAME, entry_folder(store, key) / CHUNK_NAME]


def flip_bit(path: Path, position: int) -> None:
    """Flip one bit, counted from the start of the file."""
    content = bytearray(path.read_bytes())
    content[position // 8] ^= 1 << position % 8
    path.write_bytes(content)


def same(left: Features | None, right: Features) -> bool:
    """Say whether two features are equal bit for bit."""
    return (
        left is not None
        and left.array.tobytes() == right.array.tobytes()
        and (left.array.shape, left.dtype, left.grid_thw, left.merge_size)
        == (right.array.shape, right.dtype, right.grid_thw, right.merge_size)
    )


def frame(index: int, picture: int | None = None) -> FrameEntry:
    """Return a frame entry of a picture, by default one of its own."""
    digest = pixels(index if picture is None else picture)
    return FrameEntry(
        index, index * 10.0, f"{index}.png", digest, entry_key(digest, SPEC.encoder_id), 96, 64, GRID_THW, 6
    )


def manifest(num_frames: int = 3, recording_id: str = "a-recording", created_at: str = "") -> Manifest:
    """Return a complete manifest of distinct frames."""
    recording = RecordingInfo(recording_id, "A recording", "folder", "/frames", "", num_frames, None, None)
    frames = tuple(frame(index) for index in range(num_frames))
    return Manifest(recording, SPEC, frames, (), True, created_at or "2026-11-21T00:00:00Z")


def other_spec(**changes: object) -> EncoderSpec:
    """Return the sample encoder with some fields changed."""
    return replace(SPEC, **changes)  # type: ignore[arg-type]
