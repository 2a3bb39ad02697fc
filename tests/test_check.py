"""The check of a whole store: finds all, moves nothing, goes on where it was stopped."""

import errno
import json
import os
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from store_samples import SPEC, entry_files, entry_folder, flip_bit, frame, manifest, new_store, write

from cache.base.canonical_json import UNSEALED, seal
from cache.base.errors import InputError
from cache.check import CheckReport, check_store, in_subset, parse_part
from cache.gc import OnProgress
from cache.manifest import manifest_path, write_manifest
from cache.store import Store


def kinds(report: CheckReport) -> list[tuple[str, str]]:
    return sorted((problem.kind, problem.what) for problem in report.problems)


def filled(tmp_path: Path, num_entries: int = 6) -> Store:
    store = new_store(tmp_path)
    for number in range(num_entries):
        write(store, number)
    return store


def stop_after(num_calls: int) -> OnProgress:
    calls: list[int] = []

    def stop(num_done: int, num_all: int) -> None:
        calls.append(num_done)
        if len(calls) == num_calls:
            raise KeyboardInterrupt

    return stop


def test_a_sound_store_has_no_problem(tmp_path: Path) -> None:
    store = filled(tmp_path)
    write_manifest(store.home, manifest(6))
    report = check_store(store, read_data=True)
    assert (report.problems, report.num_entries) == ([], 6)
    assert report.num_bytes == sum(
        p.stat().st_size for n in range(6) for p in entry_files(store, frame(n).key)
    )


def test_all_problems_are_collected_and_nothing_is_moved(tmp_path: Path) -> None:
    store = filled(tmp_path)
    write_manifest(store.home, manifest(6))
    keys = [frame(number).key for number in range(6)]
    flip_bit(entry_files(store, keys[0])[0], 40)
    flip_bit(entry_files(store, keys[1])[1], 40)
    entry_files(store, keys[2])[1].unlink()
    shutil.rmtree(entry_folder(store, keys[3]))
    report = check_store(store, read_data=True)
    damaged = [("damaged", key.hex) for key in keys[:3]]
    assert kinds(report) == sorted([*damaged, ("missing", keys[3].hex)])
    assert entry_folder(store, keys[0]).exists()
    assert list((store.path / "quarantine").iterdir()) == []


def test_without_read_data_payloads_are_not_read(tmp_path: Path) -> None:
    store = filled(tmp_path)
    flip_bit(entry_files(store, frame(1).key)[1], 40)
    assert check_store(store).problems == []
    assert len(check_store(store, read_data=True).problems) == 1


def test_of_a_missing_entry_that_lies_in_quarantine_it_says_why(tmp_path: Path) -> None:
    store = filled(tmp_path)
    write_manifest(store.home, manifest(6))
    flip_bit(entry_files(store, frame(1).key)[1], 40)
    assert store.read(frame(1).key) is None
    [problem] = check_store(store).problems
    assert problem.kind == "missing"
    assert "named by a-recording; it lies in quarantine/" in problem.reason
    assert "crc32c" in problem.reason
    one = store.check(frame(1).key)
    assert one is not None
    assert "crc32c" in one


def test_an_entry_that_the_disk_refuses_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path)
    refused, damaged = frame(1).key.hex, frame(2).key.hex
    flip_bit(entry_files(store, frame(2).key)[1], 40)
    real = os.open

    def refuse(name: str, *args: Any, **kwargs: Any) -> int:
        if name == refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    report = check_store(store, read_data=True)
    assert kinds(report) == [("damaged", damaged), ("unreadable", refused)]


def test_a_manifest_whose_frames_are_nonsense_is_a_problem(tmp_path: Path) -> None:
    store = filled(tmp_path)
    path = write_manifest(store.home, manifest(6))
    document = json.loads(path.read_bytes())
    path.write_bytes(seal({**document, "frames": [7], "metadata_digest": UNSEALED}))
    [problem] = check_store(store).problems
    assert problem.kind == "manifest"


def test_a_damaged_manifest_is_a_problem(tmp_path: Path) -> None:
    store = filled(tmp_path)
    write_manifest(store.home, manifest(6))
    flip_bit(manifest_path(store.home, "a-recording", SPEC.encoder_id), 999)
    [problem] = check_store(store).problems
    assert problem.kind == "manifest"


