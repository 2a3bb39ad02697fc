"""Faults planted in the code of the passes: the outputs level of verify-cache objects to each."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from live_mlx_vlm import draw_noise, encode_folder, once_for_each_checkpoint
from PIL import Image
from test_verify import Recorded
from tiny_checkpoint import Tiny, write_checkpoint

from cache.base.home import Home
from cache.entry import Features
from cache.key import Preprocessing, pixel_digest
from cache.manifest import FrameEntry, write_manifest
from infer import features as stored
from infer import model as adapter
from infer import tokenizer as positions
from infer.engine import Engine
from infer.limits import BatchLimits
from infer.model import DenseDeepstackModel, LanguageModel, PromptInputs
from infer.prefill import Prefill, RowsKVCache
from infer.prefixes import PrefixPool, SharedPrefix
from infer.request import Answer, Request
from infer.sampling import Sampling, SeededDraw
from infer.sequence import Sequence
from infer.tokenizer import ChatTokenizer
from precompute import live, pipeline
from precompute.encoder import VisionEncoder
from precompute.patches import Patches, cut_into_patches
from seeonce.commands.verify_report import verdict_words
from seeonce.verifier import outputs
from seeonce.verifier.reference import LiveReference
from seeonce.verifier.report import Level
from sources import pixels

Patch = pytest.MonkeyPatch


def _exchange_answers(patch: Patch) -> None:
    right = Engine.answer

    def exchanged(*args: Any, **kwargs: Any) -> Iterator[tuple[Request, Answer]]:
        answers = sorted(right(*args, **kwargs), key=lambda pair: pair[0].id)
        for (request, _), (_, other) in zip(answers, [*answers[2:], *answers[:2]], strict=True):
            yield request, other

    patch.setattr(Engine, "answer", exchanged)


def _drop_deepstack(patch: Patch) -> None:
    right = LanguageModel.inputs

    def dropped(self: LanguageModel, *args: Any) -> PromptInputs:
        inputs = right(self, *args)
        return replace(inputs, deepstack=mx.zeros_like(inputs.deepstack))

    patch.setattr(LanguageModel, "inputs", dropped)


def _drop_deepstack_of_large_batches(patch: Patch) -> None:
    right = DenseDeepstackModel.hidden

    def dropped(
        self: Any, h: mx.array, cache: Any, position_ids: mx.array, deepstack: Any = None, **more: Any
    ) -> Any:
        return right(self, h, cache, position_ids, None if h.shape[0] > 3 else deepstack, **more)

    patch.setattr(DenseDeepstackModel, "hidden", dropped)


def _decode_one_position_off(patch: Patch) -> None:
    right = adapter._decode_positions
    patch.setattr(adapter, "_decode_positions", lambda *args: right(*args) + 1)


def _lose_rope_deltas(patch: Patch) -> None:
    right = adapter._decode_positions
    patch.setattr(adapter, "_decode_positions", lambda offset, deltas, shape: right(offset, None, shape))


def _turn_the_grid(patch: Patch) -> None:
    right = positions._grid
    patch.setattr(positions, "_grid", lambda grid, merge_size: right(grid, merge_size)[[0, 2, 1]])


def _mask_one_column_off(patch: Patch) -> None:
    right = RowsKVCache.make_mask
    roll: Any = mx.roll

    def off(self: RowsKVCache, *args: Any, **kwargs: Any) -> Any:
        mask = right(self, *args, **kwargs)
        return roll(mask, 1, axis=-1) if isinstance(mask, mx.array) else mask

    patch.setattr(RowsKVCache, "make_mask", off)


def _add_deepstack_a_layer_late(patch: Patch) -> None:
    right = adapter._layers_of

    def late(deepstack: mx.array) -> list[mx.array]:
        layers = right(deepstack)
        return [mx.zeros_like(layers[0]), *layers]

    patch.setattr(adapter, "_layers_of", late)


def _shift_features_by_a_row(patch: Patch) -> None:
    right = adapter._to_mlx
    roll: Any = mx.roll
    patch.setattr(adapter, "_to_mlx", lambda features: roll(right(features), 1, axis=1))


def _round_through_float16(patch: Patch) -> None:
    right = adapter._to_mlx
    patch.setattr(adapter, "_to_mlx", lambda features: right(features).astype(mx.float16))


def _drop_the_last_chunk(patch: Patch) -> None:
    right = Prefill.step

    def dropped(self: Prefill) -> None:
        right(self)
        if self._logits is None and self._done + 2 * self._chunk >= self._width:
            self._done = max(self._done, self._width - self._chunk // 2)

    patch.setattr(Prefill, "step", dropped)


def _share_the_prefix_of_another_frame(patch: Patch) -> None:
    right = PrefixPool.match
    newest: list[SharedPrefix] = []
    put = PrefixPool.put

    def kept(self: PrefixPool, keys: Any, prefix: SharedPrefix) -> None:
        newest.append(prefix)
        put(self, keys, prefix)

    def match(self: PrefixPool, keys: Any, prompt: Any) -> Any:
        found = right(self, keys, prompt)
        if found is None:
            return None
        alike = [p for p in newest if p.num_tokens >= found[1] and p is not found[0]]
        return (alike[0], found[1]) if alike else found

    patch.setattr(PrefixPool, "put", kept)
    patch.setattr(PrefixPool, "match", match)


def _show_frames_in_another_order(patch: Patch) -> None:
    right = LanguageModel.inputs

    def reversed_order(self: LanguageModel, prompt: Any, features_of: Any, num_shared: int = 0) -> Any:
        last = len(prompt.images) - 1
        if len({image.num_tokens for image in prompt.images}) > 1:
            return right(self, prompt, features_of, num_shared)
        return right(self, prompt, lambda number: features_of(last - number), num_shared)

    patch.setattr(LanguageModel, "inputs", reversed_order)


def _never_stop(patch: Patch) -> None:
    right = Sequence.take
    patch.setattr(Sequence, "take", lambda self, token, stop_ids: right(self, token, frozenset()))


def _ignore_seeds(patch: Patch) -> None:
    right = SeededDraw.__init__

    def same(self: SeededDraw, sampling: Sampling, *args: Any) -> None:
        right(self, replace(sampling, seed=0), *args)

    patch.setattr(SeededDraw, "__init__", same)


def _draw_by_order_of_arrival(patch: Patch) -> None:
    right, seeds = SeededDraw.__init__, count()

    def arrival(self: SeededDraw, sampling: Sampling, *args: Any) -> None:
        right(self, replace(sampling, seed=next(seeds)), *args)

    patch.setattr(SeededDraw, "__init__", arrival)


def _swap_deepstack_in_both_encodings(patch: Patch) -> None:
    right = VisionEncoder._features

    def swapped(self: VisionEncoder, *args: Any) -> Features:
        features = right(self, *args)
        return replace(features, array=features.array[[0, 2, 1, 3]].copy())

    patch.setattr(VisionEncoder, "_features", swapped)


def _give_the_neighbour(patch: Patch) -> None:
    right = stored.StoredFeatures.features
    seen: list[FrameEntry] = []

    def neighbour(self: stored.StoredFeatures, frame: FrameEntry) -> Features:
        alike = [other for other in seen if other.grid_thw == frame.grid_thw and other.key != frame.key]
        seen.append(frame)
        return right(self, alike[-1] if alike else frame)

    patch.setattr(stored.StoredFeatures, "features", neighbour)


def _lose_text(patch: Patch) -> None:
    patch.setattr(ChatTokenizer, "decode", lambda self, ids: "")


def _swap_channels(patch: Patch) -> None:
    right = pixels.read_image

    def swapped(path: Path) -> Image.Image:
        red, green, blue = right(path).split()
        return Image.merge("RGB", (blue, green, red))

    patch.setattr(pixels, "read_image", swapped)


def _resize_otherwise(patch: Patch) -> None:
    def coarser(image: Image.Image, preprocessing: Preprocessing) -> Patches:
        small = image.resize((max(1, image.width // 2), max(1, image.height // 2)))
        return cut_into_patches(small.resize(image.size), preprocessing)

    for module in (pipeline, live):
        patch.setattr(module, "cut_into_patches", coarser)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of one size and one of another: pairs, and rows that are padded."""
    root = tmp_path_factory.mktemp("faults")
    write_checkpoint(root / "checkpoint", Tiny(max_pixels=65536))
    draw_noise(root / "images", 1, seed=1)
    noise = draw_noise(root / "more", 3, seed=2)
    for number in (0, 2):
        (noise / f"{number:03}.png").rename(root / "images" / f"{number + 1:03}.png")
    return root


