"""Answers requests of Escribano's with one checkpoint, from stored features; what is new is encoded first."""

import gc
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from cache.base.errors import InputError, StoreError
from cache.base.home import Home
from cache.base.listener import Listener
from cache.leases import held_lease
from cache.pixel_index import PixelIndex
from cache.store import Store
from checkpoint.backend import import_mlx
from checkpoint.identity import find_encoder, remember_model
from infer.features import StoredFeatures
from infer.limits import BatchLimits
from infer.request import Answer, Image, Request, Text
from infer.sampling import Sampling
from seeonce.bridge.messages import LINE_SCHEMA, Asked, Picture, as_lines, read_messages
from seeonce.bridge.pictures import Pictures
from seeonce.verifier.canary import sound_limits

if TYPE_CHECKING:
    from infer.engine import Engine

TEMPERATURE = 0.3
TIMEOUT_S = 300
_RESERVED_TOKENS = 24_000

Reply = dict[str, object]


class Answerer:
    """One checkpoint that is asked about pictures; use as a context manager."""

    def __init__(self, home: Home, model: str, max_pixels: int | None, listener: Listener) -> None:
        """Find the checkpoint and open the store.

        Raises:
            CheckpointError: the model is missing or not supported.
        """
        self._home, self._say = home, listener.say
        self._checkpoint, spec = find_encoder(home, model, listener.say, max_pixels)
        self._dtype = spec.compute_dtype
        self._store = Store.open(home)
        self._index = PixelIndex(home)
        remember_model(self._index, spec.encoder_id, model, self._checkpoint)
        self._pictures = Pictures(self._store, self._index, self._checkpoint, spec)
        self._engine: Engine | None = None

    def __enter__(self) -> "Answerer":
        return self

    def __exit__(self, *_: object) -> None:
        self.keep()
        self._index.close()

    def load(self) -> "Engine":
        """Return the engine, loaded when it is not."""
        from infer.engine import Engine

        if self._engine is None:
            self._engine = Engine.load(self._checkpoint, self._dtype)
        return self._engine

    def unload(self) -> None:
        """Let go of all weights; the next request loads them again."""
        self._engine = None
        self._pictures.unload()
        gc.collect()
        import_mlx().clear_cache()

    def keep(self, *, at_once: bool = True) -> None:
        """Write what is to be kept of the pictures that were shown."""
        try:
            self._pictures.write(at_once=at_once)
        except StoreError as error:  # the next write tries again, and the entries are there for a day
            self._say(f"{error}")

    def infer(self, params: Mapping[str, object], max_tokens: int) -> Reply:
        """Answer messages: text and what it cost.

        Raises:
            SeeonceError: there is no answer.
        """
        asked, limits = read_messages(params), self._limits
        sampling = Sampling(
            temperature=TEMPERATURE, max_tokens=max_tokens, schema=LINE_SCHEMA if asked.wants_lines else None
        )
        with held_lease(self._store, "bridge"), _in_time():
            started_s = time.perf_counter()
            request, answer = self._answer(asked, sampling, limits)
            seconds = time.perf_counter() - started_s
        self.keep(at_once=False)
        if answer.error is not None:
            raise InputError(answer.error)
        usage = answer.usage
        return {
            "text": as_lines(request, answer) if asked.wants_lines else answer.text,
            "stats": {
                "prompt_tokens": usage.prompt_tokens,
                "generation_tokens": usage.completion_tokens,
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
                "prompt_tps": 0.0,  # not measured apart
                "generation_tps": usage.completion_tokens / seconds,
                "peak_memory_gb": import_mlx().get_peak_memory() / 1e9,
                "generate_time_s": seconds,
            },
        }

    def prompt_fit(self, params: Mapping[str, object], max_tokens: int) -> Reply:
        """Tell whether a prompt without pictures fits beside so many tokens of an answer."""
        asked = read_messages(params)
        segments = tuple(Text(part) for part in asked.parts if isinstance(part, str))
        num_tokens = len(self.load().tokenizer.encode(segments, asked.system).ids)
        limit = self._checkpoint.text.max_context
        budget = limit - max_tokens - _RESERVED_TOKENS
        return {
            "fits": num_tokens <= budget,
            "prompt_tokens": num_tokens,
            "context_limit": limit,
            "requested_output_tokens": max_tokens,
            "reserved_tokens": _RESERVED_TOKENS,
            "safe_input_budget": budget,
        }

    @cached_property
    def _limits(self) -> BatchLimits:
        """Limits that are right here, tried with the first request: a start must be done in two minutes."""
        return sound_limits(self._home, self._checkpoint, BatchLimits(), self._say)

    def _answer(self, asked: Asked, sampling: Sampling, limits: BatchLimits) -> tuple[Request, Answer]:
        """Ask; an entry that is found damaged meanwhile is gone, so its picture is encoded again, once."""
        request, answer = self._ask(asked, sampling, limits)
        if answer.error is not None and not all(map(self._store.exists, request.keys)):
            request, answer = self._ask(asked, sampling, limits)
        return request, answer

    def _ask(self, asked: Asked, sampling: Sampling, limits: BatchLimits) -> tuple[Request, Answer]:
        frames = iter(self._pictures.frames(asked.pictures) if asked.pictures else ())
        segments = tuple(
            Image(next(frames)) if isinstance(part, Picture) else Text(part) for part in asked.parts
        )
        request = Request(0, segments, sampling, asked.system, numbered=asked.wants_lines)
        engine = self.load()
        (answered,) = engine.answer([request], StoredFeatures(self._store, "bridge"), limits)
        return answered


@contextmanager
def _in_time() -> Iterator[None]:
    """Raise ``InputError`` in the main thread when the block takes longer than Escribano waits."""

    def end(*_: object) -> None:
        raise InputError(f"VLM inference timed out after {TIMEOUT_S}s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(TIMEOUT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
