"""Work over many workers by Ray Data: shards of pass one into a bucket, and questions of pass two from one.

Ray only carries work to where it is done; whatever is to last lies in the bucket or in the run.
"""

import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from cache.base.errors import InputError, NotEncodedError, SeeonceError, StoreError
from cache.base.home import Home
from cache.base.listener import Listener
from cache.bucket import BucketStore
from cache.manifest import Manifest
from checkpoint.blas import num_threads, put_openblas_in_front
from precompute.options import EncodeOptions
from seeonce.runs.plan import computed_by

if TYPE_CHECKING:
    from infer.engine import EngineStats
    from infer.limits import BatchLimits
    from infer.request import Answer, Request
    from precompute.shards import Merged
    from seeonce.runs.describe import AnswerElsewhere, OnStats
    from seeonce.runs.recording import Selected

_SHARDS_A_WORKER = 4  # so that a fast one takes more of them, and a dead one costs less
_LOCAL_OBJECTS_BYTES = 256 << 20
_PASSED_ON = ("SEEONCE_MODEL", "SEEONCE_DTYPE", "HF_HUB_OFFLINE")


@dataclass(frozen=True, slots=True)
class Fleet:
    """How many workers, and what each needs. ``num_workers`` None is one a GPU, or one."""

    num_workers: int | None = None
    gpus_per_worker: float = 0

    def __post_init__(self) -> None:
        if (self.num_workers is not None and self.num_workers < 1) or self.gpus_per_worker < 0:
            raise InputError("--workers is at least 1 and --gpus-per-worker at least 0")


def encode_by_ray(
    fleet: Fleet, wanted: Sequence[EncodeOptions], bucket: BucketStore, listener: Listener
) -> "Iterator[Merged | SeeonceError]":
    """Encode recordings into a bucket and merge each; each worker reads them under the same path or address.

    One that is not found, cannot be read or merged gives its error, and the rest goes on.

    Raises:
        InputError: Ray is missing, or has too few GPUs.
        SeeonceError: a worker could not go on, for the reason that it says.
    """
    from precompute.shards import merge

    address, ids, failed = _shared(bucket.objects.address), dict[str, None](), dict[str, SeeonceError]()
    for options in wanted:
        for source in (options.recording, *map(str, options.images)):
            _shared(source)
    with _cluster(fleet) as num_workers:
        num_shards = -(-num_workers * _SHARDS_A_WORKER // len(wanted))
        shards = [(each, (number + 1, num_shards)) for each in wanted for number in range(num_shards)]
        listener.show("encode", "shard", 0, len(shards))
        for number, found in enumerate(_each(shards, _EncodesShards, (address,), fleet, num_workers), 1):
            if isinstance(found, InputError):
                failed[str(found)] = found
            elif isinstance(found, SeeonceError):
                raise found
            else:
                ids[found] = None
            listener.show("encode", "shard", number, len(shards))
    yield from failed.values()
    for id_ in ids:
        try:
            yield merge(bucket, id_, listener.say)
        except (InputError, NotEncodedError) as error:
            yield error


class _EncodesShards:
    """Encodes one shard after the other, with one load of the encoder."""

    def __init__(self, address: str) -> None:
        self._loaded = dict[Any, Any]()
        self._bucket = BucketStore.open(address, create=True)

    def __call__(self, item: tuple[EncodeOptions, tuple[int, int]]) -> str:
        from precompute.shards import encode_shard

        options, shard = item
        result = encode_shard(
            Home.locate(), options, Listener(), self._loaded, bucket=self._bucket, shard=shard
        )
        return result.manifest.recording.id


def answer_by_ray(fleet: Fleet, bucket: BucketStore) -> "AnswerElsewhere":
    """Return what answers requests over many workers, which read features from the bucket.

    Requests over the same frames stay together, so that their prefix is computed once.
    """
    address = _shared(bucket.objects.address)

    def answer(
        selected: "Selected", requests: "Sequence[Request]", limits: "BatchLimits", report: "OnStats"
    ) -> "Iterator[tuple[Request, Answer]]":
        here = computed_by()
        with _cluster(fleet) as num_workers:
            blocks = _blocks(requests, num_workers * _SHARDS_A_WORKER)
            by_id = {request.id: request for request in requests}
            arguments = (selected.model, selected.manifest, limits, address)
            for found in _each(blocks, _AnswersRequests, arguments, fleet, num_workers):
                if isinstance(found, SeeonceError):
                    raise found
                theirs, answers, stats = found
                if theirs != here:
                    raise InputError(
                        f"workers compute by {theirs}, this machine by {here}, and answers would be kept "
                        "under the wrong name: start the command on a machine like the workers"
                    )
                report(stats)
                yield from ((by_id[number], one) for number, one in answers)

    return answer


def _blocks(requests: "Sequence[Request]", num_blocks: int) -> "list[list[Request]]":
    """Cut requests into blocks of about one size, never between two over the same frames."""
    size, blocks = -(-len(requests) // num_blocks), list[list[Any]]()
    for _, group in groupby(requests, lambda request: request.keys):
        if not blocks or len(blocks[-1]) >= size:
            blocks.append([])
        blocks[-1] += group
    return blocks


class _AnswersRequests:
    """Answers one block of requests after the other, with one load of the model."""

    def __init__(self, model: str, manifest: Manifest, limits: "BatchLimits", address: str) -> None:
        from checkpoint.folder import find_checkpoint
        from infer.engine import Engine
        from infer.features import StoredFeatures

        checkpoint = find_checkpoint(model, lambda _: None)
        self._engine = Engine.load(checkpoint, manifest.encoder.compute_dtype)
        self._source = StoredFeatures(BucketStore.open(address), manifest.recording.id)
        self._limits = limits

    def __call__(self, requests: "Sequence[Request]") -> "tuple[str, list[tuple[int, Answer]], EngineStats]":
        stats = list[Any]()
        found = self._engine.answer(requests, self._source, self._limits, report=stats.append)
        answers = [(request.id, answer) for request, answer in found]
        return computed_by(), answers, stats[0]


class _Worker:
    """What Ray Data calls in an actor: ``make(*arguments)`` does the work; errors of ours travel as rows."""

    def __init__(self, make: Callable[..., Callable[[Any], Any]], arguments: Sequence[Any]) -> None:
        put_openblas_in_front()
        self._make, self._arguments = make, arguments
        self._work: Callable[[Any], Any] | None = None

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, list[bytes]]:
        done: list[Any] = []
        for row in rows["row"]:
            try:
                if self._work is None:
                    self._work = self._make(*self._arguments)
                done.append(self._work(pickle.loads(row)))  # noqa: S301 - from our own driver
            except SeeonceError as error:
                done.append(error)
        return {"row": [pickle.dumps(one) for one in done]}


def _each(
    items: Iterable[Any],
    make: Callable[..., Callable[[Any], Any]],
    arguments: Sequence[Any],
    fleet: Fleet,
    num_workers: int,
) -> Iterator[Any]:
    """Yield what workers make of items, or the error of each; an item of a worker that dies is done again."""
    from ray import data

    rows = [{"row": pickle.dumps(item)} for item in items]
    done = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,
        fn_constructor_args=(make, tuple(arguments)),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=num_workers),
        num_cpus=1,
        num_gpus=fleet.gpus_per_worker,
    )
    for row in done.iter_rows():
        yield pickle.loads(row["row"])  # noqa: S301 - from our own workers


