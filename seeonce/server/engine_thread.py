"""The one thread that computes: it decodes for all clients, and encodes new pictures in between."""

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from cache.base.errors import InputError, SeeonceError
from cache.base.home import Home
from cache.key import EntryKey
from infer.hooks import RowHooks
from infer.request import Answer, Request
from infer.sequence import Sequence
from seeonce.server.errors import ApiError, as_api_error, refused
from seeonce.server.features import ServedFeatures
from seeonce.server.jobs import Accepted, Choice, Job, NewPicture
from seeonce.server.loaded import LoadedModel
from seeonce.server.metrics import Metrics
from seeonce.server.models import ServedModel
from seeonce.server.options import ServeOptions

if TYPE_CHECKING:
    from infer.engine import EngineStats

_HELD_BYTES = 1 << 30  # of features just encoded, beyond which decoding goes first
_RETRY_S = 5
_FEW = 4  # answers in flight up to which a stream is told of each token
_PIECE_S = 0.1  # with more, words come together: each piece costs the server and the client

T = TypeVar("T")
_log = logging.getLogger("seeonce.server")


class EngineThread:
    """Answers jobs in the order in which they come, many at once, one model at a time."""

    def __init__(
        self,
        home: Home,
        options: ServeOptions,
        features: ServedFeatures,
        metrics: Metrics,
        say: Callable[[str], None],
    ) -> None:
        """Begin with nothing loaded; a model that nobody asks for is unloaded after ``idle_unload_s``."""
        self._home, self._options, self._features = home, options, features
        self._metrics, self._say = metrics, say
        self._arrived: deque[Job | Callable[[], None]] = deque()  # a function is run between jobs
        self._changed = threading.Condition()
        self._ending = False
        self._num_open = 0  # answers that were asked for and have not ended
        self._ids = count(1)
        self._choices: dict[int, Choice] = {}
        self._ready: deque[Request] = deque()
        self._with_engine: set[int] = set()
        self._encoding: deque[Job] = deque()
        self._holds: dict[Job, list[EntryKey]] = {}
        self._encode_again_s = 0.0
        self._loaded: LoadedModel | None = None
        self._thread = threading.Thread(target=self._run, name="seeonce-engine", daemon=True)

    @property
    def loaded(self) -> str | None:
        """The name of the model that is loaded."""
        loaded = self._loaded
        return None if loaded is None else loaded.model.name

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End when the step that runs is done; whoever still waits is told."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        for choice in list(self._choices.values()):
            choice.job.cancel()
        self._thread.join()
        self._features.close()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run a function in this thread, between jobs."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        with self._changed:
            self._arrived.append(run)
            self._changed.notify()
        return future

    def submit(self, job: Job) -> None:
        """Take a job.

        Raises:
            ApiError: it asks for too many, or too many are waiting.
        """
        if len(job.requests) > self._options.max_open:
            raise refused(
                f"{len(job.requests)} answers at once; at most {self._options.max_open} are waited for."
            )
        with self._changed:
            if self._ending or self._num_open + len(job.requests) > self._options.max_open:
                raise ApiError(
                    503,
                    f"{self._num_open} answers are waited for already: ask again in a while.",
                    code="queue_full",
                    headers={"Retry-After": str(_RETRY_S)},
                )
            self._num_open += len(job.requests)
            self._arrived.append(job)
            self._changed.notify()
        self._count()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._arrived and not self._ending:
                    wait_s = self._options.idle_unload_s if self._loaded is not None else None
                    if not self._changed.wait(wait_s) and self._loaded is not None:
                        self._unload()
                if self._ending:
                    break
                head = self._arrived[0]
                if not isinstance(head, Job):
                    self._arrived.popleft()
            if isinstance(head, Job):
                with self._features.in_use(head.model.name):
                    self._answer(head.model)
            else:
                head()
        error = ApiError(503, "The server ends: ask again later.", headers={"Retry-After": str(_RETRY_S)})
        self._end_open(error)
        self._end_arrived(error)
        if (mlx := sys.modules.get("mlx.core")) is not None:
            mlx.clear_streams()  # MLX's own threads: left to the end of the process, they abort it

    def _answer(self, model: ServedModel) -> None:
        """Answer jobs of one model until none is left, or one of another model is next."""
        try:
            loaded = self.load(model)
        except Exception as error:
            _log.exception("%s does not load", model.name)
            self._end_arrived(_failed(error), model)
            return
        try:
            answers = loaded.engine.answer(
                self._requests(loaded),
                self._features,
                loaded.limits,
                hooks_of=self._hooks,
                report=self._report,
                prefixes=loaded.prefixes,
            )
            for request, answer in answers:
                self._answered(request, answer)
                if self._ending:
                    return
        except Exception as error:  # a bug of ours, or no memory: the server lives on
            _log.exception("those in flight were ended by an error")
            self._end_open(_failed(error))

    def _report(self, stats: "EngineStats") -> None:
        for line in stats.notes:
            self._say(line)

    def load(self, model: ServedModel) -> LoadedModel:
        """Return a model, loaded now if it is not. To be run in this thread.

        Raises:
            CheckpointError: it does not load.
        """
        if self._loaded is None or self._loaded.model != model:
            self._unload()  # before the next one comes: two may not fit
            self._loaded = LoadedModel(self._home, model, self._options, self._say)
            self._say(f"Loaded {model.name}.")
        return self._loaded

    def _unload(self) -> None:
        if self._loaded is not None:
            self._say(f"Unloaded {self._loaded.model.name}.")
            self._loaded = None
            import mlx.core as mx

            mx.clear_cache()

    def _requests(self, loaded: LoadedModel) -> Iterator[Request | None]:
        """Give the engine what is ready; ``None`` when nothing is, and it has others to decode."""
        while not self._ending:
            self._accept(loaded)
            if self._ready:
                request = self._ready.popleft()
                self._with_engine.add(request.id)
                self._count()
                yield request
            elif self._encoding and self._may_encode():
                self._encode_next(loaded)
            elif self._with_engine:
                yield None
            else:
                return

    def _accept(self, loaded: LoadedModel) -> None:
        """Take in the jobs that have arrived for the model, as far as they fit."""
        while True:
            with self._changed:
                head = self._arrived[0] if self._arrived else None
                if not isinstance(head, Job) or head.model != loaded.model:
                    return
                self._arrived.popleft()
            requests = tuple(replace(request, id=next(self._ids)) for request in head.requests)
            try:
                prompts = {each.segments: each for each in requests}.values()  # choices share theirs
                problem = next(filter(None, (loaded.problem(head, each) for each in prompts)), None)
            except Exception as error:  # what its template does not take: the others go on
                _log.exception("a prompt was refused by an error")
                problem = _failed(error)
            if problem is not None:
                self._closed(len(requests))
                head.emit(problem)
                continue
            for index, request in enumerate(requests):
                self._choices[request.id] = Choice(head, index, self._first_token, self._tick)
            head.requests = requests
            head.emit(Accepted())
            self._holds[head] = []
            if head.pictures:
                self._encoding.append(head)
            else:
                self._ready.extend(requests)

    def _may_encode(self) -> bool:
        """Decoding gets half of the time, and all of it while too many features wait to be read."""
        if not self._with_engine:
            return True
        return time.monotonic() >= self._encode_again_s and self._features.held_bytes < _HELD_BYTES

    def _encode_next(self, loaded: LoadedModel) -> None:
        """Encode one picture of the first job that has one; a job without any left is ready."""
        job = self._encoding[0]
        try:
            if job.pictures and not job.cancelled:
                picture, *rest = job.pictures
                job.pictures = tuple(rest)
                began_s = time.monotonic()
                self._encode(loaded, job, picture)
                ended_s = time.monotonic()
                self._encode_again_s = ended_s + (ended_s - began_s)
        except SeeonceError as error:
            self._encoding.popleft()
            self._end(job, as_api_error(error, "messages"))
            return
        if job.cancelled:
            self._encoding.popleft()
            self._end(job, ApiError(499, "The client is gone."))
        elif not job.pictures:
            self._encoding.popleft()
            self._ready.extend(job.requests)

    def _encode(self, loaded: LoadedModel, job: Job, picture: NewPicture) -> None:
        key = picture.frame.key
        if not self._features.hold(key):
            if self._features.is_stored(key):
                return
            encoder = loaded.encoder()
            self._features.put(picture, encoder.encode(picture.patches), encoder.provenance)
            self._metrics.images_encoded.inc()
        self._holds[job].append(key)

    def _hooks(self, sequence: Sequence) -> RowHooks:
        """Return what a request brings into the batch, its client's watch before the others."""
        choice = self._choices[sequence.request.id]
        if choice.job.cancelled or self._loaded is None:
            raise InputError("The client is gone.")
        engine = self._loaded.engine
        try:
            hooks = engine.hooks(sequence)
            if not choice.job.keep:
                sequence.prefix_name = None  # before what to keep is asked: nothing goes to the disk
            choice.begin(sequence, engine.tokenizer)
        except SeeonceError:
            raise
        except Exception as error:  # a bug of ours: the other requests go on
            _log.exception("a request was ended by an error")
            raise SeeonceError(f"The request failed ({type(error).__name__}).") from error
        return replace(hooks, watches=(choice, *hooks.watches))

    def _first_token(self, job: Job) -> None:
        self._metrics.first_token.observe(time.monotonic() - job.arrived_s)

    def _tick(self) -> float:
        """Return the time; with many in flight it moves on by ``_PIECE_S``, so that all are told at once."""
        now_s = time.monotonic()
        return now_s if len(self._with_engine) <= _FEW else now_s - now_s % _PIECE_S

    def _answered(self, request: Request, answer: Answer) -> None:
        choice = self._choices.pop(request.id)
        self._with_engine.discard(request.id)
        self._closed(1)
        if choice.sequence is not None:
            self._metrics.prompt_tokens.inc(answer.usage.prompt_tokens)
            self._metrics.completion_tokens.inc(answer.usage.completion_tokens)
            self._metrics.cached_tokens.inc(choice.sequence.num_shared)
            self._metrics.prefixes_reused.inc(choice.sequence.num_shared > 0)
        if all(each.id not in self._choices for each in choice.job.requests):
            self._features.release(self._holds.pop(choice.job, ()))
        if answer.finish_reason == "error":
            choice.job.emit(ApiError(500, answer.error or "The request failed."))
        else:
            choice.ended(answer)

    def _end(self, job: Job, error: ApiError) -> None:
        """End a job that the engine has not seen."""
        for request in job.requests:
            self._choices.pop(request.id, None)
        self._closed(len(job.requests))
        self._features.release(self._holds.pop(job, ()))
        job.emit(error)

    def _end_open(self, error: ApiError) -> None:
        """End every job that was accepted."""
        jobs = {choice.job: None for choice in self._choices.values()}
        num_open = len(self._choices)
        self._choices.clear()
        self._with_engine.clear()
        self._ready.clear()
        self._encoding.clear()
        self._closed(num_open)
        for job in jobs:
            self._features.release(self._holds.pop(job, ()))
            job.emit(error)

    def _end_arrived(self, error: ApiError, model: ServedModel | None = None) -> None:
        """End every job that has only arrived, or those for one model."""
        with self._changed:
            jobs = [job for job in self._arrived if isinstance(job, Job) and model in (None, job.model)]
            for job in jobs:
                self._arrived.remove(job)
        for job in jobs:
            self._closed(len(job.requests))
            job.emit(error)

    def _closed(self, num_answers: int) -> None:
        with self._changed:
            self._num_open -= num_answers
        self._count()

    def _count(self) -> None:
        self._metrics.in_flight.set(len(self._with_engine))
        self._metrics.queue.set(max(0, self._num_open - len(self._with_engine)))


def _failed(error: Exception) -> ApiError:
    if isinstance(error, SeeonceError):
        return as_api_error(error)
    return ApiError(500, f"The engine failed ({type(error).__name__}): ask again.")
