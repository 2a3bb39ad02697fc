"""verify-cache: holds the store against live encoding, at three levels, and says what was checked.

Owns the order of the levels and what is looked at. The store is only read: nothing is moved, repaired or
remembered as used. Live pictures come from pass one as a ``LiveSide``; live answers from mlx-vlm itself
(``seeonce.verifier.reference``).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cache.base.errors import CannotCheckError, InputError
from cache.base.home import Home
from cache.entry import Features
from cache.leases import held_lease
from cache.manifest import FrameEntry, read_manifest
from cache.store import Store
from checkpoint import backend
from infer.limits import BatchLimits
from seeonce.runs.recording import Selected, find_recording, select
from seeonce.verifier.byte_check import check_recording_bytes, check_store_bytes
from seeonce.verifier.compare import provenance_differences, tolerances
from seeonce.verifier.controls import run_controls
from seeonce.verifier.embeddings import EmbeddingCheck, LiveSide
from seeonce.verifier.report import Against, Check, Level, Listener, Report, Tolerances
from seeonce.verifier.sample import Group, draw, entry_groups, sample_size

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """The options of ``verify-cache``.

    ``sample`` is a number of entries, or ``all``; ``tolerance`` and ``logprob_tolerance`` replace those of
    the compute dtype; ``limits`` are pass two's, which answers are given under.
    """

    recording: str = "latest"
    level: Level = Level.outputs
    sample: str = "8"
    model: str | None = None
    seed: int = 0
    tolerance: float | None = None
    logprob_tolerance: float | None = None
    limits: BatchLimits = field(default_factory=BatchLimits)
    controls: bool = False
    against: Against | None = None


def verify(home: Home, options: VerifyOptions, listener: Listener) -> Report:
    """Check a recording at a level. What cannot be checked is named in the report.

    Raises:
        CannotCheckError: the recording has no encoded frame.
        NotEncodedError: it is not encoded, or not by this model's vision tower.
        InputError: ``sample`` is neither a number nor ``all``, or a tolerance is none.
    """
    num_sample = sample_size(options.sample)
    _check_against(options)
    tolerances("float32", options.tolerance, options.logprob_tolerance)
    store = Store.open(home, create=False)
    with held_lease(store, f"verify-cache {options.recording}"):
        return _verify(home, _only_read(store), options, num_sample, listener)


def _verify(
    home: Home,
    store: Store,
    options: VerifyOptions,
    num_sample: int | None,
    listener: Listener,
) -> Report:
    if options.level is Level.bytes and options.model is None and not options.controls:
        refs = find_recording(home, options.recording)
        manifests = [read_manifest(ref.path) for ref in refs]
        check = check_recording_bytes(home, store, manifests, listener)
        return _report(refs[0].recording.id, options.level, (check,))
    selected = select(home, options.recording, options.model, listener.say)
    manifest = selected.manifest
    checks = [check_recording_bytes(home, store, [manifest], listener)]
    allowed = tolerances(manifest.encoder.compute_dtype, options.tolerance, options.logprob_tolerance)
    sample = draw(entry_groups(manifest), num_sample, options.seed)
    if options.level is not Level.bytes:
        checks += _check_live(store, selected, sample, options, allowed, listener)
    report = _report(manifest.recording.id, options.level, tuple(checks))
    report = replace(
        _with_provenance(report, selected, store, allowed), against=options.against and options.against.value
    )
    return _with_controls(report, store, selected, sample, options, listener)


def _check_against(options: VerifyOptions) -> None:
    """Refuse a reference that the level does not ask."""
    least = {Against.transformers: Level.embeddings, Against.mlx_vlm: Level.outputs}
    if options.against is not None and list(Level).index(options.level) < list(Level).index(
        least[options.against]
    ):
        raise InputError(
            f"--against {options.against} needs --level {least[options.against]}, got {options.level}."
        )


def verify_store(home: Home, listener: Listener) -> Report:
    """Check every byte of every entry and manifest of the store.

    Raises:
        CannotCheckError: there is nothing in it.
        NotEncodedError: there is no store.
    """
    store = Store.open(home, create=False)
    with held_lease(store, "verify-cache --all"):
        check = check_store_bytes(home, _only_read(store), listener)
    return _report("the whole store", Level.bytes, (check,))


def _only_read(store: Store) -> Store:
    """Return the store as one in which damaged entries stay, and that remembers no use."""
    return replace(store, writable=False)


def _report(recording: str, level: Level, checks: tuple[Check, ...]) -> Report:
    return Report(
        recording=recording,
        level=level.value,
        equal=all(check.equal for check in checks),
        complete=not any(check.unchecked for check in checks),
        checks=checks,
    )


def _with_provenance(report: Report, selected: Selected, store: Store, allowed: Tolerances) -> Report:
    named = replace(report, model=selected.model, encoder_id=selected.manifest.encoder.encoder_id.hex)
    if report.level == Level.bytes:
        return named
    here = backend.provenance()
    infos = [store.peek(group[0].key) for group in entry_groups(selected.manifest)]
    differences = provenance_differences([info for info in infos if info is not None], here)
    return replace(named, here=here, provenance=differences, tolerances=allowed)


def _with_controls(
    report: Report,
    store: Store,
    selected: Selected,
    sample: list[Group],
    options: VerifyOptions,
    listener: Listener,
) -> Report:
    if not options.controls:
        return report
    if not report.equal:
        return replace(
            report, controls_problem="not run: the store itself differs, so no copy of it can pass"
        )
    more = ["--max-num-seqs", str(options.limits.max_num_seqs)]
    for name, value in (
        ("--tolerance", options.tolerance),
        ("--logprob-tolerance", options.logprob_tolerance),
    ):
        more += [] if value is None else [name, repr(value)]
    found = run_controls(store, selected, sample, options.level, more, options.seed, listener)
    return replace(report, controls=found.results, controls_problem=found.twin_problem)


def _check_live(
    store: Store,
    selected: Selected,
    sample: list[Group],
    options: VerifyOptions,
    allowed: Tolerances,
    listener: Listener,
) -> Iterator[Check]:
    try:
        from precompute.live import LiveFrames

        live = LiveFrames(selected.folder, selected.config, selected.manifest)
    except CannotCheckError as error:
        yield Check("embeddings", True, "not checked", 0, len(sample), (), (str(error),))
        return
    if options.level is Level.embeddings:
        check = EmbeddingCheck(store, live, lambda _, image: live.encode(image), allowed)
        yield check.run(selected.manifest, sample, "pass one's encoder", listener)
    else:
        yield from _check_answers(store, selected, sample, options, allowed, live, listener)
    if options.against is Against.transformers:
        from seeonce.verifier.transformers_reference import check_against_transformers

        yield check_against_transformers(store, selected, sample, live, allowed, listener)


def _check_answers(
    store: Store,
    selected: Selected,
    sample: list[Group],
    options: VerifyOptions,
    allowed: Tolerances,
    live: LiveSide,
    listener: Listener,
) -> Iterator[Check]:
    """Compare features with mlx-vlm's own, then answers; each picture is encoded for both at once."""
    from seeonce.verifier.outputs import OutputCheck
    from seeonce.verifier.reference import LiveReference

    untouched = options.against is Against.mlx_vlm
    reference = LiveReference(selected.folder, selected.config, selected.manifest.encoder, untouched)
    outputs = OutputCheck(store, selected, options.limits, allowed, listener)

    def encode_and_ask(frame: FrameEntry, image: "Image.Image") -> Features:
        picture = reference.picture(frame.source, image)
        features = reference.features(picture)
        outputs.ask_live(frame, picture, reference)
        return features

    embeddings = EmbeddingCheck(store, live, encode_and_ask, allowed)
    yield embeddings.run(selected.manifest, sample, "mlx-vlm itself", listener)
    if embeddings.digests:
        yield outputs.run(embeddings)
    else:
        yield Check("outputs", True, "not checked", 0, len(sample), (), ("no frame is left to ask about",))
