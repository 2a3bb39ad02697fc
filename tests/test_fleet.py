"""Both passes over two workers of Ray: entries, manifest and lines are those of one machine."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Run
from s3_stand_in import stand_in
from screens import folder_of
from store_samples import same

from cache.base.home import Home
from cache.bucket import BucketStore
from cache.bucket_upkeep import check_bucket
from cache.objects import Objects
from cache.store import Store
from infer.request import Request, Text
from seeonce.fleet import _SHARDS_A_WORKER, _blocks
from seeonce.runs.results import read_results

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no ray: seeonce[fleet]")
ASK = ("describe", "demo", "--json", "--max-tokens", "4", "--prompt", "What?", "--prompt", "Where?")


def _by_ray(
    home: Path, *words: object, beside: Callable[[subprocess.Popen[str]], None] = lambda _: None
) -> Any:
    """Run a command with two workers in a process of its own: what Ray leaves behind goes with it."""
    command = [
        sys.executable,
        "-m",
        "seeonce",
        *map(str, words),
        "--engine",
        "ray",
        "--workers",
        "2",
        "--json",
    ]
    environ = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environ |= {"SEEONCE_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Elsewhere than in a checkout, which would be imported in the wheel's place.
    with subprocess.Popen(command, text=True, env=environ, cwd=home.parent, **pipes) as driver:  # type: ignore[call-overload]
        beside(driver)
        out, err = driver.communicate(timeout=240)
    assert driver.returncode == 0, err
    return json.loads(out)


@needs_ray
@pytest.mark.campaign  # half a minute a command on a quiet machine
def test_two_workers_of_ray_give_what_one_machine_gives(run: Run, home: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/bucket"
    assert run("seeonce encode demo --limit 6").code == 0
    store = Store.open(Home(home))
    alone = store.read_manifest(store.list_manifests()[0])
    merged = _by_ray(tmp_path / "driver", "encode", "demo", "--limit", 6, "--to", url)
    assert (merged["num_encoded"], merged["num_shards"]) == (6, 2 * _SHARDS_A_WORKER)
    bucket = BucketStore.open(url)
    manifest = bucket.read_manifest(bucket.list_manifests(pytest.fail)[0])
    assert (manifest.frames, manifest.encoder) == (alone.frames, alone.encoder)
    assert check_bucket(bucket, read_data=True).problems == []
    for frame in alone.frames:
        features = store.read(frame.key)
        assert features is not None
        assert same(bucket.read(frame.key), features)
    info = _by_ray(tmp_path / "driver", *ASK, "--from", url)
    here = run(f"seeonce {' '.join(ASK)}")
    assert here.code == 0
    found, expected = (
        list(read_results(Path(path), pytest.fail, logprobs=True))
        for path in (info["path"], here.json["path"])
    )
    assert found == expected
    assert len(found) == 12


@needs_ray
@pytest.mark.campaign
def test_a_worker_that_is_killed_costs_nothing(home: Path, tmp_path: Path) -> None:
    bucket = BucketStore.open(f"file://{tmp_path}/bucket", create=True)
    killed = list[int]()

    def kill_one(driver: subprocess.Popen[str]) -> None:
        """End a worker once it has committed an entry."""
        while driver.poll() is None and not killed:
            time.sleep(0.05)
            if next(bucket.objects.list("frames"), None) is not None:
                for process in psutil.Process(driver.pid).children(recursive=True):
                    if "MapWorker" in "".join(process.cmdline()):
                        process.kill()
                        killed.append(process.pid)
                        break

    merged = _by_ray(home, "encode", "demo", "--to", bucket.objects.address, beside=kill_one)
    assert killed
    manifest = bucket.read_manifest(bucket.list_manifests(pytest.fail)[0])
    assert (len(manifest.frames), manifest.complete) == (merged["num_encoded"], True)
    assert len({frame.key for frame in manifest.frames}) == merged["num_entries"]
    assert sum(1 for _ in bucket.objects.list("frames")) == 2 * merged["num_entries"]
    assert check_bucket(bucket, read_data=True).problems == []


@needs_ray
@pytest.mark.campaign
def test_workers_read_a_recording_that_lies_in_a_bucket_and_write_into_it(
    run: Run, home: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stand_in() as (_, place):
        for name, value in place.environ.items():
            monkeypatch.setenv(name, value)
        pictures = Objects.open(f"{place.address}/monday")
        for path in folder_of(tmp_path / "monday", 6).iterdir():
            pictures.put_new(path.name, path.read_bytes())
        encode = ("encode", pictures.address, "--model", plain)
        assert run("seeonce", *encode).code == 0
        alone = Store.open(Home(home)).list_manifests()[0]
        merged = _by_ray(tmp_path / "driver", *encode, "--to", f"{place.address}/store")
        assert (merged["num_encoded"], merged["num_entries"]) == (6, 6)
        bucket = BucketStore.open(f"{place.address}/store")
        manifest = bucket.read_manifest(bucket.list_manifests(pytest.fail)[0])
        assert manifest.frames == Store.open(Home(home)).read_manifest(alone).frames
        assert check_bucket(bucket, read_data=True).problems == []


def test_requests_over_the_same_frames_stay_together() -> None:
    class Asked(Request):
        @property
        def keys(self) -> Any:
            return (self.id // 3,)

    requests = [Asked(number, (Text("?"),)) for number in range(30)]
    for num_blocks in (1, 4, 7, 100):
        blocks = _blocks(requests, num_blocks)
        assert [request for block in blocks for request in block] == requests
        assert all(len(block) % 3 == 0 for block in blocks)
        assert len(blocks) == min(num_blocks, 10) or num_blocks == 7


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("seeonce encode demo --engine ray", "give --to URL"),
        ("seeonce encode demo --to memory://x --engine ray --shard 1/2", "neither --shard nor --merge"),
        ("seeonce encode demo --to memory://x --engine ray", "in the memory of one process"),
        ("seeonce encode memory://x --to file://{folder}/b --engine ray", "in the memory of one process"),
        ("seeonce encode demo --workers 2", "are for --engine ray"),
        ("seeonce describe demo --engine ray", "name it, as in --from URL"),
        ("seeonce describe demo --engine ray --workers 0 --from memory://x", "--workers is at least 1"),
    ],
)
def test_workers_without_what_they_need_are_refused(
    command: str, problem: str, run: Run, tmp_path: Path
) -> None:
    BucketStore.open("memory://x", create=True)
    ended = run(command.format(folder=tmp_path))
    assert ended.code == 1
    assert problem in ended.error


def test_without_ray_it_is_said_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    ended = run(f"seeonce encode demo --to file://{tmp_path}/b --engine ray")
    assert "pip install 'seeonce[fleet]'" in ended.error
