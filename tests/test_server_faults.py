"""Servers that fail amid a push or a pull: bounded retries or one line, and nothing is lost or doubled."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest
from bucket_samples import Server
from s3_stand_in import Before, Fault, StandIn, stand_in
from store_samples import manifest, new_store, write

from cache import objects
from cache.base.errors import StoreError
from cache.base.listener import Listener
from cache.bucket import BucketStore
from cache.bucket_upkeep import check_bucket
from cache.entry import CHUNK_NAME
from cache.mirror import pull, push, with_remote
from cache.store import Store

NUM = 3
QUICK = timedelta(milliseconds=20)
SILENT = Listener()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[StandIn, Server]]:
    """A server whose clients wait for milliseconds where they would for minutes."""
    quick = {
        "max_retries": 3,
        "retry_timeout": timedelta(seconds=5),
        "backoff": {"init_backoff": QUICK, "max_backoff": QUICK, "base": 2},
    }
    for name in ("_RETRY", "_RETRY_BRIEFLY", "_RETRY_ANONYMOUS"):
        monkeypatch.setattr(objects, name, quick)
    monkeypatch.setattr(
        objects, "_CLIENT", {"connect_timeout": "1s", "read_timeout": "300ms", "timeout": "2s"}
    )
    monkeypatch.setattr(objects, "_WAIT_S", 0.01)
    with stand_in() as (server, place):
        for name, value in place.environ.items():
            monkeypatch.setenv(name, value)
        yield server, place


def local(folder: Path) -> Store:
    """A store with a recording."""
    store = new_store(folder)
    for number in range(NUM):
        write(store, number)
    store.write_manifest(manifest(NUM))
    return store


def after(num_requests: int, fault: Fault, num_faults: int = 1_000_000) -> Before:
    """Let requests pass, then answer some with a fault, then let the rest pass."""
    numbers = count()
    return lambda *_: fault if 0 <= next(numbers) - num_requests < num_faults else None


def is_whole(bucket: BucketStore) -> bool:
    """Say whether all that was to be pushed is in a bucket once, and right."""
    names = [item["path"] for item in bucket.objects.list("frames")]
    report = check_bucket(bucket, read_data=True)
    return (len(names), report.problems, len(bucket.list_manifests(pytest.fail))) == (2 * NUM, [], 1)


@pytest.mark.parametrize(
    "fault", [(503, "SlowDown"), (500, "InternalError"), (0, "drop"), (0, "stall"), (0, "cut")], ids=str
)
@pytest.mark.parametrize("num_requests", [pytest.param(3, marks=pytest.mark.campaign), 16])
def test_a_server_that_fails_for_a_moment_is_asked_again(
    served: tuple[StandIn, Server], fault: Fault, num_requests: int, tmp_path: Path
) -> None:
    server, place = served
    store, other = local(tmp_path / "a"), new_store(tmp_path / "b")
    bucket = BucketStore.open(place.address, create=True)
    server.before = after(num_requests, fault, 2)
    push(store, bucket, None, SILENT)
    server.before = after(num_requests, fault, 2)
    pull(other, bucket, None, SILENT)
    server.before = lambda *_: None
    assert is_whole(bucket)
    assert all(other.check(frame.key) is None for frame in manifest(NUM).frames)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ((503, "SlowDown"), "throttling"),
        ((400, "ExpiredToken"), "credentials have expired"),
        ((403, "RequestTimeTooSkewed"), "set the clock"),
        ((403, "AccessDenied"), "no right to do that"),
        ((301, "PermanentRedirect"), "AWS_REGION"),
        pytest.param((400, "AuthorizationHeaderMalformed"), "AWS_REGION", marks=pytest.mark.campaign),
        ((507, "InsufficientStorage"), "the bucket is full"),
        pytest.param((0, "stall"), "cannot be reached", marks=pytest.mark.campaign),
        ((0, "drop"), "cannot be reached"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(
    "num_requests", [4, *(pytest.param(at, marks=pytest.mark.campaign) for at in (0, 8))]
)
def test_a_server_that_fails_for_good_is_one_line_and_the_same_command_goes_on(
    served: tuple[StandIn, Server], fault: Fault, says: str, num_requests: int, tmp_path: Path
) -> None:
    server, place = served
    store, other = local(tmp_path / "a"), new_store(tmp_path / "b")
    bucket = BucketStore.open(place.address, create=True)

    def fails(work: Callable[[], object]) -> None:
        server.before = after(num_requests, fault)
        with pytest.raises(StoreError, match=says) as raised:
            work()
        assert "\n" not in str(raised.value)
        assert raised.value.args[0].startswith("s3://screens: cannot ")
        server.before = lambda *_: None

    fails(lambda: push(store, bucket, None, SILENT))
    assert not bucket.list_manifests(pytest.fail)
    push(store, bucket, None, SILENT)
    assert is_whole(bucket)
    fails(lambda: pull(other, bucket, None, SILENT))
    pull(other, bucket, None, SILENT)
    assert all(other.check(frame.key) is None for frame in manifest(NUM).frames)


def test_what_was_put_before_a_fault_is_not_put_again(served: tuple[StandIn, Server], tmp_path: Path) -> None:
    server, place = served
    store, bucket = local(tmp_path), BucketStore.open(place.address, create=True)
    put = count()

    def full(method: str, _: str) -> Fault | None:
        return (507, "InsufficientStorage") if method == "PUT" and next(put) >= 4 else None

    server.before = full
    with pytest.raises(StoreError, match="the bucket is full"):
        push(store, bucket, None, SILENT)
    there = {name for name in server.objects if name.endswith("zarr.json")}
    server.before = lambda *_: None
    server.asked.clear()
    push(store, bucket, None, SILENT)
    again = {name for method, name in server.asked if method == "PUT" and name.startswith("frames")}
    assert not {name.rpartition("/")[0] for name in there} & {name.rpartition("/")[0] for name in again}
    assert is_whole(bucket)


def test_a_put_whose_answer_was_lost_is_found_to_be_done(
    served: tuple[StandIn, Server], tmp_path: Path
) -> None:
    server, place = served
    store, bucket = local(tmp_path), BucketStore.open(place.address, create=True)
    cut = count()

    def lost(method: str, name: str) -> Fault | None:
        return (0, "lost") if method == "PUT" and name.endswith(CHUNK_NAME) and next(cut) < 2 else None

    server.before = lost
    push(store, bucket, None, SILENT)
    assert is_whole(bucket)


def test_reading_through_a_server_that_fails_warns_once_and_goes_on(
    served: tuple[StandIn, Server], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, place = served
    push(local(tmp_path / "a"), BucketStore.open(place.address, create=True), None, SILENT)
    reader = with_remote(new_store(tmp_path / "b"), {}, place.address)
    keys = [frame.key for frame in manifest(NUM).frames]
    server.before = after(4, (503, "SlowDown"))
    read = [reader.read(key) is not None for key in keys]
    assert read[0]
    assert not read[-1]
    assert [record.message.count("throttling") for record in caplog.records] == [1]