live_answer = once_for_each_checkpoint(LiveReference.answer)


@pytest.fixture(autouse=True)
def live_answers(monkeypatch: Patch, request: pytest.FixtureRequest) -> None:
    """Faults of pass two do not reach live answers: they are computed once; in the campaign each time."""
    if request.node.get_closest_marker("campaign") is None:
        monkeypatch.setattr(LiveReference, "answer", live_answer)


def _recorded(place: Path, home: Path) -> Recorded:
    """Encode with whatever fault is planted, as a user of that code would have."""
    encoded = encode_folder(place / "checkpoint", place / "images", home)
    write_manifest(Home(home), encoded.manifest)
    return Recorded(place / "checkpoint", place / "images", home)


LIMITS = BatchLimits(max_num_seqs=8, prefill_batch_size=4, prefill_step_size=32)


def test_the_twin_without_a_fault_passes(place: Path, tmp_path: Path) -> None:
    assert _recorded(place, tmp_path / "home").verify(limits=LIMITS).equal


ALWAYS = (
    _decode_one_position_off,
    _share_the_prefix_of_another_frame,
    _show_frames_in_another_order,
)
CAMPAIGN = (
    _swap_deepstack_in_both_encodings,
    _drop_deepstack,
    _give_the_neighbour,
    _mask_one_column_off,
    _ignore_seeds,
    _exchange_answers,
    _drop_deepstack_of_large_batches,
    _lose_text,
    _swap_channels,
    _resize_otherwise,
    _lose_rope_deltas,
    _turn_the_grid,
    _add_deepstack_a_layer_late,
    _shift_features_by_a_row,
    _round_through_float16,
    _drop_the_last_chunk,
    _never_stop,
    _draw_by_order_of_arrival,
)


