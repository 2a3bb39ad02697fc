"""What a request brings into the batch acts on its own row, and on no other."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from live_mlx_vlm import PROMPTS, Encoded, draw_noise, encode_folder

from cache.base.errors import InputError
from infer.decoding import DecodeBatch
from infer.engine import Engine
from infer.features import StoredFeatures
from infer.hooks import RowHooks
from infer.limits import BatchLimits
from infer.prefill import Prefill
from infer.request import Answer, Candidate, Request
from infer.sampling import Sampling
from infer.sequence import HooksOf
from infer.sequence import Sequence as EngineSequence

LIMITS = BatchLimits(8, 4, 64)
MAX_TOKENS = 5


class Case:
    """Nine requests and their plain answers."""

    def __init__(self, encoded: Encoded) -> None:
        self.requests = encoded.requests(PROMPTS[:3], Sampling(max_tokens=MAX_TOKENS))
        self.source = StoredFeatures(encoded.store, encoded.manifest.recording.id)
        self.engine = Engine.load(encoded.checkpoint, encoded.spec.compute_dtype)
        self.plain = self.answers(lambda _: RowHooks())

    def answers(
        self, hooks_of: HooksOf, requests: Sequence[Request] = (), limits: BatchLimits = LIMITS
    ) -> dict[int, Answer]:
        asked = requests or self.requests
        answers = self.engine.answer(asked, self.source, limits, hooks_of=hooks_of, stop_ids=frozenset())
        return {request.id: answer for request, answer in answers}

    def others_are_plain(self, got: dict[int, Answer], *changed: int) -> bool:
        return all(got[number] == self.plain[number] for number in self.plain if number not in changed)


@pytest.fixture(scope="module")
def case(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    images = draw_noise(tmp_path_factory.mktemp("images"), 3)
    return Case(encode_folder(plain, images, tmp_path_factory.mktemp("home")))


class Forced:
    """A processor that sets a token's score, by default the best, whatever went before."""

    def __init__(self, token: int, score: float = 1e4) -> None:
        self._token, self._score = token, score

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        return self.process_last_token(-1, logits)

    def process_last_token(self, last_token: int, logits: mx.array) -> mx.array:
        return mx.where(mx.arange(logits.shape[-1])[None] == self._token, self._score, logits)


class Failing(Forced):
    """A processor that gives up at a step."""

    def __init__(self, step: int) -> None:
        self._left = step

    def process_last_token(self, last_token: int, logits: mx.array) -> mx.array:
        self._left -= 1
        if self._left < 0:
            raise InputError("no token fits the schema")
        return logits


class Ends:
    """A watch that ends an answer at its n-th token, or fails there."""

    def __init__(self, num_tokens: int, error: str = "") -> None:
        self._left, self._error = num_tokens, error

    def seen(self, token: int) -> str | None:
        self._left -= 1
        if self._left == 0 and self._error:
            raise InputError(self._error)
        return "repetition" if self._left == 0 else None


def _only(number: int, hooks: RowHooks) -> HooksOf:
    return lambda sequence: hooks if sequence.request.id == number else RowHooks()


def test_processors_run_in_their_order(case: Case) -> None:
    forced = case.answers(_only(5, RowHooks((Forced(7, -1e4), Forced(7)))))
    ruled_out = case.answers(_only(5, RowHooks((Forced(7), Forced(7, -1e4)))))
    assert set(forced[5].tokens) == {7}
    assert 7 not in ruled_out[5].tokens
    assert case.others_are_plain(forced, 5)


@pytest.mark.parametrize("num_tokens", [1, MAX_TOKENS])
def test_a_watch_ends_its_own_answer_and_no_other_changes(case: Case, num_tokens: int) -> None:
    got = case.answers(_only(4, RowHooks(watches=(Ends(num_tokens),))))
    assert got[4].finish_reason == "repetition"
    assert got[4].tokens == case.plain[4].tokens[:num_tokens]
    assert case.others_are_plain(got, 4)


def test_all_answers_may_be_ended_at_once(case: Case) -> None:
    got = case.answers(lambda sequence: RowHooks(watches=(Ends(1 + sequence.request.id % 2),)))
    assert all(len(answer.tokens) == 1 + number % 2 for number, answer in got.items())
    assert len(got) == len(case.requests)


