"""Pass one keeps its encoder busy: the next picture begins before the last one is finished."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import pytest
from screens import folder_of, noise
from store_samples import new_store

from cache.entry import Features
from cache.pixel_index import PixelIndex
from cache.store import Store
from checkpoint.folder import find_checkpoint
from checkpoint.identity import encoder_spec
from precompute import pipeline
from precompute.patches import Patches
from precompute.pipeline import EncodeResult, Seconds, encode_recording
from seeonce.bench.stand_in import StandIn, measure
from sources.recording import Recording
from sources.recordings import open_recording


class AtOnce:
    """An executor that does what is submitted before it returns."""

    def __init__(self, max_workers: int) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        done: Future[Any] = Future()
        done.set_result(work(*arguments))
        return done


class Noting(StandIn):
    """Notes when pictures begin and when they are finished, and in which thread."""

    def __init__(self, spec: Any) -> None:
        super().__init__(spec, frame_s=0.0)
        self.events: list[str] = []
        self.threads: set[int] = set()

    def start(self, patches: Patches) -> Callable[[], Features]:
        number = sum(event.startswith("begin") for event in self.events)
        self._note(f"begin {number}")
        return partial(self._taken, number, super().start(patches))

    def _taken(self, number: int, features: Callable[[], Features]) -> Features:
        self._note(f"take {number}")
        return features()

    def _note(self, event: str) -> None:
        self.events.append(event)
        self.threads.add(threading.get_ident())


@pytest.fixture
def noted(plain: Path, tmp_path: Path) -> tuple[Noting, Callable[[int], EncodeResult], Store]:
    store = new_store(tmp_path)
    with PixelIndex(store.home) as index:
        spec = encoder_spec(find_checkpoint(str(plain), print), index)
    noting = Noting(spec)

    def encoded(num_frames: int) -> EncodeResult:
        recording: Recording = open_recording(str(folder_of(tmp_path / "images", num_frames)))
        with PixelIndex(store.home) as index:
            return encode_recording(recording, spec, store, index, lambda: cast("Any", noting))

    return noting, encoded, store


def test_the_next_picture_begins_before_the_last_is_taken_over(
    noted: tuple[Noting, Callable[[int], EncodeResult], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "ThreadPoolExecutor", AtOnce)
    noting, encoded, _ = noted
    assert encoded(4).progress.num_new == 4
    assert noting.events == [
        "begin 0", "begin 1", "take 0", "begin 2", "take 1", "begin 3", "take 2", "take 3"
    ]  # fmt: skip


def test_one_thread_alone_speaks_to_the_encoder(
    noted: tuple[Noting, Callable[[int], EncodeResult], Store],
) -> None:
    noting, encoded, store = noted
    result = encoded(12)
    assert noting.threads == {threading.get_ident()}
    assert all(store.check(frame.key) is None for frame in result.manifest.frames)


def test_what_pass_one_waited_for_is_told_with_its_share() -> None:
    assert str(Seconds(encoder=9.7, pictures=0.05, writer=0.0, total=10.0)) == "encoder 97 %"
    waits = Seconds(encoder=6.5, pictures=3.0, writer=0.5, total=10.0)
    assert str(waits) == "encoder 65 %, waits for decoding: 30 %, waits for the disk: 5 %"


def test_the_stand_in_shows_pictures_jpegs_and_a_video(
    noted: tuple[Noting, Callable[[int], EncodeResult], Store], tmp_path: Path
) -> None:
    screens = tmp_path / "screens"
    screens.mkdir()
    for number in range(2):
        noise(number, 320, 192).save(screens / f"{number}.png")
    table = measure(noted[0].spec, screens, tmp_path)
    assert [(row[0], row[1]) for row in table.rows] == [
        ("PNG", 2), ("JPEG", 2), ("H.264, a frame every 2 s", 2)
    ]  # fmt: skip
