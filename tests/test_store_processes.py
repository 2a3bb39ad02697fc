"""Several processes at one store: no locks, nothing lost, nothing torn."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store_samples import SPEC, features, new_store, pixels, same

from cache.commit import CommitStep
from cache.key import entry_key

TESTS = Path(__file__).parent

WRITER = """
import sys
from pathlib import Path
from store_samples import new_store, write
store = new_store(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    write(store, number)
    print(number, flush=True)
"""

DIES_AT_STEP = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from store_samples import new_store, write
def on_step(step):
    if step == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
write(replace(new_store(Path(sys.argv[1])), on_step=on_step), 1)
"""


def start(script: str, *arguments: object) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)


def test_two_processes_write_the_same_keys_and_lose_nothing(tmp_path: Path) -> None:
    writers = [start(WRITER, tmp_path, 0, 30) for _ in range(2)]
    assert [writer.communicate()[0].split()[-1] for writer in writers] == ["29", "29"]
    store = new_store(tmp_path)
    for number in range(30):
        assert same(store.read(entry_key(pixels(number), SPEC.encoder_id)), features(number))
    assert list((store.path / "tmp").iterdir()) == []
    assert list((store.path / "quarantine").iterdir()) == []


@pytest.mark.parametrize("step", list(CommitStep))
def test_a_writer_killed_at_any_step_leaves_no_torn_entry(tmp_path: Path, step: CommitStep) -> None:
    with start(DIES_AT_STEP, tmp_path, step) as writer:
        assert writer.wait() == -signal.SIGKILL
    store = new_store(tmp_path)
    key = entry_key(pixels(1), SPEC.encoder_id)
    visible = step in (CommitStep.renamed, CommitStep.groups_synced, CommitStep.acknowledged)
    assert set(store.keys()) == ({key} if visible else set())
    assert same(store.read(key), features(1)) == visible


@pytest.mark.parametrize("seed", range(4))
def test_a_writer_killed_at_any_time_keeps_what_it_acknowledged(tmp_path: Path, seed: int) -> None:
    with start(WRITER, tmp_path, 0, 100_000) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(random.Random(seed).uniform(0, 0.2))
        writer.kill()
        acknowledged = 1 + len(writer.stdout.read().split())
    store = new_store(tmp_path)
    numbers = {entry_key(pixels(number), SPEC.encoder_id): number for number in range(acknowledged + 2)}
    keys = list(store.keys())
    assert {numbers[key] for key in keys} >= set(range(acknowledged))
    assert [store.check(key) for key in keys] == [None] * len(keys)