class Removals:
    """Notes how many rows leave early at a time, and whether a prefill was in the middle of its chunks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_rows: list[int] = []
        self.num_amid_prefill = 0
        self._prefill: Prefill | None = None
        step, remove = Prefill.step, DecodeBatch.remove

        def noted_step(prefill: Prefill) -> None:
            self._prefill = prefill
            step(prefill)

        def noted_remove(batch: DecodeBatch, rows: list[EngineSequence]) -> None:
            if rows:
                self.num_rows.append(len(rows))
                self.num_amid_prefill += self._prefill is not None and not self._prefill.is_done
            remove(batch, rows)

        monkeypatch.setattr(Prefill, "step", noted_step)
        monkeypatch.setattr(DecodeBatch, "remove", noted_remove)


def test_rows_that_leave_while_others_are_prefilled_change_no_answer(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    removals = Removals(monkeypatch)
    chunks = BatchLimits(6, 3, 16)
    got = case.answers(lambda sequence: RowHooks(watches=(Ends(2 + sequence.request.id % 4),)), limits=chunks)
    assert removals.num_amid_prefill >= 3
    for number, answer in got.items():
        assert answer.tokens == case.plain[number].tokens[: 2 + number % 4]


def test_what_comes_is_asked_for_at_every_step_also_while_none_can_begin(case: Case) -> None:
    asked_at, answers = 0, list[Answer]()

    def arriving() -> Iterator[Request | None]:
        nonlocal asked_at
        for request in case.requests[:2]:
            yield replace(request, sampling=Sampling(max_tokens=30))
        while len(answers) < 2:
            asked_at += not answers
            yield None

    for _, answer in case.engine.answer(
        arriving(), case.source, BatchLimits(1, 1, 64), stop_ids=frozenset(), hooks_of=lambda _: RowHooks()
    ):
        answers.append(answer)
    assert asked_at >= 30


def test_rows_that_end_early_at_one_step_leave_together(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    removals = Removals(monkeypatch)
    case.answers(lambda _: RowHooks(watches=(Ends(3),)), limits=BatchLimits(3, 3, share_prefixes=False))
    assert removals.num_rows == [3, 3, 3]


@pytest.mark.parametrize("step", [0, 2])
def test_a_processor_that_fails_costs_its_own_request_only(case: Case, step: int) -> None:
    got = case.answers(_only(6, RowHooks((Failing(step),))))
    assert (got[6].finish_reason, got[6].error) == ("error", "no token fits the schema")
    assert case.others_are_plain(got, 6)


def test_a_processor_that_fails_at_once_gives_no_answer_of_one_token(case: Case) -> None:
    requests = [replace(one, sampling=Sampling(max_tokens=1)) for one in case.requests]
    got = case.answers(_only(4, RowHooks((Failing(0),))), requests)
    assert [number for number, answer in got.items() if answer.error is not None] == [4]


def test_an_error_after_the_last_token_is_none(case: Case) -> None:
    got = case.answers(_only(6, RowHooks((Failing(MAX_TOKENS),))))
    assert got == case.plain


def test_a_watch_that_fails_costs_its_own_request_only(case: Case) -> None:
    got = case.answers(_only(2, RowHooks(watches=(Ends(2, "cannot read this token"),))))
    assert (got[2].finish_reason, got[2].error) == ("error", "cannot read this token")
    assert case.others_are_plain(got, 2)


def test_hooks_that_cannot_be_made_cost_their_own_request_only(case: Case) -> None:
    def hooks_of(sequence: EngineSequence) -> RowHooks:
        if sequence.request.id == 3:
            raise InputError("the schema is not valid")
        return RowHooks()

    got = case.answers(hooks_of)
    assert got[3].error == "the schema is not valid"
    assert case.others_are_plain(got, 3)


def test_log_probabilities_are_those_before_any_processor(case: Case) -> None:
    asked = case.answers(_only(1, RowHooks(top_logprobs=3)))[1]
    forced = case.answers(_only(1, RowHooks((Forced(7),), top_logprobs=3)))[1]
    assert asked.tokens == case.plain[1].tokens
    assert asked.logprobs is not None
    assert forced.logprobs is not None
    assert [noted.token for noted in asked.logprobs] == list(asked.tokens)
    assert all(noted.top[0] == Candidate(noted.token, noted.text, noted.logprob) for noted in asked.logprobs)
    assert forced.logprobs[0].top[0].token == asked.tokens[0] != 7
    assert forced.logprobs[0].top == asked.logprobs[0].top


def test_log_probabilities_of_a_whole_vocabulary_add_up_to_one(case: Case) -> None:
    asked = case.answers(_only(0, RowHooks(top_logprobs=10_000)))[0]
    for noted in asked.logprobs or ():
        assert np.exp([candidate.logprob for candidate in noted.top]).sum() == pytest.approx(1, abs=1e-4)


def test_nothing_is_noted_that_nobody_asked_for(case: Case) -> None:
    got = case.answers(_only(1, RowHooks(top_logprobs=0)))
    assert (got[0].logprobs, got[2].logprobs) == (None, None)
    assert [noted.top for noted in got[1].logprobs or ()] == [()] * MAX_TOKENS