@contextmanager
def _cluster(fleet: Fleet) -> Iterator[int]:
    """Join the cluster of RAY_ADDRESS, or start one on loopback for the block; yield how many workers."""
    try:
        import ray
        from ray import data
    except ImportError:
        raise InputError("--engine ray needs Ray: run pip install 'seeonce[fleet]'") from None
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with redirect_stdout(sys.stderr):  # what Ray says of workers that die is no result of ours
        address = os.environ.get("RAY_ADDRESS", "")
        try:
            ray.init(address or "local", **_settings(fleet, is_local=not address))
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise StoreError(f"no cluster of Ray at {address or 'this machine'}: {error}") from None
        try:
            data.DataContext.get_current().enable_progress_bars = False
            num_gpus = float(ray.cluster_resources().get("GPU", 0))
            num_workers = fleet.num_workers or max(1, int(num_gpus / (fleet.gpus_per_worker or 1)))
            if not address and (needed := fleet.gpus_per_worker * num_workers) > num_gpus:
                raise InputError(
                    f"{num_workers} workers need {needed:g} GPUs, here are {num_gpus:g}: lower --workers or "
                    "--gpus-per-worker, or set RAY_ADDRESS"
                )
            yield num_workers
        finally:
            ray.shutdown()


def _settings(fleet: Fleet, *, is_local: bool) -> dict[str, Any]:
    """Return what Ray is started with, once the environment says the rest.

    Ray would set OMP_NUM_THREADS to an actor's CPUs, which gives other bits: workers get what is used here.
    """
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    pinned = {name: value for name in _PASSED_ON if (value := os.environ.get(name))}
    if (threads := num_threads()) is not None:
        pinned |= {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    settings = {
        "runtime_env": {"env_vars": pinned},
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if is_local:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else it listens on all interfaces
        settings |= {
            "num_cpus": max(fleet.num_workers or 1, os.cpu_count() or 1),
            "include_dashboard": False,
            "object_store_memory": _LOCAL_OBJECTS_BYTES,
        }
    return settings


def _shared(address: str) -> str:
    if address.startswith("memory:"):
        raise InputError(f"{address} is in the memory of one process: give workers one that they can reach")
    return address
