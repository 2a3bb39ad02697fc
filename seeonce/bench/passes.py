"""Both passes as the benchmark runs them: drawn screens, a checkpoint, and a store of their own."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from cache.base.errors import SeeonceError
from cache.base.home import Home
from cache.key import EncoderSpec
from cache.manifest import Manifest
from cache.pixel_index import PixelIndex
from cache.store import Store
from cache.thumbnails import Thumbnails
from checkpoint.config import Checkpoint
from checkpoint.identity import find_encoder
from infer.engine import Engine
from infer.features import StoredFeatures
from infer.hooks import RowHooks
from infer.limits import BatchLimits
from infer.request import Request, Text
from infer.sampling import Sampling
from infer.sequence import Sequence, sampling_hooks
from precompute.encoder import VisionEncoder
from precompute.pass_one import write_result
from precompute.pipeline import EncodeResult, Seconds, encode_recording
from seeonce.bench.bare import BareDecoder
from seeonce.demo.paint import paint
from seeonce.demo.scene import sample_scene
from seeonce.demo.screens import FIRST_HELD_OUT_SEED, SIZES, write_truth
from seeonce.runs.prompts import DEFAULT_PROMPT, Prompt
from sources.folder import open_folder
from sources.recording import Recording

# All of them trained into the demo checkpoint, whose answers can so be held against the truth.
QUESTIONS = (
    "Which applications are open?",
    "What is the user doing?",
    "How many windows are open?",
    "What topics are on the screen?",
    DEFAULT_PROMPT,
    "List the open applications.",
    "Count the windows.",
    "List the topics.",
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One question about one picture."""

    image: Path
    question: str


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint and the encoder that it holds."""

    checkpoint: Checkpoint
    spec: EncoderSpec

    @classmethod
    def open(cls, name: str, home: Home) -> "Model":
        """Read what a checkpoint is. Raises ``CheckpointError``."""
        return cls(*find_encoder(home, name, lambda _: None))

    def encoder(self) -> VisionEncoder:
        """Load the vision half."""
        return VisionEncoder(self.checkpoint, self.spec)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A folder of frames in a store, ready to be asked about; pass one took ``took_s``, loading included.

    ``seconds`` says what for.
    """

    model: Model
    images: Path
    store: Store
    manifest: Manifest
    took_s: float = 0.0
    seconds: Seconds = field(default_factory=Seconds)

    def asks(self, questions: Iterable[str]) -> list[Ask]:
        """Ask every question of every frame, frame by frame."""
        return [Ask(Path(frame.source), text) for frame in self.manifest.frames for text in questions]

    def requests(self, questions: tuple[str, ...], max_tokens: int) -> list[Request]:
        """Return ``asks`` for pass two, greedily."""
        asked = [(frame, question) for frame in self.manifest.frames for question in questions]
        sampling = Sampling(max_tokens=max_tokens)
        return [
            Request(number, Prompt(question).segments(frame), sampling)
            for number, (frame, question) in enumerate(asked)
        ]

    def bare_questions(self, questions: tuple[str, ...]) -> list[Request]:
        """Ask for one token of every question, of no frame at all."""
        sampling = Sampling(max_tokens=1)
        return [Request(number, (Text(question),), sampling) for number, question in enumerate(questions)]


Tokens = list[tuple[int, ...]]


class PassTwo:
    """Pass two over encoded frames, its language model loaded."""

    def __init__(self, encoded: Encoded) -> None:
        model = encoded.model
        self._encoded = encoded
        self._engine = Engine.load(model.checkpoint, model.spec.compute_dtype)
        self.tokenizer = self._engine.tokenizer
        self._source = StoredFeatures(encoded.store, encoded.manifest.recording.id)

    def bare(self, requests: list[Request], limits: BatchLimits) -> BareDecoder:
        """Return what the decoder alone does for these requests."""
        return BareDecoder(self._engine, requests, self._source, limits)

    def texts(self, requests: list[Request], limits: BatchLimits) -> list[str]:
        """Answer requests from the store; return the texts in the order of the requests."""
        answered, _ = self.answers(requests, limits, self.tokenizer.stop_ids)
        return [self.tokenizer.decode(tokens) for tokens in answered]

    def answers(
        self, requests: list[Request], limits: BatchLimits, stop_ids: frozenset[int]
    ) -> tuple[Tokens, list[float]]:
        """Answer requests from the store; return the tokens of each, and the seconds that it took.

        A latency begins when a client that keeps so many in flight would have sent the request, or with its
        prefill if that is earlier; it ends with the last token.

        Raises:
            SeeonceError: a request failed: a benchmark with errors measures nothing.
        """
        began: dict[int, float] = {}

        def hooks_of(sequence: Sequence) -> RowHooks:
            began[sequence.request.id] = time.perf_counter()
            return sampling_hooks(sequence)

        source = self._source
        started, done = time.perf_counter(), dict[int, tuple[tuple[int, ...], float]]()
        answers = self._engine.answer(requests, source, limits, hooks_of=hooks_of, stop_ids=stop_ids)
        for request, answer in answers:
            if answer.error is not None:
                raise SeeonceError(f"A request of the benchmark failed: {answer.error}")
            done[request.id] = answer.tokens, time.perf_counter()
        at_once = limits.max_num_seqs or len(requests)
        sent = [started] * at_once + sorted(ended for _, ended in done.values())
        latencies = [
            done[request.id][1] - min(at, began[request.id])
            for request, at in zip(requests, sent, strict=False)
        ]
        return [done[request.id][0] for request in requests], latencies


def draw_frames(folder: Path, num_frames: int, size: tuple[int, int] = SIZES[0]) -> Path:
    """Draw different screens of one size (width, height), always the same, and write what is true of them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{index:04d}.png" for index in range(num_frames)]
    scenes = [sample_scene(FIRST_HELD_OUT_SEED + index, SIZES[0]) for index in range(num_frames)]
    for name, scene in zip(names, scenes, strict=True):
        image = paint(scene)
        fits = image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
        fits.save(folder / name)
    write_truth(folder, names, scenes)
    return folder


def encode_frames(model: Model, images: Path, home: Home, encoder: VisionEncoder | None = None) -> Encoded:
    """Do what ``seeonce encode`` does once it has the checkpoint; the encoder may be loaded already.

    Raises:
        KeyboardInterrupt: on Ctrl-C, which ends pass one well: a part of the frames measures nothing.
    """
    started = time.perf_counter()
    result = encode(open_folder(images), model.spec, home, lambda: encoder or model.encoder())
    took_s = time.perf_counter() - started
    return Encoded(model, images, Store.open(home), result.manifest, took_s, result.seconds)


def encode(
    recording: Recording, spec: EncoderSpec, home: Home, load_encoder: Callable[[], VisionEncoder]
) -> EncodeResult:
    """Encode a recording and write its manifest. Raises ``KeyboardInterrupt`` when that was interrupted."""
    store = Store.open(home)
    with PixelIndex(home) as index:
        result = encode_recording(recording, spec, store, index, load_encoder, thumbnails=Thumbnails(home))
    if result.interrupted:
        raise KeyboardInterrupt
    write_result(store, result, lambda _: None)
    return result
