"""Faults planted in the code of the passes: the outputs level of verify-cache objects to each."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from live_mlx_vlm import draw_noise, encode_folder
from PIL import Image
from test_verify import Recorded
from tiny_checkpoint import Tiny, write_checkpoint

from cache.entry import Features
from cache.home import Home
from cache.manifest import FrameEntry, write_manifest
from infer import batching, stored
from infer.mlx_vlm_adapter import DenseDeepstackModel, LanguageHalf, PromptInputs
from infer.tokenizer import ChatTokenizer
from precompute.vision import Preprocessor
from sources import pixels
from verify import outputs

Patch = pytest.MonkeyPatch


def _exchange_answers(patch: Patch) -> None:
    def exchanged(*args: Any, **kwargs: Any) -> Iterator[batching.Answer]:
        answers = sorted(batching.answer_all(*args, **kwargs), key=lambda answer: answer.request.id)
        for answer, other in zip(answers, [*answers[2:], *answers[:2]], strict=True):
            yield replace(answer, tokens=other.tokens, finish_reason=other.finish_reason)

    patch.setattr(outputs, "answer_all", exchanged)


def _drop_deepstack(patch: Patch) -> None:
    right = LanguageHalf.inputs

    def dropped(self: LanguageHalf, *args: Any) -> PromptInputs:
        inputs = right(self, *args)
        return replace(inputs, deepstack=mx.zeros_like(inputs.deepstack))

    patch.setattr(LanguageHalf, "inputs", dropped)


def _drop_deepstack_of_large_batches(patch: Patch) -> None:
    right = DenseDeepstackModel.__call__

    def dropped(self: Any, inputs: mx.array, **kwargs: Any) -> Any:
        if inputs.shape[0] > 3:
            kwargs["deepstack_visual_embeds"] = None
        return right(self, inputs, **kwargs)

    patch.setattr(DenseDeepstackModel, "__call__", dropped)


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
    right = Preprocessor.patches

    def coarser(self: Preprocessor, image: Image.Image) -> Any:
        small = image.resize((max(1, image.width // 2), max(1, image.height // 2)))
        return right(self, small.resize(image.size))

    patch.setattr(Preprocessor, "patches", coarser)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faults")
    write_checkpoint(root / "checkpoint", Tiny(max_pixels=65536))
    draw_noise(root / "images", 10)
    return root


def _recorded(place: Path, home: Path) -> Recorded:
    """Encode with whatever fault is planted, as a user of that code would have."""
    encoded = encode_folder(place / "checkpoint", place / "images", home)
    write_manifest(Home(home), encoded.manifest)
    return Recorded(place / "checkpoint", place / "images", home)


def test_the_twin_without_a_fault_passes(place: Path, tmp_path: Path) -> None:
    assert _recorded(place, tmp_path / "home").verify(sample="4").equal


@pytest.mark.parametrize(
    "plant",
    [
        _exchange_answers,
        _drop_deepstack,
        _drop_deepstack_of_large_batches,
        _give_the_neighbour,
        _lose_text,
        _swap_channels,
        _resize_otherwise,
    ],
)
def test_a_fault_in_the_code_is_objected_to(
    place: Path, tmp_path: Path, monkeypatch: Patch, plant: Callable[[Patch], None]
) -> None:
    plant(monkeypatch)
    assert not _recorded(place, tmp_path / "home").verify(sample="all").equal
