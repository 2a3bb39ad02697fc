"""The outputs level of verify-cache: answers from the store against live ones.

mlx-vlm answers each question live, one at a time, from the picture itself. Then pass two answers from the
store, batched as ``seeonce describe`` does by default, and its answers are compared. At last live's answers
are forced on the batch, and log-probabilities are compared at every position: from the store and, where every
bit of the features agrees, from live features under the same schedule.
"""

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np

from cache.base.listener import Listener
from cache.manifest import FrameEntry
from cache.store import Store
from infer.engine import Engine, EngineStats
from infer.features import FeatureSource, StoredFeatures
from infer.hooks import RowHooks
from infer.limits import BatchLimits
from infer.request import Answer, Image, Request, Segment, Text
from infer.sampling import Sampling
from infer.sequence import sampling_hooks
from infer.tokenizer import ChatTokenizer
from seeonce.runs.prompts import DEFAULT_PROMPT, Prompt
from seeonce.runs.recording import Selected
from seeonce.verifier.differences import first_difference, logprob_distances, margin_at, trace_problem
from seeonce.verifier.embeddings import EmbeddingCheck
from seeonce.verifier.reference import LiveAnswer, LiveReference, Picture
from seeonce.verifier.report import Check, LogprobFigures, Tolerances

_MAX_TOKENS = 64
_PAIR_PROMPT = Prompt("What is different between these two?")
_NUM_PAIRS = 2  # questions about two frames: their order must not be lost
_NUM_NOISE = 4  # entries about which live is asked twice, to see how far its own rounding goes
_PROMPTS = (Prompt(DEFAULT_PROMPT), Prompt("Which applications are open?"))

Trace = list[tuple[int, tuple[float, ...], int]]
"""Per position the token taken, log-probabilities of the tokens asked for, the best token."""


