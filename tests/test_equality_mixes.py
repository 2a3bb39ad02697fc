"""Random mixes of requests and limits against mlx-vlm live: a few always, many in the campaign.

A mix draws prompts with no, one or several frames, text before, between and after them, families of
prompts with a common beginning, lengths, answers that are ended early, and how the engine is set.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
from asked_live import Asked, LiveTrace, mixed_parts, variant
from conftest import MAX_PIXELS, MakeCheckpoint
from tiny_checkpoint import Tiny

from infer.hooks import RowHooks
from infer.kv_cache import rounded_up
from infer.limits import BatchLimits
from infer.request import Request
from infer.sampling import Sampling
from infer.sequence import Sequence
from seeonce.verifier.differences import LOGPROB, logprob_distances, trace_problem
from seeonce.verifier.outputs import Watcher

MAX_TOKENS = 10
NUM_FAMILIES, NUM_VARIANTS = 24, 4
Draw = Callable[..., tuple["Pool", "Mix"]]
TINY = {
    "plain": Tiny(max_pixels=MAX_PIXELS),
    "text4": Tiny(max_pixels=MAX_PIXELS, text_bits=4),
    "moe": Tiny(max_pixels=MAX_PIXELS, moe=True),
    "tied": Tiny(max_pixels=MAX_PIXELS, tied=True),
    "vision8": Tiny(max_pixels=MAX_PIXELS, vision_bits=8),
    "mlx": Tiny(max_pixels=MAX_PIXELS, layout="mlx"),
    "bfloat16": Tiny(max_pixels=MAX_PIXELS, dtype="bfloat16"),
    "qwen3_5": Tiny(max_pixels=MAX_PIXELS, family="qwen3_5"),
    "qwen3_5 text4": Tiny(max_pixels=MAX_PIXELS, family="qwen3_5", text_bits=4),
    "qwen3_5 moe": Tiny(max_pixels=MAX_PIXELS, family="qwen3_5", moe=True),
    "qwen3_5 tied": Tiny(max_pixels=MAX_PIXELS, family="qwen3_5", tied=True),
    "qwen3_5 bfloat16": Tiny(max_pixels=MAX_PIXELS, family="qwen3_5", dtype="bfloat16"),
}
# The mix of each that is always tried, a small one. Between them they share prefixes and do not, have room
# and have not, end early, and are asked for log-probabilities.
ALWAYS = {
    "plain": 0, "text4": 3, "moe": 11, "tied": 9, "vision8": 12, "mlx": 23, "bfloat16": 14,
    "qwen3_5": 18, "qwen3_5 text4": 29, "qwen3_5 moe": 13, "qwen3_5 bfloat16": 38,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mix:
    """Requests, what live answers to each, where an answer is ended early, and the engine's settings."""

    requests: list[Request]
    live: dict[int, LiveTrace]
    ended_after: dict[int, int]
    limits: BatchLimits
    with_logprobs: bool

    def want(self, request: Request) -> tuple[int, ...]:
        most = min(request.sampling.max_tokens, self.ended_after.get(request.id, MAX_TOKENS))
        return self.live[request.id].tokens[:most]


class EndsAfter:
    def __init__(self, num_tokens: int) -> None:
        self._left = num_tokens

    def seen(self, token: int) -> str | None:
        self._left -= 1
        return None if self._left else "ended"


class Pool:
    """Prompts in families; live answers to those that are drawn."""

    def __init__(self, checkpoint: Path, root: Path, name: str, num_images: int) -> None:
        self.asked = Asked(checkpoint, root, num_images, TINY[name].dtype)
        rng = random.Random(name)
        families = [mixed_parts(rng, list(self.asked.frames)) for _ in range(NUM_FAMILIES)]
        self.families = [
            [parts, *(variant(rng, parts) for _ in range(NUM_VARIANTS - 1))] for parts in families
        ]

    def mix(self, rng: random.Random, most: int, max_tokens: int) -> Mix:
        families = rng.sample(self.families, k=rng.randint(1, 8))
        requests = [
            self.asked.request(number, *rng.choice(rng.choice(families)), max_tokens=max_tokens)
            for number in range(rng.randint(1, most))
        ]
        live = {request.id: self.asked.live(request) for request in requests}
        requests = [replace(r, sampling=Sampling(max_tokens=rng.randint(1, max_tokens))) for r in requests]
        ended = {r.id: rng.randint(1, max_tokens) for r in requests if rng.random() < 0.2}
        longest = max(len(self.asked.prompt(request).ids) for request in requests) + max_tokens
        model = self.asked.engine.model
        row_bytes = rounded_up(longest) * model.kv_token_bytes + model.row_bytes
        limits = BatchLimits(
            max_num_seqs=rng.randint(1, 16),
            prefill_batch_size=rng.randint(1, 8),
            prefill_step_size=rng.choice([16, 17, 33, 64, 100, 256, 512, 2048]),
            kv_memory_bytes=rng.choice([None, None, int(row_bytes * rng.uniform(1, 8))]),
            share_prefixes=rng.random() < 0.7,
        )
        return Mix(requests, live, ended, limits, rng.random() < 0.5)