def test_parts_are_disjoint_and_together_everything(tmp_path: Path) -> None:
    store = filled(tmp_path, 40)
    assert sum(check_store(store, subset=(part, 7)).num_entries for part in range(1, 8)) == 40
    for key in list(store.keys()):
        assert sum(in_subset(key, (part, 7)) for part in range(1, 8)) == 1


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "a/3", "1/", "-1/3", "1.5/3", "1/" + "9" * 5000])
def test_a_subset_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a part"):
        parse_part(text, "--subset")


@pytest.mark.parametrize("seed", range(5))
def test_an_interrupted_check_goes_on_and_finds_all(tmp_path: Path, seed: int) -> None:
    store = filled(tmp_path, 12)
    draw = random.Random(seed)
    bad = {frame(number).key.hex for number in draw.sample(range(12), 4)}
    for number in range(12):
        if frame(number).key.hex in bad:
            flip_bit(entry_files(store, frame(number).key)[1], 40)
    first = check_store(store, read_data=True, on_progress=stop_after(draw.randint(1, 11)))
    assert first.interrupted
    second = check_store(store, read_data=True)
    assert {problem.what for problem in second.problems} == bad
    assert second.num_resumed + second.num_entries == 12
    assert second.num_resumed > 0 or len(first.problems) == first.num_entries
    assert check_store(store, read_data=True).num_resumed == 0


def test_a_check_that_is_stopped_twice_forgets_no_suspect(tmp_path: Path) -> None:
    store = filled(tmp_path, 12)
    keys = sorted((frame(number).key for number in range(12)), key=lambda key: key.raw)
    for key in keys[:3]:
        flip_bit(entry_files(store, key)[1], 40)
    check_store(store, read_data=True, on_progress=stop_after(6))
    assert check_store(store, read_data=True, on_progress=stop_after(1)).interrupted
    assert {problem.what for problem in check_store(store, read_data=True).problems} == {
        key.hex for key in keys[:3]
    }


def test_restart_begins_anew_and_other_parts_do_not_go_on(tmp_path: Path) -> None:
    store = filled(tmp_path, 12)
    check_store(store, read_data=True, on_progress=stop_after(6))
    assert check_store(store).num_resumed == 0
    assert check_store(store, read_data=True, subset=(1, 2)).num_resumed == 0
    assert check_store(store, read_data=True, restart=True).num_entries == 12


def test_an_entry_that_came_since_a_check_was_stopped_is_checked(tmp_path: Path) -> None:
    store = filled(tmp_path, 12)
    first = min((frame(number) for number in range(12)), key=lambda one: one.key.raw)
    check_store(store, read_data=True, on_progress=stop_after(6))
    shutil.rmtree(entry_folder(store, first.key))
    write(store, first.index)
    flip_bit(entry_files(store, first.key)[1], 40)
    assert [problem.what for problem in check_store(store, read_data=True).problems] == [first.key.hex]


def test_a_check_that_was_stopped_long_ago_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path, 12)
    check_store(store, read_data=True, on_progress=stop_after(6))
    later_s = time.time() + 31 * 24 * 3600
    monkeypatch.setattr(time, "time", lambda: later_s)
    assert check_store(store, read_data=True).num_resumed == 0


def test_a_bit_flipped_in_its_state_leaves_nothing_out(tmp_path: Path) -> None:
    store = filled(tmp_path, 12)
    check_store(store, read_data=True, on_progress=stop_after(6))
    state = store.path / "index" / "check-1-of-1.json"
    state.write_bytes(re.sub(rb'"after":".', b'"after":"f', state.read_bytes()))
    assert check_store(store, read_data=True).num_entries == 12


def test_a_damaged_state_begins_anew(tmp_path: Path) -> None:
    store = filled(tmp_path)
    (store.path / "index" / "check-1-of-1.json").write_bytes(b'{"after":1,"suspects":"x"}')
    assert check_store(store, read_data=True).num_entries == 6


def test_the_command_prints_each_problem_and_exits_with_one(run: Run, home: Path) -> None:
    store = filled(home.parent)
    assert run("seeonce store check").out.endswith("6 entries: no problem.\n")
    flip_bit(entry_files(store, frame(1).key)[1], 40)
    ended = run("seeonce store check --read-data")
    assert ended.code == 1
    assert f"damaged  {frame(1).key.hex}: payload:" in ended.out
    assert run("seeonce store check --read-data --subset 1/1 --json").json["problems"][0]["kind"] == "damaged"
