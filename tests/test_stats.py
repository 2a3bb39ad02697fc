"""Statistics of a store, and the command that shows them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from store_samples import (
    PROVENANCE,
    SPEC,
    entry_files,
    features,
    flip_bit,
    frame,
    manifest,
    new_store,
    other_spec,
    pixels,
    write,
)
from typer.testing import CliRunner

from cache.base.home import Home
from cache.manifest import write_manifest
from cache.stats import store_stats
from seeonce.commands.store import app
from seeonce.commands.store_text import stats_table


def test_without_a_store_everything_is_zero_and_nothing_is_made(tmp_path: Path) -> None:
    stats = store_stats(Home(tmp_path / "home"))
    assert (stats.num_entries, stats.num_bytes, stats.num_frames) == (0, 0, 0)
    assert list(tmp_path.iterdir()) == []


def test_entries_and_bytes_are_those_on_disk(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    keys = [write(store, number) for number in range(3)]
    on_disk = sum(path.stat().st_size for key in keys for path in entry_files(store, key))
    stats = store_stats(store.home)
    assert (stats.num_entries, stats.num_bytes) == (3, on_disk)


def test_entries_are_counted_by_encoder_named_or_not(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    for number in range(3):
        write(store, number)
    store.write(pixels(9), other_spec(epoch=2), features(9), PROVENANCE)
    write_manifest(store.home, manifest(2))
    stats = store_stats(store.home)
    assert [(row.encoder_id, row.num_entries) for row in stats.encoders] == [
        (SPEC.encoder_id, 3),
        (other_spec(epoch=2).encoder_id, 1),
    ]
    assert stats.num_unreferenced == 2


def test_frames_that_share_an_entry_save_its_bytes(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    size = sum(path.stat().st_size for path in entry_files(store, write(store, 0)))
    frames = (frame(0, 0), frame(1, 0), frame(2, 0))
    write_manifest(store.home, replace(manifest(), frames=frames))
    stats = store_stats(store.home)
    assert (stats.num_frames, stats.num_shared, stats.num_bytes_saved) == (3, 2, 2 * size)
    assert (stats.num_recordings, stats.num_manifests) == (1, 1)


def test_what_is_in_quarantine_or_unfinished_is_counted(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    key = write(store)
    flip_bit(entry_files(store, key)[1], 3)
    store.read(key)
    (store.path / "tmp" / "1.2.3").mkdir()
    stats = store_stats(store.home)
    assert (stats.num_entries, stats.num_quarantined, stats.num_tmp) == (0, 1, 1)


def test_counting_moves_nothing_and_is_no_use(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    key = write(store)
    flip_bit(entry_files(store, key)[0], 30)
    assert store_stats(store.home).num_unreadable == 1
    assert list(store.keys()) == [key]


def test_nothing_may_go_while_the_only_manifest_cannot_be_read(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    write(store, 0)
    flip_bit(write_manifest(store.home, manifest(1)), 100)
    stats = store_stats(store.home)
    assert "nothing: a manifest cannot be read" in stats_table(store.home, stats)


def test_the_command_shows_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(tmp_path)
    write(store)
    monkeypatch.setenv("SEEONCE_HOME", str(store.home.path))
    result = CliRunner().invoke(app, ["stats"])
    assert result.exit_code == 0
    assert "entries                 1 (2.0 kB)" in result.output
    assert SPEC.encoder_id.hex[:12] in result.output


def test_the_command_shows_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(tmp_path)
    write(store)
    monkeypatch.setenv("SEEONCE_HOME", str(store.home.path))
    found = json.loads(CliRunner().invoke(app, ["stats", "--json"]).stdout)
    assert found["num_entries"] == 1
    assert found["encoders"][0]["encoder_id"] == SPEC.encoder_id.hex
