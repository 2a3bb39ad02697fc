"""What the workloads are measured on: drawn screens, a checkpoint, and a store of their own.

Owns making these things once for all workloads, in a folder that goes away afterwards. The user's store is
never touched.
"""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cache.home import Home
from cache.key import EncoderSpec
from cache.manifest import Manifest
from cache.pixel_index import PixelIndex
from cache.store import Durability, Store
from checkpoint.config import CheckpointConfig, read_config
from checkpoint.folder import CheckpointFolder, find_folder
from checkpoint.identity import encoder_spec
from demo.screens import FIRST_HELD_OUT_SEED, draw_screen
from infer.prompt import Prompt
from infer.request import Request
from infer.sampling import Sampling
from infer.tokenizer import ChatTokenizer
from precompute.encode import encode_recording
from precompute.vision import VisionEncoder
from sources.folder import open_folder

QUESTIONS = (
    "Which applications are open?",
    "What is the user doing?",
    "How many windows are open?",
    "What topics are on the screen?",
    "Describe the screen in one line.",
    "Is the desktop light or dark?",
    "Which window is in front, and what can be read in its title bar?",
    "Name everything on this screen that a colleague should not see.",
)


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint and the encoder that it holds."""

    folder: CheckpointFolder
    config: CheckpointConfig
    spec: EncoderSpec

    @classmethod
    def open(cls, name: str, home: Home) -> "Model":
        """Read what a checkpoint is. Raises ``CheckpointError``."""
        folder = find_folder(name, lambda _: None)
        config = read_config(folder.path)
        with PixelIndex(home) as index:
            return cls(folder, config, encoder_spec(folder, config, index))

    def encoder(self) -> VisionEncoder:
        """Load the vision half."""
        return VisionEncoder(self.folder, self.config, self.spec)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A folder of frames in a store, ready to be asked about."""

    model: Model
    images: Path
    store: Store
    manifest: Manifest

    def requests(self, questions: tuple[str, ...], max_tokens: int) -> list[Request]:
        """Ask every question of every frame, frame by frame, greedily."""
        tokenizer = ChatTokenizer(self.model.folder, self.model.config)
        asked = [(frame, question) for frame in self.manifest.frames for question in questions]
        sampling = Sampling(max_tokens=max_tokens)
        return [
            Request(number, tokenizer.encode(Prompt(question).segments(frame)), (frame,), sampling)
            for number, (frame, question) in enumerate(asked)
        ]


def draw_frames(folder: Path, num_frames: int, size: tuple[int, int]) -> Path:
    """Draw different screens of one size (width, height), the same ones every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(num_frames):
        image = draw_screen(FIRST_HELD_OUT_SEED + index).image
        image.resize(size, Image.Resampling.LANCZOS).save(folder / f"{index:04d}.png")
    return folder


def encode_frames(model: Model, images: Path, home: Home) -> Encoded:
    """Run pass one over a folder of frames."""
    store = Store.open(home, durability=Durability.none)
    with PixelIndex(home) as index:
        result = encode_recording(open_folder(images), model.spec, store, index, model.encoder)
    return Encoded(model, images, store, result.manifest)
