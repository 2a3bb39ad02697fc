"""Prefixes that a server keeps from call to call: who waits gets a turn, and the next question finds them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from asked_live import NO_STOP, Asked

from cache.manifest import FrameEntry
from infer.decoding import DecodeBatch
from infer.engine import EngineStats
from infer.hooks import RowHooks
from infer.kv_memory import InFlight, KVMemory
from infer.limits import BatchLimits
from infer.prefill import Prefill
from infer.prefixes import PrefixPool, SharedPrefix
from infer.request import Answer, Request
from infer.sampling import Sampling
from infer.scheduler import Schedule
from infer.sequence import Sequence

LIMITS = BatchLimits(4, 2, 2048)


@pytest.fixture(scope="module")
def asked(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    return Asked(plain, tmp_path_factory.mktemp("lasting"), 3, num_sizes=3)


class Server:
    """Asks an engine as the server does: requests as they come, one pool for all calls."""

    def __init__(self, asked: Asked, max_bytes: int = 1 << 30) -> None:
        self._asked, self.pool = asked, PrefixPool(max_bytes, lasting=True)
        self.stats: list[EngineStats] = []
        self.ended: dict[int, Answer] = {}

    def answer(self, requests: Iterator[Request | None], limits: BatchLimits = LIMITS) -> None:
        answers = self._asked.engine.answer(
            requests,
            self._asked.source,
            limits,
            hooks_of=lambda _: RowHooks(),
            stop_ids=NO_STOP,
            report=self.stats.append,
            prefixes=self.pool,
        )
        for request, answer in answers:
            self.ended[request.id] = answer

    def are_right(self, requests: list[Request]) -> bool:
        return [self.ended[each.id].tokens for each in requests] == self._asked.want(requests)


def test_a_frame_that_is_new_gets_its_turn_though_questions_about_another_never_end(asked: Asked) -> None:
    server, most = Server(asked), 150
    new = asked.request(1000, asked.frames[1], "And this?", max_tokens=2)
    others = [asked.request(n, asked.frames[0], f"{n % 3}?", max_tokens=1 + n % 3) for n in range(most)]

    def arriving() -> Iterator[Request | None]:
        yield from [*others[:8], new]
        for request in others[8:]:
            if new.id in server.ended:
                break
            yield request

    server.answer(arriving())
    assert len(server.ended) < most
    assert server.are_right([new, *others[:3]])


@pytest.mark.parametrize("family", ["plain", "qwen3_5"])
def test_the_third_question_finds_the_image_that_two_have_shared(
    family: str, request: pytest.FixtureRequest, asked: Asked, tmp_path: Path
) -> None:
    """Though these two share words beyond it, which a recurrent state cannot be cut back to."""
    of = asked if family == "plain" else Asked(request.getfixturevalue(family), tmp_path, 1)
    server = Server(of)
    questions = [
        of.request(n, of.frames[0], text) for n, text in enumerate(["Which a?", "Which b?", "What?"])
    ]
    server.answer(iter(questions[:2]))
    server.answer(iter(questions[2:]))
    assert [stats.num_images for stats in server.stats] == [1, 0]
    assert server.are_right(questions)


@pytest.mark.parametrize("num_frames", [0.5, 1, 2.5])
def test_a_pool_that_is_full_costs_prefills_and_no_answer(asked: Asked, num_frames: float) -> None:
    of_a_frame = asked.engine.model.kv_token_bytes * (max(f.num_tokens for f in asked.frames) + 40)
    server = Server(asked, int(num_frames * of_a_frame))
    texts = ["Which app?", "Which window is it?", "Why?"]

    def question(number: int, frame: FrameEntry) -> Request:
        system = "Be brief." if number % 2 else None
        sampling = Sampling(max_tokens=1 + number % 5)
        return replace(asked.request(number, frame, texts[number % 3]), system=system, sampling=sampling)

    requests = [question(number, asked.frames[number * 5 % 3]) for number in range(18)]
    for begin in range(0, 18, 6):
        server.answer(iter(requests[begin : begin + 6]))
        assert server.pool.num_bytes <= server.pool.max_bytes
    assert server.are_right(requests)


def test_nothing_is_read_any_more_once_all_rows_have_ended(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a prefix that the pool has dropped would be held as long as the engine idles."""
    batches: list[DecodeBatch] = []
    right = DecodeBatch.join

    def noted(batch: DecodeBatch, prefill: Prefill) -> None:
        batches.append(batch)
        right(batch, prefill)

    monkeypatch.setattr(DecodeBatch, "join", noted)
    asked.run(asked.questions(2), LIMITS)
    assert not batches[0].slots.readers
    assert batches[0].prefixes == frozenset()


def test_a_follower_that_finds_no_room_leads_when_its_prefix_has_gone_meanwhile(asked: Asked) -> None:
    request = asked.request(0, asked.frames[0], "Which app?")
    prompt = asked.prompt(request)
    sequence = Sequence(request, prompt)
    schedule = Schedule(iter([sequence]), LIMITS, KVMemory(200, 1, 4096))
    schedule.prefixes.put(sequence.keys, SharedPrefix(prompt, (), len(prompt.ids) - 2, 100))
    schedule.draw()
    assert schedule.next_batch(InFlight(1, 100, 8, 1)) == []  # another row takes all that is left
    schedule.prefixes.shrink(0)
    assert schedule.next_batch(InFlight()) == [sequence]
    assert (sequence.prefix, sequence.num_shared, sequence.num_in_place) == (None, 0, 0)