@pytest.fixture(scope="module")
def drawn(checkpoint_of: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Draw:
    """Return a function that draws a mix: a small one where it is the one that is always tried."""

    @cache
    def pool(name: str, num_images: int) -> Pool:
        return Pool(checkpoint_of(TINY[name]), tmp_path_factory.mktemp("pool"), name, num_images)

    def draw(name: str, seed: int, most: int = 24) -> tuple[Pool, Mix]:
        rng, is_small = random.Random(seed), seed == ALWAYS.get(name)
        of = pool(name, 4 if is_small else 8)
        return of, of.mix(rng, 4, 5) if is_small else of.mix(rng, most, MAX_TOKENS)

    return draw


def _seeds(name: str, num_mixes: int) -> list[object]:
    always = {ALWAYS[name]} if name in ALWAYS else set()
    campaign = [
        pytest.param(name, seed, marks=pytest.mark.campaign)
        for seed in range(num_mixes)
        if seed not in always
    ]
    return [*(pytest.param(name, seed) for seed in always), *campaign]


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        *_seeds("plain", 200),
        *_seeds("text4", 30),
        *_seeds("moe", 30),
        *_seeds("tied", 30),
        *_seeds("vision8", 30),
        *_seeds("mlx", 30),
        *_seeds("qwen3_5", 200),
        *_seeds("qwen3_5 text4", 30),
        *_seeds("qwen3_5 moe", 30),
        *_seeds("qwen3_5 tied", 30),
    ],
)
def test_a_random_mix_gives_the_tokens_of_one_at_a_time_live(drawn: Draw, name: str, seed: int) -> None:
    pool, mix = drawn(name, seed)

    def hooks_of(sequence: Sequence) -> RowHooks:
        ended = mix.ended_after.get(sequence.request.id)
        watches = (EndsAfter(ended),) if ended else ()
        return RowHooks(watches=watches, top_logprobs=0 if mix.with_logprobs else None)

    ended = pool.asked.run(mix.requests, mix.limits, hooks_of)
    assert ended.tokens(mix.requests) == [mix.want(request) for request in mix.requests]
    for request in mix.requests if mix.with_logprobs else ():
        first, *_ = ended.answers[request.id].logprobs or ()
        assert first.logprob == pytest.approx(mix.live[request.id].logprobs[0], abs=1e-3)


@pytest.mark.parametrize(("name", "seed"), [*_seeds("bfloat16", 12), *_seeds("qwen3_5 bfloat16", 12)])
def test_a_random_mix_in_bfloat16_differs_by_rounding_alone(
    drawn: Draw, name: str, seed: int, tmp_path: Path
) -> None:
    pool, mix = drawn(name, seed, 8)
    _assert_rounding_alone(pool, mix)
    if seed != ALWAYS.get(name):
        with pool.asked.on_disk(tmp_path / "kept"):
            _assert_rounding_alone(pool, mix)  # writes prefixes
            _assert_rounding_alone(pool, mix)  # starts from them


def _assert_rounding_alone(pool: Pool, mix: Mix) -> None:
    taken = {request.id: mix.live[request.id].tokens for request in mix.requests}
    requests = [
        replace(request, sampling=Sampling(max_tokens=len(taken[request.id]))) for request in mix.requests
    ]
    teachers = {number: Watcher(tokens, [(token,) for token in tokens]) for number, tokens in taken.items()}
    pool.asked.run(requests, mix.limits, lambda sequence: RowHooks((teachers[sequence.request.id],)))
    for request in requests:
        live, trace = mix.live[request.id], teachers[request.id].trace(MAX_TOKENS)
        of_live = [(logprob,) for logprob in live.logprobs]
        distances = logprob_distances([logprobs for _, logprobs, _ in trace], of_live)
        best_tokens = [best for _, _, best in trace]
        assert len(trace) == len(live.tokens)
        assert trace_problem(live.tokens, live.margins, distances, best_tokens, LOGPROB["bfloat16"]) is None


def test_the_mixes_are_as_mixed_as_they_should_be(drawn: Draw) -> None:
    """The control: what the campaign is to cover is drawn."""
    pool, _ = drawn("plain", ALWAYS["plain"])
    families = pool.families
    counts = {sum(not isinstance(part, str) for part in family[0]) for family in families}
    starts = {isinstance(family[0][0], str) for family in families}
    assert {0, 1, 2, 3} <= counts
    assert starts == {True, False}