class OutputCheck:
    """Answers two questions about each entry whose features were compared, and holds them against live."""

    def __init__(
        self, store: Store, selected: Selected, limits: BatchLimits, allowed: Tolerances, listener: Listener
    ) -> None:
        """Answer from ``store`` with the limits that pass two would have."""
        self._selected, self._limits, self._allowed, self._listener = selected, limits, allowed, listener
        self._store = store
        self._requests: list[Request] = []
        self._live: list[LiveAnswer] = []
        self._noise: list[float] = []
        self._last: tuple[FrameEntry, Picture] | None = None
        self._problems: list[str] = []
        self._near_ties: set[int] = set()
        self._max_in_flight = self._num_done = self._num_all = 0

    @property
    def _mean_allowed(self) -> float:
        """The tolerance of the mean: more where live itself rounds more, within bounds."""
        allowed = self._allowed.mean_logprob
        if self._allowed.given:
            return allowed
        noise = sum(self._noise) / len(self._noise) if self._noise else 0.0
        return min(max(allowed, 3 * noise), 3 * allowed)

    def ask_live(self, frame: FrameEntry, picture: Picture, reference: LiveReference) -> None:
        """Let mlx-vlm answer about a picture, right after its features were compared: it is encoded once."""
        for prompt in _PROMPTS:
            answer = self._ask((frame,), (picture,), prompt, reference)
        if len(self._noise) < _NUM_NOISE:
            other = reference.answer((picture,), prompt.text, _MAX_TOKENS, 3, answer.top_tokens)
            # Both were asked about the same beginning up to the first token that differs.
            parted = first_difference(answer.tokens, other.tokens)
            agreed = 1 + (len(answer.tokens) if parted is None else parted)
            distances = logprob_distances(answer.top_logprobs[:agreed], other.top_logprobs[:agreed])
            self._noise.append(float(np.mean([distance.mean() for distance in distances])))
        num_pairs = sum(len(request.frames) > 1 for request in self._requests)
        if self._last is not None and num_pairs < _NUM_PAIRS:
            other_frame, other_picture = self._last
            self._ask((frame, other_frame), (picture, other_picture), _PAIR_PROMPT, reference)
        self._last = (frame, picture)

    def _ask(
        self,
        frames: tuple[FrameEntry, ...],
        pictures: tuple[Picture, ...],
        prompt: Prompt,
        reference: LiveReference,
    ) -> LiveAnswer:
        answer = reference.answer(pictures, prompt.text, _MAX_TOKENS)
        segments: tuple[Segment, ...] = (*map(Image, frames), Text(prompt.text))
        self._requests.append(Request(len(self._requests), segments, Sampling(max_tokens=_MAX_TOKENS)))
        self._live.append(answer)
        return answer

    def run(self, embeddings: EmbeddingCheck) -> Check:
        """Answer from the store what live was asked, and compare."""
        num_answers = len(self._requests)
        requests = self._full_batch()
        self._num_all = len(requests) * (3 if embeddings.all_exact else 2)
        selected = self._selected
        dtype = selected.manifest.encoder.compute_dtype
        engine = Engine.load(selected.checkpoint, dtype)
        source = StoredFeatures(self._store, selected.manifest.recording.id)
        self._compare_answers(requests, engine, source)
        from_store = self._forced(requests, engine, source)
        if embeddings.all_exact:
            from_live = self._forced(requests, engine, embeddings)
            for request in requests:
                if from_store[request.id] != from_live[request.id]:
                    self._object(
                        request, "log-probabilities from the store are not exactly those from live features"
                    )
        if dtype == "float32":
            self._compare_seeds(requests, engine, source)
        return self._verdict(replace(self._compare_traces(requests, from_store), num_answers=num_answers))

    def _full_batch(self) -> list[Request]:
        """Repeat what is asked until a batch is full: faults of full batches show in full batches only."""
        copies = -(-(self._limits.max_num_seqs or 1) // max(1, len(self._requests)))
        return [replace(request, id=number) for number, request in enumerate(self._requests * copies)]

    def _live_of(self, request: Request) -> LiveAnswer:
        return self._live[request.id % len(self._live)]

    def _compare_answers(self, requests: list[Request], engine: Engine, source: FeatureSource) -> None:
        """Hold the answers of pass two against live's."""
        answers: dict[int, Answer] = {}
        for request, answer in engine.answer(
            requests, source, self._limits, hooks_of=sampling_hooks, report=self._note_in_flight
        ):
            answers[request.id] = answer
            self._show_one_more()
        for request in requests:
            live, found = self._live_of(request), answers.get(request.id)
            problem = answer_problem(request, live, found, engine.tokenizer, self._allowed.logprob)
            self._object(request, problem)
            if problem is None and found is not None and found.tokens != live.answer_tokens:
                self._near_ties.add(request.id % len(self._live))  # repeats count once

    def _show_one_more(self) -> None:
        self._num_done += 1
        self._listener.show("outputs", "answer", self._num_done, self._num_all)

    def _note_in_flight(self, stats: EngineStats) -> None:
        self._max_in_flight = stats.max_in_flight

    def _in_flight_words(self) -> str:
        """Say how many answers decoded at once: memory may admit fewer than are allowed."""
        allowed = self._limits.max_num_seqs or 0
        fewer = f" ({allowed} were allowed)" if self._max_in_flight < allowed else ""
        return f"up to {self._max_in_flight} in flight{fewer}"

    def _forced(self, requests: list[Request], engine: Engine, source: FeatureSource) -> dict[int, Trace]:
        """Decode live's answers, each to its end, and return how likely the batch found every token."""
        watchers, forced = {}, []
        for request in requests:
            live = self._live_of(request)
            watchers[request.id] = Watcher(live.tokens, live.top_tokens)
            forced.append(replace(request, sampling=Sampling(max_tokens=len(live.tokens))))
        traces = {}
        answers = engine.answer(
            forced,
            source,
            self._limits,
            hooks_of=lambda sequence: RowHooks((watchers[sequence.request.id],)),
            stop_ids=frozenset(),  # a stop token of live is compared like any other
        )
        for request, answer in answers:
            traces[request.id] = watchers[request.id].trace(len(answer.tokens))
            self._show_one_more()
        return traces

    def _compare_seeds(self, requests: list[Request], engine: Engine, source: FeatureSource) -> None:
        """Draw the same request twice under one seed and once under another, among the others.

        At a high temperature, so that another stream gives other tokens; in float32 alone, where rounding
        never decides.
        """
        first = requests[0]
        drawn = [
            replace(first, id=-1 - seed, sampling=Sampling(100.0, seed=max(seed, 1), max_tokens=16))
            for seed in range(3)
        ]
        others = [replace(request, sampling=Sampling(max_tokens=4)) for request in requests[1:4]]
        asked = [drawn[0], *others, *drawn[1:]]
        answers = engine.answer(asked, source, self._limits, hooks_of=sampling_hooks, stop_ids=frozenset())
        found = {request.id: answer.tokens for request, answer in answers}
        if found[-1] != found[-2]:
            self._object(first, "a sampled answer does not repeat under its seed")
        if found[-1] == found[-3]:
            self._object(first, "a sampled answer is the same under another seed")

    def _compare_traces(self, requests: list[Request], traces: dict[int, Trace]) -> LogprobFigures:
        """Hold the batch's log-probabilities of live's tokens against live's own."""
        means, largest, num_others = [], [], 0
        for request in requests:
            live, trace = self._live_of(request), traces[request.id]
            distances = logprob_distances([logprobs for _, logprobs, _ in trace], live.top_logprobs)
            best_tokens = [best for _, _, best in trace]
            self._object(
                request,
                trace_problem(live.tokens, live.margins, distances, best_tokens, self._allowed.logprob),
            )
            means += [float(distance.mean()) for distance in distances]
            largest += [float(distance[0]) for distance in distances]
            num_others += sum(best != token for best, token in zip(best_tokens, live.tokens, strict=False))
        figures = LogprobFigures(
            num_answers=len(requests),
            num_positions=len(means),
            num_other_answers=len(self._near_ties),
            num_other_tokens=num_others,
            max_abs=max(largest, default=0.0),
            mean_abs=sum(means) / len(means) if means else 0.0,
            mean_allowed=self._mean_allowed,
        )
        if not figures.mean_abs <= self._mean_allowed:
            self._problems.append(
                f"log-probabilities lie {figures.mean_abs:.3g} away from live in the mean over "
                f"{figures.num_positions} positions; tolerance {self._mean_allowed:.2g}"
            )
        return figures

    def _object(self, request: Request, problem: str | None) -> None:
        named = " and ".join(str(frame.index) for frame in request.frames)
        line = f"frame {named}: {problem}"
        if problem is not None and line not in self._problems:
            self._problems.append(line)

    def _verdict(self, figures: LogprobFigures) -> Check:
        num_entries = len({key for request in self._requests for key in request.keys})
        num_total = len({frame.key for frame in self._selected.manifest.frames})
        words = (
            f"{figures.num_answers} answers about {num_entries} of {num_total} entries, "
            f"{self._in_flight_words()}, "
        )
        if self._problems:
            words += f"unlike those of mlx-vlm live, one at a time: {len(self._problems)} problems"
        else:
            words += (
                f"are those of mlx-vlm live, one at a time{_near_tie_words(figures)}; at each of "
                f"{figures.num_positions} positions the token's log-probability is within "
                f"{figures.max_abs:.2g}, those of the eight most likely within {figures.mean_abs:.2g} in the "
                "mean"
            )
        return Check(
            name="outputs",
            equal=not self._problems,
            words=words,
            num_checked=num_entries,
            num_total=num_total,
            problems=tuple(self._problems),
            logprobs=figures,
        )


def _near_tie_words(figures: LogprobFigures) -> str:
    if not figures.num_near_ties:
        return ""
    return (
        f" but for near-ties of live ({figures.num_other_answers} answers go on otherwise from there, "
        f"another token would have won at {figures.num_other_tokens} positions)"
    )


def answer_problem(
    request: Request, live: LiveAnswer, answer: Answer | None, tokenizer: ChatTokenizer, tolerance: float
) -> str | None:
    """Say how the answer of pass two is not live's; where it first differs, live's margin may be so small."""
    if answer is None:
        return "pass two gave no answer"
    if answer.error is not None:
        return answer.error
    if tokenizer.encode(request.segments).ids != live.prompt_ids:
        return "the prompt has other tokens than mlx-vlm gives it"
    want = live.answer_tokens
    at = first_difference(answer.tokens, want)
    if at is not None:
        margin = margin_at(live.margins, at)
        if margin <= tolerance:
            return None
        if at == min(len(answer.tokens), len(want)):
            return f"{len(answer.tokens)} tokens, live gives {len(want)}"
        return f"token {at} is another one, live's margin is {margin:.3g}"
    if (answer.finish_reason == "stop") != live.stopped:
        return f"it ends by {answer.finish_reason!r}, live {'does' if live.stopped else 'does not'} stop"
    if tokenizer.decode(answer.tokens) != live.text:
        return "the same tokens become another text than mlx-vlm's tokenizer gives"
    return None


class Watcher:
    """Makes a row take given tokens; records the log-probabilities of those asked for at each step."""

    def __init__(self, forced: Sequence[int], asked: Sequence[Sequence[int]]) -> None:
        """Watch a row that takes ``forced``; ``asked`` are tokens for each of its steps."""
        self._forced, self._asked = forced, asked
        self._steps: list[tuple[mx.array, mx.array, mx.array]] = []

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:  # noqa: ARG002
        """Record the first token; ``tokens`` are the prompt's."""
        return self.process_last_token(-1, logits)

    def process_last_token(self, last_token: int, logits: mx.array) -> mx.array:  # noqa: ARG002
        """Record a step of ``(1, vocab)`` logits and return those that choose the token."""
        # One step is decoded ahead of the last token; what it takes is never used.
        step = min(len(self._steps), len(self._forced) - 1)
        logits = logits.astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        best = mx.argmax(logits, axis=-1)
        taken = mx.array([self._forced[step]])
        self._steps.append((taken, logprobs[0, mx.array(list(self._asked[step]))], best))
        mx.async_eval(list(self._steps[-1]))  # type: ignore[no-untyped-call]
        return mx.where(mx.arange(logits.shape[-1])[None] == taken[:, None], 0.0, -mx.inf)

    def trace(self, num_tokens: int) -> Trace:
        """Return the first ``num_tokens`` steps."""
        return [
            (_int(taken), tuple(map(float, np.array(logprobs))), _int(best))
            for taken, logprobs, best in self._steps[:num_tokens]
        ]


def _int(array: mx.array) -> int:
    return int(np.array(array).item())
