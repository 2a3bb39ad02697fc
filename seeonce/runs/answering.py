"""From asks to replies: the language model, loaded when the first ask needs it and kept for the next run.

Owns the way from an ask to tokens and from tokens back to text. Does not know what is answered already,
nor what is done with a reply.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from infer.stop import before_stop
from seeonce.runs.answers import without_reasoning
from seeonce.runs.known import Reply
from seeonce.runs.plan import Ask
from seeonce.runs.run import Candidate, TokenLogprob, Usage
from seeonce.runs.selection import Selected

if TYPE_CHECKING:
    from cache.store import Store
    from infer.batching import Answer
    from infer.engine_stats import EngineStats
    from infer.hooks import RowHooks, TokenLogprobs
    from infer.limits import BatchLimits
    from infer.mlx_vlm_adapter import LanguageHalf
    from infer.sampling import Sampling
    from infer.schema import Guide
    from infer.tokenizer import ChatTokenizer


@dataclass(frozen=True, eq=False)
class _Loaded:
    path: Path
    dtype: str
    tokenizer: "ChatTokenizer"
    half: "LanguageHalf"

    @cached_property
    def guide(self) -> "Guide":
        """The tokenizer as a schema needs it, which takes about a second."""
        from infer.schema import Guide

        return Guide(self.tokenizer.backend, self.tokenizer.stop_ids)


class Answerer:
    """Answers asks with the checkpoint at hand; one checkpoint is held at a time."""

    def __init__(self) -> None:
        self._loaded: _Loaded | None = None

    def replies(
        self,
        selected: Selected,
        store: "Store",
        asks: Sequence[Ask],
        sampling: "Sampling",
        limits: "BatchLimits",
        report: "Callable[[EngineStats], None]",
    ) -> Iterator[tuple[Ask, Reply]]:
        """Answer ``asks``, yielding each as it is finished; ``report`` is told at the end what was done.

        Raises:
            CheckpointError: the model does not load.
        """
        from infer.batching import answer_all
        from infer.request import Request
        from infer.request_hooks import request_hooks
        from infer.stored import StoredFeatures

        loaded = self._load(selected)
        tokenizer, by_number = loaded.tokenizer, {ask.number: ask for ask in asks}
        requests = (
            Request(ask.number, tokenizer.encode(ask.segments, ask.system), ask.frames, sampling)
            for ask in asks
        )
        source = StoredFeatures(store, selected.manifest.recording.id)

        def hooks_of(request: Request) -> "RowHooks":
            schema = None
            if sampling.schema is not None:
                numbered = by_number[request.id].numbered
                schema = loaded.guide.processor(sampling.schema, len(request.frames), numbered=numbered)
            return request_hooks(request, tokenizer.decode, schema)

        answers = answer_all(requests, loaded.half, source, tokenizer.stop_ids, limits, hooks_of, report)
        for answer in answers:
            yield by_number[answer.request.id], _reply(answer, tokenizer)

    def _load(self, selected: Selected) -> _Loaded:
        from infer.mlx_vlm_adapter import LanguageHalf
        from infer.tokenizer import ChatTokenizer

        folder, config = selected.folder, selected.config
        dtype = selected.manifest.encoder.compute_dtype
        loaded = self._loaded
        if loaded is None or (loaded.path, loaded.dtype) != (folder.path, dtype):
            self._loaded = None  # before the next one comes: two may not fit
            tokenizer = ChatTokenizer(folder, config)
            loaded = _Loaded(folder.path, dtype, tokenizer, LanguageHalf(folder, config, dtype))
            self._loaded = loaded
        return loaded


def _reply(answer: "Answer", tokenizer: "ChatTokenizer") -> Reply:
    whole, sampling = tokenizer.decode(answer.tokens), answer.request.sampling
    kept = before_stop(whole, sampling.stop)
    finish_reason = answer.finish_reason if kept == whole else "stop"
    if sampling.schema is None:  # under a schema an answer cannot reason
        kept = without_reasoning(kept, opened=tokenizer.opens_think)
    return Reply(
        kept,
        finish_reason,
        Usage(len(answer.request.prompt.ids), len(answer.tokens)),
        None if sampling.logprobs is None else _logprobs(answer.logprobs, tokenizer),
        answer.error,
    )


def _logprobs(noted: "Sequence[TokenLogprobs]", tokenizer: "ChatTokenizer") -> tuple[TokenLogprob, ...]:
    def candidate(token: int, logprob: float) -> Candidate:
        return Candidate(token, tokenizer.decode([token]), logprob)

    return tuple(
        TokenLogprob(
            one.token,
            tokenizer.decode([one.token]),
            one.logprob,
            tuple(candidate(*each) for each in one.top),
        )
        for one in noted
    )
