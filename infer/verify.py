"""verify-cache: holds the store against live encoding, at three levels, and says what was checked.

Owns what is compared and the words of the report. Live features and pictures come from pass one as a
``LiveSide``; live answers from mlx-vlm itself (``infer.reference``).
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from cache.entry import EntryInfo, Features, Provenance
from cache.errors import InputError, StalePictureError
from cache.home import Home
from cache.manifest import FrameEntry, Manifest, read_manifest
from cache.store import Store
from checkpoint import backend
from checkpoint.config import CheckpointConfig
from checkpoint.folder import CheckpointFolder
from infer.compare import RELATIVE_TOLERANCE, feature_differences
from infer.describe import Selected, select
from infer.selection import find_recording

if TYPE_CHECKING:
    from PIL import Image


class Level(StrEnum):
    """How much is proven; each level includes those before it."""

    bytes = "bytes"
    embeddings = "embeddings"
    outputs = "outputs"


class LiveSide(Protocol):
    """What pass one lends: pictures of frames, and what its encoder makes of them now."""

    def image(self, frame: FrameEntry) -> "Image.Image":
        """Return the RGB picture of a frame.

        Raises:
            CannotCheckError: it is gone or cannot be read.
            StalePictureError: it is no longer the picture that was encoded.
        """

    def features(self, frame: FrameEntry) -> Features:
        """Encode the picture of a frame now. Raises as ``image``."""


LiveSideOf = Callable[[CheckpointFolder, CheckpointConfig, Manifest], LiveSide]


class Listener(Protocol):
    """Who is told how the check goes."""

    def say(self, line: str) -> None:
        """Take one line for the user."""

    def begin(self, num_results: int, what: str = ..., unit: str = ...) -> None:
        """Learn what comes next and how much of it."""

    def advance(self, num_done: int = 1) -> None:
        """Take note of what is done."""


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """The options of ``verify-cache``. ``sample`` is a number of frames, or ``all``."""

    recording: str = "latest"
    level: Level = Level.outputs
    sample: str = "8"
    model: str | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Check:
    """One level: whether everything looked at was equal, in words, and each problem in a line."""

    name: str
    equal: bool
    words: str
    num_checked: int
    num_total: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What was checked of a recording, and whether all of it was equal."""

    recording: str
    level: str
    equal: bool
    checks: tuple[Check, ...]


def verify(
    home: Home, options: VerifyOptions, newest_id: str | None, live_side_of: LiveSideOf, listener: Listener
) -> Report:
    """Check a recording at a level.

    Raises:
        CannotCheckError: frames, model or entries that the level needs are not there.
        InputError: ``sample`` is neither a number nor ``all``.
    """
    num_sample = _sample_size(options.sample)
    store = Store.open(home, create=False)
    if options.level is Level.bytes and options.model is None:
        manifests = [read_manifest(ref.path) for ref in find_recording(home, options.recording, newest_id)]
        checks = [_check_bytes(store, manifests, listener)]
    else:
        selected = select(home, options.recording, options.model, newest_id, listener.say)
        manifests = [selected.manifest]
        checks = [_check_bytes(store, manifests, listener)]
        if options.level is not Level.bytes:
            frames = _sample(selected.manifest, num_sample, options.seed)
            checks += _check_live(store, selected, frames, options.level, live_side_of, listener)
    equal = all(check.equal for check in checks)
    return Report(manifests[0].recording.id, options.level.value, equal, tuple(checks))


def _sample_size(sample: str) -> int | None:
    if sample == "all":
        return None
    if sample.isdigit() and int(sample) > 0:
        return int(sample)
    raise InputError(f"--sample is {sample!r}; expected a number of frames above 0, or all.")


def _sample(manifest: Manifest, size: int | None, seed: int) -> list[FrameEntry]:
    """Draw frames of different entries, every size of picture among them first."""
    distinct = list({frame.key: frame for frame in manifest.frames}.values())
    if size is None or size >= len(distinct):
        return distinct
    shuffled = random.Random(seed).sample(distinct, len(distinct))  # noqa: S311 - a sample, no secret
    firsts = {frame.grid_thw: frame for frame in reversed(shuffled)}
    rest = [frame for frame in shuffled if frame not in firsts.values()]
    return sorted([*firsts.values(), *rest][:size], key=lambda frame: frame.index)


