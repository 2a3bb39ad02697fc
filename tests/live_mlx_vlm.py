"""What tests hold seeonce against: mlx-vlm as its users call it, and recordings of drawn noise."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_vlm import load, stream_generate
from mlx_vlm.prompt_utils import apply_chat_template
from PIL import Image

from cache.base.home import Home
from cache.key import EncoderSpec
from cache.manifest import Manifest
from cache.pixel_index import PixelIndex
from cache.prefixes import PrefixStore
from cache.store import Durability, Store
from checkpoint.config import Checkpoint
from checkpoint.folder import find_checkpoint
from checkpoint.identity import encoder_spec
from infer.engine import Engine
from infer.features import StoredFeatures
from infer.limits import BatchLimits
from infer.request import Answer, Request
from infer.sampling import Sampling
from infer.sequence import HooksOf, sampling_hooks
from precompute.encoder import VisionEncoder
from precompute.pipeline import encode_recording
from seeonce.runs.prompts import Prompt
from seeonce.verifier.reference import LiveReference
from sources.folder import open_folder

SIZES = ((96, 128), (128, 96), (64, 256), (160, 192), (224, 96), (32, 64), (256, 256), (96, 352))
PROMPTS = (
    "Describe.",
    "What apps are open on this screen now?",
    "Topics?",
    "Describe this image in a lot of detail please, and say what the person at the keyboard may want.",
    "Which window is in front? " * 6,
)


def draw_noise(folder: Path, num_images: int, seed: int = 0, num_sizes: int = len(SIZES)) -> Path:
    """Write pictures of noise in mixed sizes; no two are alike."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for index in range(num_images):
        height, width = SIZES[index % num_sizes]
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return folder


class Live:
    """mlx-vlm's whole model, one request at a time, greedy."""

    def __init__(self, checkpoint: Path, dtype: str = "float32") -> None:
        self.model: Any
        self.processor: Any
        self.model, self.processor = load(str(checkpoint), lazy=True)
        self.model.set_dtype(getattr(mx, dtype))

    def formatted(self, prompt: str) -> str:
        """Return the prompt as mlx-vlm's own chat template gives it for one image."""
        return str(apply_chat_template(self.processor, self.model.config, prompt, num_images=1))

    def tokens(self, prompt: str, image: Path, max_tokens: int) -> tuple[int, ...]:
        """Return the greedy tokens, the stop token left out."""
        responses = stream_generate(
            self.model,
            self.processor,
            self.formatted(prompt),
            [str(image)],
            max_tokens=max_tokens,
            temperature=0.0,
        )
        stop = self.processor.tokenizer.stopping_criteria
        tokens = [int(response.token) for response in responses][:max_tokens]
        return tuple(token for token in tokens if not stop(token))


def once_for_each_checkpoint(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method of ``LiveReference`` compute what it is asked once; no fault of ours may reach it."""
    known: dict[str, Any] = {}

    def looked_up(self: LiveReference, *asked: object) -> Any:
        about = repr((self._spec.encoder_id, self._model.config.model_type, asked))
        if about not in known:
            known[about] = method(self, *asked)
        return known[about]

    return looked_up


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A recording in a store, and what pass two needs to be asked about it."""

    checkpoint: Checkpoint
    spec: EncoderSpec
    store: Store
    manifest: Manifest

    def requests(self, prompts: tuple[str, ...], sampling: Sampling) -> list[Request]:
        """Ask every prompt of every frame."""
        asked = [(frame, prompt) for frame in self.manifest.frames for prompt in prompts]
        return [
            Request(number, Prompt(prompt).segments(frame), sampling)
            for number, (frame, prompt) in enumerate(asked)
        ]

    def answers(
        self, requests: list[Request], limits: BatchLimits, hooks_of: HooksOf | None = sampling_hooks
    ) -> dict[int, Answer]:
        """Answer requests from the store, batched."""
        engine = Engine.load(self.checkpoint, self.spec.compute_dtype)
        start_from_disk_if_told(engine, self.store.home)
        source = StoredFeatures(self.store, self.manifest.recording.id)
        answers = engine.answer(requests, source, limits, hooks_of=hooks_of)
        return {request.id: answer for request, answer in answers}


def start_from_disk_if_told(engine: Engine, home: Home) -> None:
    """With SEEONCE_TEST_PREFIX_CACHE=BYTES every campaign of pass two starts from prefixes on disk, too."""
    if num_bytes := os.environ.get("SEEONCE_TEST_PREFIX_CACHE"):
        engine.keep_prefixes(PrefixStore(home, int(num_bytes)), ("the only weights of this home",))


def encode_folder(folder: Path, images: Path, home: Path) -> Encoded:
    """Run pass one over a folder of images, with the checkpoint in ``folder``."""
    checkpoint = find_checkpoint(str(folder), print)
    store = Store.open(Home(home), durability=Durability.none)
    with PixelIndex(Home(home)) as index:
        spec = encoder_spec(checkpoint, index)
        result = encode_recording(
            open_folder(images), spec, store, index, lambda: VisionEncoder(checkpoint, spec)
        )
    return Encoded(checkpoint, spec, store, result.manifest)
