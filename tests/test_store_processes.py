"""Several processes at one store: no locks, nothing lost."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from crowd_driver import KEPT, NUM_WRITERS, OLD, SAVED, SHARED, own
from store_samples import SPEC, entry_folder, features, frame, manifest, new_store, pixels, same, write

from cache.key import entry_key
from cache.manifest import write_manifest
from cache.store import Durability

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


@pytest.mark.parametrize(
    ("num_each", "rounds"), [(15, 1), pytest.param(150, 4, marks=pytest.mark.campaign)], ids=["few", "many"]
)
def test_eight_write_two_read_and_one_collects_without_loss_or_error(
    tmp_path: Path, num_each: int, rounds: int
) -> None:
    store = new_store(tmp_path)
    for number in (*OLD, *SAVED, *KEPT):
        os.utime(entry_folder(store, write(store, number)), (1, 1))
    named = tuple(frame(index, picture) for index, picture in enumerate(KEPT))
    write_manifest(store.home, replace(manifest(len(KEPT)), frames=named), Durability.none)
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    command = [sys.executable, str(TESTS / "crowd_driver.py"), str(tmp_path), str(num_each), str(rounds)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert (ended.returncode, ended.stderr) == (0, "")
    numbers = [*SHARED, *KEPT, *(number for writer in range(NUM_WRITERS) for number in own(writer, num_each))]
    for number in numbers:
        assert same(store.read(entry_key(pixels(number), SPEC.encoder_id)), features(number))
    left = {path.name for path in (store.path / "frames").glob("??/*") if path.is_dir()}
    assert not left & {entry_key(pixels(number), SPEC.encoder_id).hex for number in OLD}
    assert list((store.path / "quarantine").iterdir()) == []
    assert list((store.path / "tmp").iterdir()) == []
    print(f"8 writers, 2 readers, 1 collector: {len(numbers)} entries right, {len(OLD)} old ones collected")
