"""An image is prefilled once however many questions follow, and no answer changes by that."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asked_live import Asked, renumbered

from cache.base.errors import StoreError
from cache.entry import Features
from cache.manifest import FrameEntry
from infer.decoding import DecodeBatch
from infer.engine import EngineStats
from infer.hooks import RowHooks
from infer.kv_cache import rounded_up
from infer.limits import BatchLimits
from infer.prefill import Prefill
from infer.sampling import Sampling
from infer.sequence import sampling_hooks

SHARED = BatchLimits(16, 4, 2048)
ALONE = BatchLimits(1, 1, 2048, share_prefixes=False)


@pytest.fixture(scope="module")
def asked(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    return Asked(plain, tmp_path_factory.mktemp("sharing"), 4, num_sizes=3)


@pytest.fixture(scope="module")
def many(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """More frames than are looked at ahead, and so many that how a run ends does not count."""
    return Asked(plain, tmp_path_factory.mktemp("many"), 9)


class SeenByDecoder:
    """Stands before the first decoder layer and counts positions that hold an image's token."""

    def __init__(self, asked: Asked) -> None:
        self._layers = asked.engine.model.model.decoder.layers
        self._layer: Any = self._layers[0]
        self.self_attn = self._layer.self_attn
        features = [asked.source.features(frame).array[0] for frame in asked.frames]
        self._tokens = {row.tobytes() for layer in features for row in np.asarray(layer)}
        self.num_image_positions = 0

    def __enter__(self) -> "SeenByDecoder":
        self._layers[0] = self
        return self

    def __exit__(self, *_: object) -> None:
        self._layers[0] = self._layer

    def __call__(self, h: Any, *more: Any) -> Any:
        positions = np.array(h).reshape(-1, h.shape[-1])
        self.num_image_positions += sum(row.tobytes() in self._tokens for row in positions)
        return self._layer(h, *more)


class StepsOf:
    """Counts decoding steps: embeddings of one token of each row."""

    def __init__(self, asked: Asked) -> None:
        self._model = asked.engine.model.model.decoder
        self._embed = self._model.embed_tokens
        self.num_steps = 0

    def __enter__(self) -> "StepsOf":
        self._model.embed_tokens = self
        return self

    def __exit__(self, *_: object) -> None:
        self._model.embed_tokens = self._embed

    def __call__(self, ids: Any) -> Any:
        self.num_steps += ids.shape[1] == 1
        return self._embed(ids)


def _image_tokens(asked: Asked) -> int:
    return sum(frame.num_tokens for frame in asked.frames)


@pytest.mark.parametrize(
    "limits",
    [SHARED, BatchLimits(3, 8, 33), pytest.param(BatchLimits(1, 1, 2048), marks=pytest.mark.campaign)],
    ids=str,
)
def test_five_questions_prefill_a_frame_once(asked: Asked, limits: BatchLimits) -> None:
    requests = asked.questions(5)
    with SeenByDecoder(asked) as seen:
        ended = asked.run(requests, limits)
    assert seen.num_image_positions == _image_tokens(asked)
    assert ended.tokens(requests) == asked.want(requests)
    assert ended.stats.num_image_tokens == _image_tokens(asked)
    assert (ended.stats.num_images, ended.stats.num_images_again) == (len(asked.frames), 0)


def test_without_sharing_every_question_prefills_it(asked: Asked) -> None:
    requests = asked.questions(3)
    with SeenByDecoder(asked) as seen:
        ended = asked.run(requests, replace(SHARED, share_prefixes=False))
    assert seen.num_image_positions == 3 * _image_tokens(asked) == ended.stats.num_image_tokens
    assert ended.stats.num_images_again == 2 * len(asked.frames)
    assert ended.tokens(requests) == asked.want(requests)


def test_one_question_a_frame_keeps_nothing(asked: Asked) -> None:
    ended = asked.run(asked.questions(1), SHARED)
    assert (ended.stats.max_prefix_bytes, ended.stats.num_shared_tokens) == (0, 0)


def test_frames_asked_in_turn_share_too(asked: Asked) -> None:
    requests = asked.questions(4)
    order = [frame * 4 + question for question in range(4) for frame in range(len(asked.frames))]
    by_question = renumbered(requests, order)
    ended = asked.run(by_question, SHARED)
    assert ended.stats.num_images == len(asked.frames)
    assert ended.tokens(by_question) == asked.want(by_question)


