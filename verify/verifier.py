"""verify-cache: holds the store against live encoding, at three levels, and says what was checked.

Owns what is compared and the words of the report. Live features and pictures come from pass one as a
``LiveSide``; live answers from mlx-vlm itself (``verify.reference``).
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from cache.errors import CannotCheckError, InputError
from cache.home import Home
from cache.key import EntryKey
from cache.leases import held_lease
from cache.manifest import FrameEntry, Manifest, read_manifest
from cache.store import Store
from infer.selection import NewestId, Selected, find_recording, select
from verify.embeddings import EmbeddingCheck
from verify.live_side import LiveFeatures, LiveSideOf
from verify.report import Check, Level, Listener, Report


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """The options of ``verify-cache``. ``sample`` is a number of frames, or ``all``."""

    recording: str = "latest"
    level: Level = Level.outputs
    sample: str = "8"
    model: str | None = None
    seed: int = 0


def verify(
    home: Home, options: VerifyOptions, newest_id: NewestId, live_side_of: LiveSideOf, listener: Listener
) -> Report:
    """Check a recording at a level. What cannot be checked is named in the report.

    Raises:
        CannotCheckError: the recording has no encoded frame.
        NotEncodedError: it is not encoded, or not by this model's vision tower.
        InputError: ``sample`` is neither a number nor ``all``.
    """
    num_sample = _sample_size(options.sample)
    store = Store.open(home, create=False)
    with held_lease(store, f"verify-cache {options.recording}"):
        return _verify(home, store, options, num_sample, newest_id, live_side_of, listener)


def _verify(
    home: Home,
    store: Store,
    options: VerifyOptions,
    num_sample: int | None,
    newest_id: NewestId,
    live_side_of: LiveSideOf,
    listener: Listener,
) -> Report:
    if options.level is Level.bytes and options.model is None:
        refs = find_recording(home, options.recording, newest_id)
        manifests = [read_manifest(ref.path) for ref in refs]
        checks = [_check_bytes(store, manifests, listener)]
    else:
        selected = select(home, options.recording, options.model, newest_id, listener.say)
        manifests = [selected.manifest]
        checks = [_check_bytes(store, manifests, listener)]
        if options.level is not Level.bytes:
            sample = _sample(selected.manifest, num_sample, options.seed)
            checks += _check_live(store, selected, sample, options.level, live_side_of, listener)
    return Report(
        recording=manifests[0].recording.id,
        level=options.level.value,
        equal=all(check.equal for check in checks),
        complete=not any(check.unchecked for check in checks),
        checks=tuple(checks),
    )


def _sample_size(sample: str) -> int | None:
    if sample == "all":
        return None
    if sample.isascii() and sample.isdigit() and int(sample) > 0:
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
    frames = {frame.key: frame for manifest in manifests for frame in manifest.frames}
    if not frames:
        raise CannotCheckError(f"{manifests[0].recording.id} has no encoded frame: run seeonce encode.")
    problems = [problem for manifest in manifests for problem in _manifest_problems(manifest)]
    listener.begin(len(frames), "bytes", "entry")
    for key, frame in frames.items():
        problem, info = store.check(key), store.peek(key)
        if problem is not None:
            problems.append(f"entry {key.hex[:12]}: {problem.reason}")
        elif info is None or (info.grid_thw, info.num_tokens) != (frame.grid_thw, frame.num_tokens):
            problems.append(f"entry {key.hex[:12]}: another grid than the manifest names")
        listener.advance()
    words = f"every byte of {len(frames)} entries against its digests"
    return Check("bytes", not problems, words, len(frames), len(frames), tuple(problems))


def _manifest_problems(manifest: Manifest) -> list[str]:
    num_named = len(manifest.frames) + len(manifest.skipped)
    if manifest.complete and num_named != manifest.recording.num_frames:
        missing = f"the manifest names {num_named} frames of {manifest.recording.num_frames}"
        return [missing, *manifest.problems()]
    return manifest.problems()


def _check_live(
    store: Store,
    selected: Selected,
    sample: list[list[FrameEntry]],
    level: Level,
    live_side_of: LiveSideOf,
    listener: Listener,
) -> Iterator[Check]:
    try:
        live = LiveFeatures(live_side_of(selected.folder, selected.config, selected.manifest))
    except CannotCheckError as error:
        yield Check("embeddings", True, "not checked", 0, len(sample), (), (str(error),))
        return
    embeddings = EmbeddingCheck(store, live)
    yield embeddings.run(selected.manifest, sample, listener)
    if level is Level.outputs:
        from verify.outputs import check_outputs

        if embeddings.readable:
            same = all(map(embeddings.same_provenance, embeddings.readable))
            yield check_outputs(store, selected, embeddings.readable, live, same, listener)
        else:
            yield Check(
                "outputs", True, "not checked", 0, len(sample), (), ("no frame is left to ask about",)
            )
