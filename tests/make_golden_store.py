"""Makes ``golden_store_1/``, a store of format 1 that every later version must read.

    PYTHONPATH=.:tests python tests/make_golden_store.py FOLDER

It was run once, by version 0.1.0, and what it made is kept. ``expected.json`` describes its content.
"""

import base64
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
from store_samples import GRID_THW, PROVENANCE, SPEC, features, manifest, pixels

from cache.base.home import Home
from cache.entry import STORED_DTYPES, Features
from cache.key import EncoderSpec
from cache.manifest import SkippedFrame, write_manifest
from cache.store import Durability, Store

TIME = "2026-11-21T09:30:00Z"
PLAIN = replace(SPEC, deepstack_visual_indexes=(), compute_dtype="float32")  # no DeepStack, as Qwen3.5


def samples() -> list[tuple[int, EncoderSpec, Features]]:
    """Return what the store holds: all three dtypes, random bits with NaN and infinities among them."""
    half = replace(SPEC, compute_dtype="float16")
    raw = np.random.default_rng(3).integers(0, 256, 6 * 8 * 4, dtype=np.uint8)
    flat = Features(raw.view(STORED_DTYPES["float32"]).reshape(1, 6, 8), "float32", GRID_THW, 2)
    return [
        (0, SPEC, features(0)),
        (1, SPEC, features(1)),
        (2, half, features(2, "float16")),
        (3, PLAIN, flat),
    ]


def make(folder: Path) -> None:
    """Make the store in ``folder``, which must be empty, and ``expected.json`` beside it."""
    home = Home(folder / "home")
    described = []
    with (
        patch("cache.layout._GROUPS", ()),
        patch("cache.layout.now", lambda: TIME),
        patch("cache.commit.now", lambda: TIME),
        patch("cache.layout.secrets", SimpleNamespace(token_hex=lambda size: "5e" * size)),
    ):
        store = Store.open(home, durability=Durability.none)
        for number, spec, stored in samples():
            key = store.write(pixels(number), spec, stored, PROVENANCE)
            described.append(
                {
                    "key": key.hex,
                    "pixels": pixels(number).hex,
                    "encoder_id": spec.encoder_id.hex,
                    "dtype": stored.dtype,
                    "shape": stored.array.shape,
                    "grid_thw": stored.grid_thw,
                    "payload_base64": base64.b64encode(stored.array.tobytes()).decode("ascii"),
                }
            )
    skipped = (SkippedFrame(2, 20.0, "2.png", "cannot be read"),)
    named = replace(manifest(2), recording=replace(manifest(3).recording), skipped=skipped, created_at=TIME)
    write_manifest(home, named, Durability.none)
    for empty in ("tmp", "trash", "quarantine", "leases", "thumbs", "index"):  # git keeps no empty folders
        shutil.rmtree(home.store / empty)
    (home.path / "CACHEDIR.TAG").unlink()
    expected = {"format": 1, "created_at": TIME, "recording": named.recording.id, "entries": described}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