@pytest.mark.parametrize(
    "plant", [*ALWAYS, *(pytest.param(plant, marks=pytest.mark.campaign) for plant in CAMPAIGN)]
)
def test_a_fault_in_the_code_is_objected_to(
    place: Path, tmp_path: Path, monkeypatch: Patch, plant: Callable[[Patch], None]
) -> None:
    plant(monkeypatch)
    report = _recorded(place, tmp_path / "home").verify(limits=LIMITS)
    print(plant.__name__, [problem for check in report.checks for problem in check.problems][:1])
    assert not report.equal


def test_a_divergence_that_is_explained_is_told(place: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    recorded = _recorded(place, tmp_path / "home")
    _drop_deepstack(monkeypatch)
    monkeypatch.setattr(outputs, "_MAX_TOKENS", 8)
    report = recorded.verify(sample="1", limits=LIMITS, logprob_tolerance=1000)
    figures = report.checks[2].logprobs
    assert figures is not None
    assert report.equal
    assert figures.num_other_answers > 0
    assert f"but for near-ties of live ({figures.num_other_answers} answers" in report.checks[2].words
    assert "are those of live encoding but for near-ties" in verdict_words(report)


def test_two_pictures_under_one_digest_are_objected_to(
    place: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    pixels_of = np.random.default_rng(0).integers(0, 255, (2, 96, 128, 3), dtype=np.uint8)
    pixels_of[1, :48] = pixels_of[0, :48]
    (tmp_path / "images").mkdir()
    for number, picture in enumerate(pixels_of):
        Image.fromarray(picture).save(tmp_path / "images" / f"{number}.png")
    for module in (pipeline, live):
        monkeypatch.setattr(module, "pixel_digest", lambda picture: pixel_digest(picture[:48].copy()))
    encoded = encode_folder(place / "checkpoint", tmp_path / "images", tmp_path / "home")
    write_manifest(Home(tmp_path / "home"), encoded.manifest)
    recorded = Recorded(place / "checkpoint", tmp_path / "images", tmp_path / "home")
    (problem,) = recorded.verify(Level.embeddings).checks[1].problems
    assert problem == "frame 1: it shows another picture than frame 0, whose entry it names"