def _check_bytes(store: Store, manifests: list[Manifest], listener: Listener) -> Check:
    problems = [problem for manifest in manifests for problem in manifest.problems()]
    keys = list(dict.fromkeys(frame.key for manifest in manifests for frame in manifest.frames))
    listener.begin(len(keys), "bytes", "entry")
    for key in keys:
        problem = store.check(key)
        if problem is not None:
            problems.append(f"entry {key.hex[:12]}: {problem.reason}")
        listener.advance()
    words = f"every byte of {len(keys)} entries against its digests"
    return Check("bytes", not problems, words, len(keys), len(keys), tuple(problems))


def _check_live(
    store: Store,
    selected: Selected,
    frames: list[FrameEntry],
    level: Level,
    live_side_of: LiveSideOf,
    listener: Listener,
) -> Iterator[Check]:
    live_side = live_side_of(selected.folder, selected.config, selected.manifest)
    live = LiveFeatures(live_side)
    yield _check_embeddings(store, selected, frames, live, listener)
    if level is Level.outputs:
        from infer.outputs import check_outputs

        readable = [frame for frame in frames if frame.key not in live.stale]
        yield check_outputs(store, selected, readable, live_side, live, listener)


class LiveFeatures:
    """Live features of a sample, each encoded once for all levels."""

    def __init__(self, live_side: LiveSide) -> None:
        """Encode with ``live_side``."""
        self._live_side = live_side
        self._known: dict[bytes, Features] = {}
        self.stale: set[object] = set()

    def features(self, frame: FrameEntry) -> Features:
        """Return what the encoder makes of a frame now. Raises as ``LiveSide.image``."""
        if frame.key.raw not in self._known:
            self._known[frame.key.raw] = self._live_side.features(frame)
        return self._known[frame.key.raw]


def _check_embeddings(
    store: Store, selected: Selected, frames: list[FrameEntry], live: LiveFeatures, listener: Listener
) -> Check:
    problems: list[str] = []
    num_exact = 0
    listener.begin(len(frames), "embeddings", "frame")
    for frame in frames:
        try:
            problem, exact = _compare(store, frame, live.features(frame))
        except StalePictureError as error:
            live.stale.add(frame.key)
            problem, exact = str(error), False
        num_exact += exact
        if problem is not None:
            problems.append(f"frame {frame.index}: {problem}")
        listener.advance()
    num_total = len({frame.key for frame in selected.manifest.frames})
    words = f"{len(frames)} of {num_total} entries encoded live, {num_exact} equal bit for bit"
    return Check("embeddings", not problems, words, len(frames), num_total, tuple(problems))


def _compare(store: Store, frame: FrameEntry, live: Features) -> tuple[str | None, bool]:
    """Return the problem, if there is one, and whether every bit agrees."""
    info, stored = store.peek(frame.key), store.read(frame.key)
    if stored is None or info is None:
        return "its entry is missing or damaged", False
    differences = feature_differences(stored, live)
    if differences is None:
        return f"{stored.array.shape} {stored.dtype}, live {live.array.shape} {live.dtype}", False
    if not differences:
        return None, True
    tolerance = 0.0 if _same_provenance(info) else RELATIVE_TOLERANCE[stored.dtype]
    worst = max(differences, key=lambda layer: layer.relative)
    if worst.relative <= tolerance:
        return None, False
    return (
        f"{len(differences)} layers differ, most {worst.layer}: max |difference| {worst.max_abs:.3g}, "
        f"relative {worst.relative:.3g}, cosine {worst.cosine:.6f}; tolerance {tolerance:g}"
    ), False


def _same_provenance(info: EntryInfo) -> bool:
    def computing(provenance: Provenance) -> tuple[str, ...]:
        return (provenance.mlx, provenance.mlx_vlm, provenance.device, provenance.chip)

    return computing(info.provenance) == computing(backend.provenance())