def test_an_image_that_comes_back_much_later_is_counted(many: Asked) -> None:
    requests = [replace(request, sampling=Sampling(max_tokens=1)) for request in many.questions(8)]
    late = renumbered(requests, [*range(72), *range(8, 72), *range(8)])
    ended = many.run(late, SHARED)
    assert ended.stats.num_images_again >= 1
    assert ended.stats.num_images == len(many.frames) + ended.stats.num_images_again


def test_frames_of_one_size_and_one_prompt_never_meet(asked: Asked) -> None:
    alike = [asked.frames[0], asked.frames[3]]
    assert alike[0].grid_thw == alike[1].grid_thw
    requests = asked.questions(5, alike)
    assert asked.prompt(requests[0]) == asked.prompt(requests[5])
    assert asked.run(requests, SHARED).tokens(requests) == asked.want(requests)


def test_the_order_of_frames_is_part_of_a_prefix(asked: Asked) -> None:
    one, other = asked.frames[0], asked.frames[3]
    pairs = [(one, other), (other, one), (one, one)]
    requests = [
        asked.request(3 * pair + question, *pairs[pair], f"What changed {question}?")
        for pair in range(3)
        for question in range(3)
    ]
    with SeenByDecoder(asked) as seen:
        ended = asked.run(requests, SHARED)
    assert seen.num_image_positions == 6 * one.num_tokens
    assert ended.tokens(requests) == asked.want(requests)


def test_text_between_frames_ends_what_is_shared(asked: Asked) -> None:
    one, other = asked.frames[1], asked.frames[2]
    requests = [asked.request(n, one, f"then {n} ", other, "What changed?") for n in range(4)]
    with SeenByDecoder(asked) as seen:
        ended = asked.run(requests, SHARED)
    assert seen.num_image_positions == one.num_tokens + 4 * other.num_tokens
    assert ended.tokens(requests) == asked.want(requests)


def test_an_image_after_different_text_is_not_shared(asked: Asked) -> None:
    requests = [asked.request(n, f"{n}. Look: ", asked.frames[3], "Which app?") for n in range(3)]
    ended = asked.run(requests, SHARED)
    assert (ended.stats.num_images, ended.stats.num_shared_tokens) == (3, 0)
    assert ended.tokens(requests) == asked.want(requests)


@pytest.mark.parametrize("limits", [SHARED, BatchLimits(4, 4, 5)], ids=str)
def test_the_same_question_again_runs_its_last_token_only(asked: Asked, limits: BatchLimits) -> None:
    requests = [asked.request(n, asked.frames[3], "Which app is open?") for n in range(3)]
    ended = asked.run(requests, limits)
    assert ended.stats.num_prefilled_tokens == len(asked.prompt(requests[0]).ids) + 2
    assert ended.tokens(requests) == asked.want(requests)


def test_the_shared_part_may_end_inside_a_text(asked: Asked) -> None:
    texts = ["Which app is in front now?", "Which app is in front, and why?", "Which app", "Whichever"]
    requests = [asked.request(n, asked.frames[2], text) for n, text in enumerate(texts)]
    ended = asked.run(requests, SHARED)
    assert ended.stats.num_shared_tokens > 3 * asked.frames[2].num_tokens
    assert ended.tokens(requests) == asked.want(requests)


def test_answers_of_one_token_share_too(asked: Asked) -> None:
    requests = [replace(request, sampling=Sampling(max_tokens=1)) for request in asked.questions(4)]
    ended = asked.run(requests, SHARED)
    assert ended.stats.num_images == len(asked.frames)
    assert ended.tokens(requests) == asked.want(requests)


@pytest.mark.parametrize(
    "limits",
    [
        BatchLimits(8, 8),
        *(pytest.param(limits, marks=pytest.mark.campaign) for limits in (BatchLimits(8), BatchLimits(4, 4))),
    ],
    ids=str,
)
def test_followers_do_not_wait_for_more_slots_than_they_fill(many: Asked, limits: BatchLimits) -> None:
    requests = many.questions(8)
    with StepsOf(many) as counted:
        ended = many.run(requests, limits)
    num_tokens = sum(map(len, ended.tokens(requests)))
    assert ended.stats.max_in_flight == limits.max_num_seqs
    assert num_tokens / counted.num_steps > 0.85 * limits.max_num_seqs


def test_half_of_the_slots_are_not_left_idle_until_the_last_row_ends(asked: Asked) -> None:
    requests = [
        replace(request, sampling=Sampling(max_tokens=2 if request.id % 4 else 16))
        for request in asked.questions(4)
    ]
    with StepsOf(asked) as counted:
        asked.run(requests, BatchLimits(4, 4, share_prefixes=False))
    assert counted.num_steps < len(asked.frames) * 16 * 0.6


