"""What KV caches may take decides how many sequences run; the number of frames decides nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from asked_live import Asked
from conftest import MAX_PIXELS, MakeCheckpoint, Run
from screens import folder_of
from store_samples import PROVENANCE, pixels
from tiny_checkpoint import Tiny

from cache.entry import Features
from cache.key import entry_key
from cache.manifest import FrameEntry
from infer.decoding import DecodeBatch
from infer.kv_cache import rounded_up
from infer.kv_memory import InFlight, KVMemory, default_kv_bytes
from infer.limits import BatchLimits
from infer.request import Request
from infer.sampling import Sampling
from infer.sequence import Sequence

LIMITS = BatchLimits(8, 4, 2048)
GB = 1_000_000_000


@pytest.fixture(scope="module")
def asked(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    return Asked(plain, tmp_path_factory.mktemp("kv"), 4)


def test_a_batch_takes_its_rows_times_its_longest_row() -> None:
    memory = KVMemory(GB, token_bytes=10, max_context=4096)
    assert memory.batch_bytes(InFlight(), []) == 0
    assert memory.batch_bytes(InFlight(), [(100, 10)]) == 128 * 10
    assert memory.batch_bytes(InFlight(2, 300, 5), [(100, 10), (250, 240)]) == 4 * 576 * 10


def test_a_free_slot_is_held_until_somebody_is_put_there() -> None:
    memory = KVMemory(GB, token_bytes=10, max_context=4096)
    assert memory.batch_bytes(InFlight(2, 100, 10, num_slots=6), [(100, 10)]) == 6 * 128 * 10
    assert memory.batch_bytes(InFlight(2, 100, 10, num_slots=2), [(100, 10)]) == 3 * 128 * 10


def test_token_bytes_are_those_of_the_cache_that_decodes(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, held = DecodeBatch.join, list[int]()

    def noted(self: DecodeBatch, *joining: Any) -> None:
        right(self, *joining)
        num_bytes = sum(array.nbytes for cache in self._cache for array in cache.state)
        held.append(num_bytes // self.num_slots)

    monkeypatch.setattr(DecodeBatch, "join", noted)
    asked.run(asked.questions(1), LIMITS)
    columns = rounded_up(max(len(asked.prompt(request).ids) for request in asked.questions(1)) + 1)
    assert max(held) == columns * asked.engine.model.kv_token_bytes


def _row_bytes(asked: Asked, requests: list[Request]) -> int:
    longest = max(len(asked.prompt(request).ids) + request.sampling.max_tokens for request in requests)
    return rounded_up(longest) * asked.engine.model.kv_token_bytes


def test_no_more_run_at_once_than_fit(asked: Asked) -> None:
    requests = asked.questions(4)
    three = 3 * _row_bytes(asked, requests)
    ended = asked.run(requests, replace(LIMITS, kv_memory_bytes=three, share_prefixes=False))
    assert ended.stats.max_in_flight == 3
    assert ended.tokens(requests) == asked.want(requests)


def test_a_request_that_never_fits_says_what_it_needs_and_the_others_go_on(asked: Asked) -> None:
    requests = asked.questions(2)
    requests[3] = replace(requests[3], sampling=Sampling(max_tokens=2000))
    ended = asked.run(requests, replace(LIMITS, kv_memory_bytes=300 * asked.engine.model.kv_token_bytes))
    error = str(ended.answers[3].error)
    assert "need 0.00" in error
    assert "GB of KV cache" in error
    assert "raise --kv-memory" in error
    assert [answer.error for number, answer in ended.answers.items() if number != 3] == [None] * 7


def test_requests_that_never_fit_may_come_first_and_be_all(asked: Asked) -> None:
    requests = asked.questions(3)
    ended = asked.run(requests, replace(LIMITS, kv_memory_bytes=1))
    assert [answer.finish_reason for answer in ended.answers.values()] == ["error"] * len(requests)


def test_max_tokens_counts_no_further_than_the_models_context(asked: Asked) -> None:
    memory = KVMemory(GB, 10, max_context=1000)
    request = replace(asked.questions(1)[0], sampling=Sampling(max_tokens=10**9))
    prompt = asked.prompt(request)
    num_tokens = len(prompt.ids)
    assert memory.size(Sequence(request, prompt)) == (num_tokens, 1000 - num_tokens)


def test_the_default_is_a_share_of_what_there_is() -> None:
    assert 10_000_000 < default_kv_bytes(0) < 2**50


@pytest.mark.parametrize(
    "told",
    [{"max_recommended_working_set_size": 8 * GB, "memory_size": 16 * GB}, {"total_memory": 8 * GB}],
    ids=["Metal", "CUDA"],
)
def test_a_gpu_gives_a_share_of_its_own_memory(monkeypatch: pytest.MonkeyPatch, told: dict[str, int]) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: told)
    assert default_kv_bytes(3 * GB) == 3 * GB


def test_the_command_line_takes_a_size(run: Run, plain: Path, tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images")
    assert run("seeonce encode", images, "--model", plain).code == 0
    line = ("seeonce describe --fresh --max-tokens 4", images, "--model", plain, "--kv-memory")
    assert run(*line, "1GB").code == 0
    assert "--kv-memory is 'much'" in run(*line, "much").error
    assert "--max-num-seqs is 'many'" in run(*line, "1GB", "--max-num-seqs", "many").error
    assert run(*line, "1GB", "--max-num-seqs", "3").code == 0
    ended = run(*line, "1kB", "--fresh")
    assert (ended.code, "errors" in ended.out) == (1, True)


class Recording:
    """Frames of 5 MB of features each, written into a store, and a model whose text is small."""

    def __init__(self, checkpoint: Path, root: Path, num_frames: int) -> None:
        self.asked = Asked(checkpoint, root, 1)
        store, spec = self.asked.encoded.store, self.asked.encoded.spec
        rng = np.random.default_rng(0)
        self.frames, self.num_bytes = [], 0
        for index in range(num_frames):
            array = rng.standard_normal((4, 320, 1024), np.float32)
            features = Features(array, "float32", (1, 32, 40), 2)
            key = store.write(pixels(index), spec, features, PROVENANCE)
            self.num_bytes += array.nbytes
            assert key == entry_key(pixels(index), spec.encoder_id)
            self.frames.append(
                FrameEntry(
                    index, index * 10.0, f"{index}.png", pixels(index), key, 640, 512, (1, 32, 40), 320
                )
            )

    def peak_bytes(self, num_frames: int) -> int:
        """Return the most that MLX held beside the weights while two questions a frame were answered."""
        requests: list[Request] = []
        for frame in self.frames[:num_frames]:
            for text in ("Which app?", "What changed, and since when?"):
                requests.append(self.asked.request(len(requests), frame, text, max_tokens=2))
        mx.clear_cache()
        mx.reset_peak_memory()
        assert all(
            answer.error is None for answer in self.asked.run(requests, BatchLimits(4, 2)).answers.values()
        )
        return mx.get_peak_memory() - self.asked.engine.model.weight_bytes


def _same_peaks(checkpoint_of: MakeCheckpoint, root: Path, few: int, many: int) -> int:
    wide = checkpoint_of(Tiny(max_pixels=MAX_PIXELS, text_layers=3, hidden=1024))
    recording = Recording(wide, root, many)
    # The thread that reads ahead may hold a frame more, 5.2 MB, at the moment of the peak: the lesser of two.
    small, large = (min(recording.peak_bytes(number) for _ in range(2)) for number in (few, many))
    print(f"{few} frames {small / 1e6:.1f} MB, {many} frames {large / 1e6:.1f} MB beside the weights")
    assert large == pytest.approx(small, rel=0.05, abs=5.5e6)
    return recording.num_bytes


def test_twice_the_frames_need_no_more_memory(checkpoint_of: MakeCheckpoint, tmp_path: Path) -> None:
    _same_peaks(checkpoint_of, tmp_path, 2, 4)


@pytest.mark.campaign
def test_four_hundred_frames_need_what_twenty_need(checkpoint_of: MakeCheckpoint, tmp_path: Path) -> None:
    assert _same_peaks(checkpoint_of, tmp_path, 20, 400) > 2 * GB
