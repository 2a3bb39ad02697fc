"""Features are read before they are asked for, a few frames ahead, in one thread that ends."""

import threading
import time
from pathlib import Path

import pytest
from asked_live import Asked
from store_samples import features, frame

from cache.base.errors import NotEncodedError
from cache.entry import Features
from cache.manifest import FrameEntry
from infer.features import ReadAhead, StoredFeatures
from infer.limits import BatchLimits


class Source:
    """Gives features of any frame but one, and notes what was read, where."""

    def __init__(self, missing: int | None = None) -> None:
        self.read: list[int] = []
        self.threads: set[str] = set()
        self._missing = missing

    def features(self, asked: FrameEntry) -> Features:
        self.read.append(asked.index)
        self.threads.add(threading.current_thread().name)
        if asked.index == self._missing:
            raise NotEncodedError(f"frame {asked.index} is gone")
        return features(asked.index)


def _names() -> set[str]:
    return {thread.name for thread in threading.enumerate() if "read-ahead" in thread.name}


def _until(done: list[int], count: int) -> None:
    deadline = time.monotonic() + 5
    while len(done) < count and time.monotonic() < deadline:
        time.sleep(0.001)


FRAMES = [frame(index) for index in range(10)]


def test_the_next_frames_are_read_unasked_and_no_more_of_them() -> None:
    source = Source()
    with ReadAhead(source, 3) as ahead:
        ahead.expect([*FRAMES[:1] * 5, *FRAMES])
        _until(source.read, 3)
        assert ahead.features(FRAMES[1]).array.tobytes() == features(1).array.tobytes()
    assert source.read == [0, 1, 2]


def test_what_stays_expected_is_not_read_again() -> None:
    source = Source()
    with ReadAhead(source, 3) as ahead:
        ahead.expect(FRAMES[:3])
        ahead.expect(FRAMES[1:4])
        ahead.features(FRAMES[3])
    assert source.read == [0, 1, 2, 3]


def test_a_frame_that_nobody_announced_is_read_when_asked() -> None:
    source = Source()
    with ReadAhead(source, 1) as ahead:
        assert ahead.features(FRAMES[7]).array.tobytes() == features(7).array.tobytes()
    assert len(source.threads) == 1
    assert threading.current_thread().name not in source.threads


def test_a_read_error_waits_for_its_frame() -> None:
    with ReadAhead(Source(missing=1), 3) as ahead:
        ahead.expect(FRAMES[:3])
        ahead.features(FRAMES[2])
        with pytest.raises(NotEncodedError, match="frame 1 is gone"):
            ahead.features(FRAMES[1])


def test_the_thread_ends_with_the_run_even_when_it_is_interrupted() -> None:
    def interrupted() -> None:
        with ReadAhead(Source(), 2) as ahead:
            ahead.expect(FRAMES)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert _names() == set()


@pytest.fixture(scope="module")
def asked(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    return Asked(plain, tmp_path_factory.mktemp("ahead"), 8)


def test_each_frame_of_a_run_is_read_once(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    whole = StoredFeatures.features

    def noting(self: StoredFeatures, asked_for: FrameEntry) -> Features:
        read.append(asked_for.index)
        return whole(self, asked_for)

    monkeypatch.setattr(StoredFeatures, "features", noting)
    requests = asked.questions(3)
    asked.run(requests, BatchLimits(4, 2, 64))
    assert sorted(read) == [frame.index for frame in asked.frames]


def test_no_thread_is_left_of_a_run_that_was_given_up(asked: Asked) -> None:
    answers = asked.engine.answer(asked.questions(2), asked.source, BatchLimits(4, 2, 64))
    next(answers)
    assert len(_names()) == 1
    answers.close()  # type: ignore[attr-defined]
    assert _names() == set()


def test_a_missing_entry_costs_its_own_requests(asked: Asked) -> None:
    entry = asked.encoded.store.path / "frames" / asked.frames[2].key.hex[:2] / asked.frames[2].key.hex
    hidden = entry.with_name("hidden")
    entry.rename(hidden)
    try:
        source = StoredFeatures(asked.encoded.store, "images")
        requests = asked.questions(2)
        ended = asked.run(requests, BatchLimits(4, 2, 64), source=source)
    finally:
        hidden.rename(entry)
    failed = [number for number, answer in ended.answers.items() if answer.error is not None]
    assert sorted(failed) == [4, 5]
    assert "run seeonce encode images" in str(ended.answers[4].error)
