"""Several processes at one store: no locks, nothing lost."""

import os
import subprocess
import sys
from pathlib import Path

from store_samples import SPEC, features, new_store, pixels, same

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
