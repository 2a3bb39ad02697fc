"""Pass two and the verifier over a recording that only a bucket has: all is as with a local store."""

import json
import shutil
from pathlib import Path

import pytest
from bucket_samples import Place
from conftest import Ended, HomeAfter, Run

from cache.base.home import Home
from cache.bucket import BucketStore
from cache.manifest import list_manifests
from seeonce.runs.results import read_results
from seeonce.runs.run import Result

ASK = "seeonce describe demo --json --fresh --max-tokens 4 --prompt What? --prompt Where?"


@pytest.fixture
def url(home: Path, home_after: HomeAfter, run: Run, tmp_path: Path) -> str:
    """A bucket with the first six frames of the demo; the home is empty."""
    shutil.copytree(home_after(("seeonce encode demo --limit 6",)), home)
    url = f"memory://{tmp_path}"
    assert run(f"seeonce store push demo {url}").code == 0
    shutil.rmtree(home)
    return url


def lines(ended: Ended) -> list[Result]:
    """The lines of the run that a command made."""
    return list(read_results(Path(ended.json["path"]), pytest.fail, logprobs=True))


def test_describe_from_a_bucket_gives_the_lines_of_a_local_store(
    url: str, run: Run, home: Path, home_after: HomeAfter
) -> None:
    there = run(f"{ASK} --from {url}")
    assert (there.code, len(lines(there))) == (0, 12)
    assert list_manifests(Home(home)) == []
    found = lines(there)
    shutil.rmtree(home)
    shutil.copytree(home_after(("seeonce encode demo --limit 6",)), home)
    assert found == lines(run(ASK))


def test_a_run_from_a_bucket_is_gone_on_with(url: str, run: Run, home: Path, tmp_path: Path) -> None:
    place = Place(BucketStore.open(url))
    manifest = place.store.read_manifest(place.store.list_manifests(pytest.fail)[0])
    key = manifest.frames[2].key
    chunk = place.raw(key, "c.0.0.0")
    place.remove(key, "c.0.0.0")
    begun = run(f"{ASK} --from {url}")
    num_gone = 2 * sum(frame.key == key for frame in manifest.frames)
    assert (begun.code, begun.json["totals"]["num_errors"]) == (3, num_gone)
    place.replace(key, "c.0.0.0", chunk)
    assert run("seeonce describe --resume latest").code == 1
    done = run(f"seeonce describe --resume latest --json --from {url}")
    assert (done.code, len(lines(done)), done.json["id"]) == (0, 12, begun.json["id"])


def test_an_experiment_asks_a_recording_of_a_bucket(url: str, run: Run, tmp_path: Path) -> None:
    experiment = tmp_path / "experiment.toml"
    experiment.write_text('recordings = ["latest"]\n[prompts]\nwhat = "What?"\n[sampling]\nmax_tokens = 2\n')
    done = run(f"seeonce run --json --from {url}", experiment)
    assert done.code == 0, done.err
    assert [one["run"]["recording"] for one in json.loads(done.out)] == ["demo"]


def test_a_sample_from_a_bucket_is_held_against_live_encoding(url: str, run: Run) -> None:
    ended = run(f"verify-cache demo --json --sample 2 --level embeddings --from {url}")
    checks = {check["name"]: check for check in ended.json["checks"]}
    assert (ended.code, checks["bytes"]["num_checked"], checks["embeddings"]["num_checked"]) == (0, 2, 2)


def test_a_flipped_bit_in_a_bucket_is_found(url: str, run: Run) -> None:
    place = Place(BucketStore.open(url))
    manifest = place.store.read_manifest(place.store.list_manifests(pytest.fail)[0])
    chunk = bytearray(place.raw(manifest.frames[0].key, "c.0.0.0"))
    chunk[100] ^= 1
    place.replace(manifest.frames[0].key, "c.0.0.0", bytes(chunk))
    ended = run(f"verify-cache demo --json --sample all --level bytes --from {url}")
    assert (ended.code, len(ended.json["checks"][0]["problems"])) == (1, 1)


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("seeonce describe monday --from memory://none", "there is no store at memory://none"),
        ("seeonce describe monday --from {url}", "has no recording 'monday'; it has demo"),
        ("verify-cache --all --from {url}", "leave RECORDING, --level, --controls and --from out"),
    ],
)
def test_what_is_not_there_is_said(command: str, problem: str, url: str, run: Run) -> None:
    ended = run(command.format(url=url))
    assert ended.code in (1, 2)
    assert problem in ended.error
