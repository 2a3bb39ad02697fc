"""The outputs level of verify-cache: answers from the store against live ones.

Per entry of the sample and question: mlx-vlm answers live, one at a time, from the picture itself. Then
pass two answers from the store, batched as ``seeonce describe`` does by default, and what it hands out is
compared; and with live's answer forced on the batch, log-probabilities are compared at every position,
from the store and from live features under the same schedule.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cache.manifest import FrameEntry
from cache.store import Store
from infer.batching import Answer, FeatureSource, Request, answer_all
from infer.hooks import RowHooks
from infer.limits import BatchLimits
from infer.mlx_vlm_adapter import LanguageHalf
from infer.prompt import DEFAULT_PROMPT, Prompt
from infer.sampling import Sampling
from infer.selection import Selected
from infer.stored import StoredFeatures
from infer.tokenizer import ChatTokenizer
from verify.compare import LOGPROB_TOLERANCE, feature_problem, unexplained
from verify.live_side import LiveFeatures
from verify.reference import LiveAnswer, LiveReference
from verify.report import Check, Listener
from verify.teacher import Trace, Watcher

_MAX_TOKENS = 64
_PROMPTS = (Prompt(DEFAULT_PROMPT), Prompt("Which applications are open?"))
_LIMITS = BatchLimits()


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, the frame that it is about, and what live answered."""

    request: Request
    frame: FrameEntry
    live: LiveAnswer


def check_outputs(
    store: Store,
    selected: Selected,
    frames: list[FrameEntry],
    live_features: LiveFeatures,
    same_provenance: bool,
    listener: Listener,
) -> Check:
    """Ask two questions about each of ``frames`` and compare the answers."""
    dtype = selected.manifest.encoder.compute_dtype
    tokenizer = ChatTokenizer(selected.folder, selected.config)
    stored = StoredFeatures(store, selected.manifest.recording.id)
    problems: list[str] = []
    asked = _ask_live(selected, frames, tokenizer, stored, live_features, same_provenance, problems, listener)
    half = LanguageHalf(selected.folder, selected.config, dtype)
    tolerance = LOGPROB_TOLERANCE[dtype]
    requests = [item.request for item in asked]
    answers = {a.request.id: a for a in answer_all(requests, half, stored, tokenizer.stop_ids, _LIMITS)}
    from_store = _forced(asked, half, stored)
    from_live = _forced(asked, half, live_features)
    for item in asked:
        number = item.request.id
        problem = _answer_problem(item, answers[number], tokenizer, tolerance) or _trace_problem(
            item, from_store[number], from_live[number], same_provenance, tolerance
        )
        line = f"frame {item.frame.index}: {problem}"
        if problem is not None and line not in problems:
            problems.append(line)
    num_total = len({frame.key for frame in selected.manifest.frames})
    words = (
        f"{len(frames)} of {num_total} entries, {len(_PROMPTS)} questions each, "
        f"{min(len(asked), _LIMITS.max_num_seqs)} in flight: "
    ) + (
        f"{len(problems)} unlike live; tolerance {tolerance:g}"
        if problems
        else f"answers of mlx-vlm live, one at a time (log-probabilities within {tolerance:g})"
    )
    return Check("outputs", not problems, words, len(frames), num_total, tuple(problems))


def _ask_live(
    selected: Selected,
    frames: list[FrameEntry],
    tokenizer: ChatTokenizer,
    stored: StoredFeatures,
    live_features: LiveFeatures,
    same_provenance: bool,
    problems: list[str],
    listener: Listener,
) -> list[_Asked]:
    """Let mlx-vlm encode and answer; repeat what is asked until a batch is full."""
    reference = LiveReference(selected.folder, selected.config, selected.manifest.encoder)
    listener.begin(len(frames) * len(_PROMPTS), "outputs", "answer")
    asked: list[_Asked] = []
    for frame in frames:
        picture = reference.picture(frame.source, live_features.image(frame))
        problem = feature_problem(
            stored.features(frame), reference.features(picture), same_provenance=same_provenance
        )
        if problem is not None:
            problems.append(f"frame {frame.index}: not the features of mlx-vlm's own vision tower: {problem}")
        for prompt in _PROMPTS:
            tokens = tokenizer.encode(prompt.segments(frame))
            request = Request(len(asked), tokens, (frame,), Sampling(max_tokens=_MAX_TOKENS))
            asked.append(_Asked(request, frame, reference.answer(picture, prompt.text, _MAX_TOKENS)))
            listener.advance()
    copies = -(-_LIMITS.max_num_seqs // max(1, len(asked)))
    repeated = asked * copies
    return [replace(item, request=replace(item.request, id=number)) for number, item in enumerate(repeated)]


def _forced(asked: Sequence[_Asked], half: LanguageHalf, source: FeatureSource) -> dict[int, Trace]:
    """Decode live's answers, each to its end, and return what the batch thought of every token."""
    watchers = {item.request.id: Watcher(item.live.tokens) for item in asked}
    requests = [replace(item.request, sampling=Sampling(max_tokens=len(item.live.tokens))) for item in asked]
    never = frozenset[int]()  # a stop token of live is compared like any other
    answers = answer_all(
        requests, half, source, never, _LIMITS, lambda request: RowHooks((watchers[request.id],))
    )
    return {a.request.id: watchers[a.request.id].trace(len(a.tokens)) for a in answers}


def _answer_problem(item: _Asked, answer: Answer, tokenizer: ChatTokenizer, tolerance: float) -> str | None:
    """Say how the answer that pass two hands out is not live's, up to a near-tie of live itself."""
    live = item.live
    if answer.error is not None:
        return answer.error
    if item.request.prompt.ids != live.prompt_ids:
        return "the prompt has other tokens than mlx-vlm gives it"
    want = live.tokens[:-1] if live.stopped else live.tokens
    for position, (token, live_token) in enumerate(zip(answer.tokens, want, strict=False)):
        if token != live_token:
            margin = live.margins[position]
            near_tie = margin <= tolerance
            return None if near_tie else f"token {position} is another one, live's margin is {margin:.3g}"
    shorter = min(len(answer.tokens), len(want))
    if len(answer.tokens) != len(want):
        near_tie = live.margins[min(shorter, len(live.margins) - 1)] <= tolerance
        return None if near_tie else f"{len(answer.tokens)} tokens, live gives {len(want)}"
    if (answer.finish_reason == "stop") != live.stopped:
        return f"it ends by {answer.finish_reason!r}, live {'does' if live.stopped else 'does not'} stop"
    if tokenizer.decode(answer.tokens) != live.text:
        return "the same tokens become another text than mlx-vlm's tokenizer gives"
    return None


def _trace_problem(
    item: _Asked, stored: Trace, live: Trace, same_provenance: bool, tolerance: float
) -> str | None:
    if same_provenance and stored != live:
        return "log-probabilities from the store are not exactly those from live features, same schedule"
    answer = item.live
    return unexplained(
        answer.tokens, answer.logprobs, answer.margins, stored.logprobs, stored.best_tokens, tolerance
    )
