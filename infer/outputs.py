"""The outputs level of verify-cache: answers from the store against live ones.

Two comparisons over the same requests. From the store and from live features under the same schedule:
tokens and log-probabilities must be exactly equal. Batched from the store against mlx-vlm live, one at a
time: live's answer is forced on the batch, and log-probabilities must agree at every position.
"""

from cache.manifest import FrameEntry
from cache.store import Store
from infer.batching import FeatureSource, Request, answer_all
from infer.compare import LOGPROB_TOLERANCE, unexplained
from infer.describe import Selected
from infer.limits import BatchLimits
from infer.live_side import LiveFeatures
from infer.mlx_vlm_adapter import LanguageHalf
from infer.prompt import DEFAULT_PROMPT, Prompt
from infer.reference import LiveAnswer, LiveReference
from infer.report import Check, Listener
from infer.sampling import Sampling
from infer.stored import StoredFeatures
from infer.teacher import Trace, Watcher
from infer.tokenizer import ChatTokenizer

_MAX_TOKENS = 64
_LIMITS = BatchLimits(max_num_seqs=4, prefill_batch_size=4, prefill_step_size=512)


def check_outputs(
    store: Store,
    selected: Selected,
    frames: list[FrameEntry],
    live_features: LiveFeatures,
    listener: Listener,
) -> Check:
    """Ask the default prompt of ``frames`` and compare the answers."""
    tokenizer = ChatTokenizer(selected.folder, selected.config)
    dtype = selected.manifest.encoder.compute_dtype
    half = LanguageHalf(selected.folder, selected.config, dtype)
    prompt = Prompt(DEFAULT_PROMPT)
    requests = [
        Request(number, tokenizer.encode(prompt.segments(frame)), (frame,), Sampling(max_tokens=_MAX_TOKENS))
        for number, frame in enumerate(frames)
    ]
    batch = _Batch(half, tokenizer.stop_ids)
    stored = StoredFeatures(store, selected.manifest.recording.id)
    listener.begin(len(frames), "outputs", "answer")
    free_stored = batch.traces(requests, stored, None)
    free_live = batch.traces(requests, live_features, None)
    reference = LiveReference(selected.folder, selected.config, selected.manifest.encoder)
    live: dict[int, LiveAnswer] = {}
    for number, frame in enumerate(frames):
        live[number] = reference.answer(live_features.image(frame), DEFAULT_PROMPT, _MAX_TOKENS)
        listener.advance()
    forced = batch.traces(requests, stored, live)
    tolerance = LOGPROB_TOLERANCE[dtype]
    problems = []
    for number, frame in enumerate(frames):
        problem = _problem(
            requests[number], free_stored[number], free_live[number], forced[number], live[number], tolerance
        )
        if problem is not None:
            problems.append(f"frame {frame.index}: {problem}")
    num_total = len({frame.key for frame in selected.manifest.frames})
    words = f"{len(frames)} of {num_total} entries asked; " + (
        f"{len(problems)} answers unlike live, tolerance {tolerance:g}"
        if problems
        else "from the store exactly as from live features, and batched as mlx-vlm one at a time "
        f"(log-probabilities within {tolerance:g})"
    )
    return Check("outputs", not problems, words, len(frames), num_total, tuple(problems))


class _Batch:
    """Runs the same requests again and again under one schedule."""

    def __init__(self, half: LanguageHalf, stop_ids: frozenset[int]) -> None:
        self._half, self._stop_ids = half, stop_ids

    def traces(
        self, requests: list[Request], source: FeatureSource, teachers: dict[int, LiveAnswer] | None
    ) -> dict[int, Trace | str]:
        """Return a trace per request, or the error that kept it from one."""
        watchers = {
            request.id: Watcher(teachers[request.id].tokens if teachers is not None else None)
            for request in requests
        }
        lengths: dict[int, Trace | str] = {}
        # A teacher's answer has its length; its stop token is compared like any other.
        stop_ids = self._stop_ids if teachers is None else frozenset[int]()
        wanted = requests if teachers is None else [_as_long_as(r, teachers[r.id]) for r in requests]
        for answer in answer_all(
            wanted, self._half, source, stop_ids, _LIMITS, lambda request: watchers[request.id]
        ):
            number = answer.request.id
            num_tokens = len(answer.tokens) + (answer.finish_reason == "stop")
            lengths[number] = answer.error or watchers[number].trace(num_tokens)
        return lengths


def _as_long_as(request: Request, live: LiveAnswer) -> Request:
    return Request(request.id, request.prompt, request.frames, Sampling(max_tokens=len(live.tokens)))


def _problem(
    request: Request,
    stored: Trace | str,
    live: Trace | str,
    forced: Trace | str,
    answer: LiveAnswer,
    tolerance: float,
) -> str | None:
    if isinstance(stored, str) or isinstance(live, str) or isinstance(forced, str):
        return str(next(trace for trace in (stored, live, forced) if isinstance(trace, str)))
    if request.prompt.ids != answer.prompt_ids:
        return "the prompt has other tokens than mlx-vlm gives it"
    if stored != live:
        return "the answer from the store is not exactly the one from live features under the same schedule"
    return unexplained(
        answer.tokens, answer.logprobs, answer.margins, forced.logprobs, forced.best_tokens, tolerance
    )