class HeldBytes:
    """Notes what slots and the prefixes that are read in place take after each join."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        right = DecodeBatch.join

        def noted(batch: DecodeBatch, prefill: Prefill) -> None:
            right(batch, prefill)
            slots = sum(array.nbytes for cache in batch._cache for array in cache.state)
            self.most = max(self.most, slots + sum(prefix.num_bytes for prefix in batch.prefixes))

        monkeypatch.setattr(DecodeBatch, "join", noted)


@pytest.mark.parametrize(
    ("num_sequences", "copy_prefixes"),
    [
        (1.05, False),
        (2.5, True),
        *(
            pytest.param(*each, marks=pytest.mark.campaign)
            for each in ((1.05, True), (2.5, False), (6, False), (6, True))
        ),
    ],
)
def test_a_tight_bound_costs_prefills_and_no_answer(
    asked: Asked, num_sequences: float, copy_prefixes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of many lengths: a follower that finds no room waits, and may find its prefix gone.
    requests = [replace(r, sampling=Sampling(max_tokens=2 + r.id * 7 % 5)) for r in asked.questions(4)]
    longest = max(len(asked.prompt(request).ids) + 6 for request in requests)
    bound = int(num_sequences * rounded_up(longest) * asked.engine.model.kv_token_bytes)
    held = HeldBytes(monkeypatch)
    monkeypatch.setattr(asked.engine, "copy_prefixes", copy_prefixes)
    ended = asked.run(requests, replace(SHARED, kv_memory_bytes=bound))
    assert held.most <= bound
    assert ended.stats.max_prefix_bytes <= bound
    assert ended.tokens(requests) == asked.want(requests)


def test_more_questions_fit_where_they_read_one_prefix(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [asked.request(number, *asked.frames[:3], f"{number}?") for number in range(12)]
    alone = rounded_up(len(asked.prompt(requests[0]).ids) + 8) * asked.engine.model.kv_token_bytes
    limits = replace(SHARED, kv_memory_bytes=7 * alone)
    in_place = asked.run(requests, limits)
    monkeypatch.setattr(asked.engine, "copy_prefixes", True)
    copied = asked.run(requests, limits)
    assert in_place.stats.max_in_flight > copied.stats.max_in_flight
    assert in_place.tokens(requests) == copied.tokens(requests) == asked.want(requests)


def test_a_leader_that_ends_at_once_leaves_its_prefix(asked: Asked) -> None:
    class Ends:
        def seen(self, token: int) -> str | None:
            return "enough"

    requests = asked.questions(4)
    ended = asked.run(
        requests,
        SHARED,
        lambda sequence: RowHooks(watches=() if sequence.request.id % 4 else (Ends(),)),
    )
    assert ended.stats.num_images == len(asked.frames)
    want = [tokens[: 1 if number % 4 == 0 else None] for number, tokens in enumerate(asked.want(requests))]
    assert ended.tokens(requests) == want


def test_a_leader_that_fails_leaves_the_others_their_picture(asked: Asked) -> None:
    class Failing:
        def __init__(self) -> None:
            self.failed = False

        def features(self, frame: FrameEntry) -> Features:
            if frame == asked.frames[0] and not self.failed:
                self.failed = True
                raise StoreError("the disk failed once")
            return asked.source.features(frame)

    requests = asked.questions(4)
    ended = asked.run(requests, SHARED, source=Failing())
    assert ended.answers[0].error == "the disk failed once"
    assert [ended.answers[r.id].tokens for r in requests[1:]] == asked.want(requests[1:])


def test_sampled_answers_do_not_depend_on_sharing(asked: Asked) -> None:
    sampling = Sampling(temperature=0.9, top_p=0.9, seed=3, max_tokens=4)
    requests = [replace(request, sampling=sampling) for request in asked.questions(3)]

    alone = asked.run(requests, ALONE, sampling_hooks).tokens(requests)
    assert asked.run(requests, SHARED, sampling_hooks).tokens(requests) == alone
    assert asked.run(requests[::-1], BatchLimits(5, 2, 16), sampling_hooks).tokens(requests) == alone


def test_an_abandoned_run_reports_what_it_did(asked: Asked) -> None:
    stats: list[EngineStats] = []
    answers = asked.engine.answer(asked.questions(4), asked.source, SHARED, report=stats.append)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert stats[0].num_requests >= 1
