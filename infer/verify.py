"""verify-cache: holds the store against live encoding, at three levels, and says what was checked.

Owns what is compared and the words of the report. Live features and pictures come from pass one as a
``LiveSide``; live answers from mlx-vlm itself (``infer.reference``).
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cache.entry import EntryInfo, Features, Provenance
from cache.errors import InputError, StalePictureError
from cache.home import Home
from cache.key import EntryKey
from cache.manifest import FrameEntry, Manifest, read_manifest
from cache.store import Store
from checkpoint import backend
from infer.compare import RELATIVE_TOLERANCE, feature_differences
from infer.describe import Selected, select
from infer.live_side import LiveFeatures, LiveSideOf
from infer.report import Check, Level, Listener, Report
from infer.selection import find_recording

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """The options of ``verify-cache``. ``sample`` is a number of frames, or ``all``."""

    recording: str = "latest"
    level: Level = Level.outputs
    sample: str = "8"
    model: str | None = None
    seed: int = 0


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
            sample = _sample(selected.manifest, num_sample, options.seed)
            checks += _check_live(store, selected, sample, options.level, live_side_of, listener)
    equal = all(check.equal for check in checks)
    return Report(manifests[0].recording.id, options.level.value, equal, tuple(checks))


def _sample_size(sample: str) -> int | None:
    if sample == "all":
        return None
    if sample.isdigit() and int(sample) > 0:
        return int(sample)
    raise InputError(f"--sample is {sample!r}; expected a number of frames above 0, or all.")


def _sample(manifest: Manifest, size: int | None, seed: int) -> list[list[FrameEntry]]:
    """Draw entries, every size of picture among them first; return the frames that name each."""
    by_key: dict[EntryKey, list[FrameEntry]] = {}
    for frame in manifest.frames:
        by_key.setdefault(frame.key, []).append(frame)
    groups = list(by_key.values())
    if size is None or size >= len(groups):
        return groups
    shuffled = random.Random(seed).sample(groups, len(groups))  # noqa: S311 - a sample, no secret
    firsts = {group[0].grid_thw: group for group in reversed(shuffled)}
    rest = [group for group in shuffled if group not in firsts.values()]
    return sorted([*firsts.values(), *rest][:size], key=lambda group: group[0].index)


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
    sample: list[list[FrameEntry]],
    level: Level,
    live_side_of: LiveSideOf,
    listener: Listener,
) -> Iterator[Check]:
    live = LiveFeatures(live_side_of(selected.folder, selected.config, selected.manifest))
    yield _check_embeddings(store, selected, sample, live, listener)
    if level is Level.outputs:
        from infer.outputs import check_outputs

        current = [group[0] for group in sample if group[0].key not in live.stale]
        yield check_outputs(store, selected, current, live, listener)


def _check_embeddings(
    store: Store, selected: Selected, sample: list[list[FrameEntry]], live: LiveFeatures, listener: Listener
) -> Check:
    problems: list[str] = []
    num_exact = 0
    listener.begin(len(sample), "embeddings", "entry")
    for group in sample:
        exact = True
        for frame in group:
            try:
                problem, frame_exact = _compare(store, frame, live.features(frame))
            except StalePictureError as error:
                live.stale.add(frame.key)
                problem, frame_exact = str(error), False
            exact = exact and frame_exact
            problems += [f"frame {frame.index}: {problem}"] if problem else []
        num_exact += exact
        listener.advance()
    num_total = len({frame.key for frame in selected.manifest.frames})
    num_frames = sum(len(group) for group in sample)
    words = (
        f"{len(sample)} of {num_total} entries encoded live from {num_frames} frames, "
        f"{num_exact} equal bit for bit"
    )
    return Check("embeddings", not problems, words, len(sample), num_total, tuple(problems))


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
