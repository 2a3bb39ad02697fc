"""The three levels of verify-cache: bytes, then features, then answers, each against live encoding."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cache.base.errors import CannotCheckError, InputError
from cache.base.home import Home
from cache.base.listener import Listener
from cache.entry import Features
from cache.leases import held_lease
from cache.manifest import FrameEntry, Manifest, read_manifest
from cache.store import Store
from checkpoint import backend
from infer.limits import BatchLimits
from precompute.live import LiveFrames
from seeonce.runs.recording import Selected, find_recording, select
from seeonce.verifier.byte_check import check_recording_bytes, check_store_bytes
from seeonce.verifier.differences import provenance_differences, tolerances
from seeonce.verifier.embeddings import EmbeddingCheck
from seeonce.verifier.report import Against, Check, Level, Report, Tolerances
from seeonce.verifier.sample import Group, draw, entry_groups, sample_size
from seeonce.verifier.transformers_reference import check_against_transformers

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """The options of ``verify-cache``.

    ``sample`` is a number of entries, or ``all``; ``tolerance`` and ``logprob_tolerance`` replace those of
    the compute dtype; ``limits`` are pass two's, which answers are given under. ``sample_only`` checks
    bytes of the sample, too, and not of all.

    Raises:
        InputError: ``sample`` is neither a number nor ``all``, a tolerance is not a number, or the level does
            not ask the reference ``against``.
    """

    recording: str = "latest"
    level: Level = Level.outputs
    sample: str = "8"
    model: str | None = None
    seed: int = 0
    tolerance: float | None = None
    logprob_tolerance: float | None = None
    limits: BatchLimits = field(default_factory=lambda: BatchLimits(max_num_seqs=8))
    controls: bool = False
    against: Against | None = None
    sample_only: bool = False

    def __post_init__(self) -> None:
        sample_size(self.sample)
        tolerances("float32", self.tolerance, self.logprob_tolerance)
        least = Level.embeddings if self.against is Against.transformers else Level.outputs
        levels = list(Level)
        if self.against is not None and levels.index(self.level) < levels.index(least):
            raise InputError(f"--against {self.against} needs --level {least}, got {self.level}.")


def check_recording(home: Home, options: VerifyOptions, listener: Listener) -> Report:
    """Check a recording at each level up to the one asked for; no controls.

    Raises:
        CannotCheckError: the recording has no encoded frame.
        NotEncodedError: it is not encoded, or not by this model's vision tower.
    """
    store = Store.open(home, create=False)
    if options.level is Level.bytes and options.model is None and not options.controls:
        refs = find_recording(home, options.recording)
        manifests = [_bytes_checked(read_manifest(ref.path), options) for ref in refs]
        check = check_recording_bytes(store, manifests, listener)
        return _report(refs[0].recording.id, options.level, [check])
    selected = select(home, options.recording, options.model, listener.say)
    manifest = selected.manifest
    if line := manifest.skipped_line():
        listener.say(line)
    checks = [check_recording_bytes(store, [_bytes_checked(manifest, options)], listener)]
    store = replace(store, writable=False)  # damaged entries stay, and no use is noted
    if options.level is not Level.bytes:
        allowed = tolerances(manifest.encoder.compute_dtype, options.tolerance, options.logprob_tolerance)
        checks += _check_live(store, selected, options, allowed, listener)
    report = replace(
        _report(manifest.recording.id, options.level, checks),
        model=selected.model,
        encoder_id=manifest.encoder.encoder_id.hex,
        against=options.against and options.against.value,
    )
    if options.level is Level.bytes:
        return report
    here = backend.provenance()
    infos = [store.peek(group[0].key) for group in entry_groups(manifest)]
    differences = provenance_differences([info for info in infos if info is not None], here)
    return replace(report, here=here, provenance=differences, tolerances=allowed)


def check_whole_store(home: Home, listener: Listener) -> Report:
    """Check the bytes of every entry and manifest of the store.

    Raises:
        CannotCheckError: there is nothing in it.
        NotEncodedError: there is no store.
    """
    store = Store.open(home, create=False)
    with held_lease(store, "verify-cache --all"):
        return _report("the whole store", Level.bytes, [check_store_bytes(store, listener)])


def sampled(manifest: Manifest, options: VerifyOptions) -> list[Group]:
    """Return the entries that are compared with live encoding, the same for the same options."""
    return draw(entry_groups(manifest), sample_size(options.sample), options.seed)


def _bytes_checked(manifest: Manifest, options: VerifyOptions) -> Manifest:
    if not options.sample_only:
        return manifest
    keys = {group[0].key for group in sampled(manifest, options)}
    return replace(manifest, frames=tuple(frame for frame in manifest.frames if frame.key in keys))


def _report(recording: str, level: Level, checks: list[Check]) -> Report:
    return Report(
        recording=recording,
        level=level.value,
        equal=all(check.equal for check in checks),
        complete=not any(check.unchecked for check in checks),
        checks=tuple(checks),
    )


def _check_live(
    store: Store, selected: Selected, options: VerifyOptions, allowed: Tolerances, listener: Listener
) -> Iterator[Check]:
    sample = sampled(selected.manifest, options)
    try:
        live = LiveFrames(selected.checkpoint, selected.manifest)
    except CannotCheckError as error:
        yield Check("embeddings", True, "not checked", 0, len(sample), (), (str(error),))
        return
    if options.level is Level.embeddings:
        check = EmbeddingCheck(store, live, lambda _, image: live.encode(image), allowed)
        yield check.run(selected.manifest, sample, "pass one's encoder", listener)
    else:
        yield from _check_answers(store, selected, sample, options, allowed, live, listener)
    if options.against is Against.transformers:
        yield check_against_transformers(store, selected, sample, live, allowed, listener)


def _check_answers(
    store: Store,
    selected: Selected,
    sample: list[Group],
    options: VerifyOptions,
    allowed: Tolerances,
    live: LiveFrames,
    listener: Listener,
) -> Iterator[Check]:
    """Compare features with mlx-vlm's own, then answers; each picture is encoded once for both."""
    from seeonce.verifier.outputs import OutputCheck
    from seeonce.verifier.reference import LiveReference

    untouched = options.against is Against.mlx_vlm
    reference = LiveReference(selected.checkpoint, selected.manifest.encoder, untouched)
    outputs = OutputCheck(store, selected, options.limits, allowed, listener)

    def encode_and_ask(frame: FrameEntry, image: "Image.Image") -> Features:
        picture = reference.picture(frame.source, image)
        features = reference.features(picture)
        outputs.ask_live(frame, picture, reference)
        return features

    embeddings = EmbeddingCheck(store, live, encode_and_ask, allowed)
    yield embeddings.run(selected.manifest, sample, "mlx-vlm itself", listener)
    if embeddings.num_compared:
        yield outputs.run(embeddings)
    else:
        yield Check("outputs", True, "not checked", 0, len(sample), (), ("no frame is left to ask about",))
