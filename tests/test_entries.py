"""A recording's entries as zarr arrays, for notebooks and other models: seeonce.entries."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from screens import folder_of

from cache.base.errors import NotEncodedError
from cache.base.home import Home
from cache.store import Store
from seeonce import entries


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arrays_are_bit_for_bit_what_the_store_reads(
    dtype: str, run: Run, plain: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEONCE_DTYPE", dtype)
    assert run("seeonce encode", folder_of(tmp_path / "images"), "--model", plain).code == 0
    store = Store.open(Home(home))
    opened = list(entries())
    assert [frame.index for frame, _ in opened] == [0, 1, 2]
    for frame, array in opened:
        features = store.read(frame.key)
        assert features is not None
        attributes: Any = array.attrs["seeonce"]
        assert attributes["dtype"] == dtype
        assert np.asarray(array[:]).tobytes() == features.array.tobytes()
        assert array.read_only


def test_a_damaged_entry_is_never_opened(run: Run, plain: Path, tmp_path: Path, home: Path) -> None:
    assert run("seeonce encode", folder_of(tmp_path / "images"), "--model", plain).code == 0
    for chunk in home.rglob("c.0.0.0"):
        chunk.write_bytes(chunk.read_bytes()[:-1] + bytes([chunk.read_bytes()[-1] ^ 1]))
    with pytest.raises(NotEncodedError, match=r"frame 0 cannot be read .*: run seeonce encode images"):
        next(iter(entries("images")))


def test_a_recording_that_is_not_encoded_is_an_error(home: Path) -> None:
    with pytest.raises(NotEncodedError):
        next(iter(entries("demo")))
