"""Which manifest a RECORDING on the command line means, and whether it fits the model.

A recording's frames may be gone; only the store is asked.
"""

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cache.base.errors import InputError, NotEncodedError
from cache.base.home import Home
from cache.bucket import BucketStore
from cache.key import EncoderSpec
from cache.manifest import (
    Manifest,
    ManifestHead,
    ManifestRef,
    list_manifests,
    matching_recording,
    read_manifest,
)
from cache.mirror import fetch_manifests
from checkpoint.config import Checkpoint
from checkpoint.identity import find_encoder, model_of
from sources.recordings import latest_recording

LATEST = "latest"
_NUM_NAMED = 6


@dataclass(frozen=True, slots=True)
class Selected:
    """An encoded recording and the checkpoint whose language model can be asked about it."""

    checkpoint: Checkpoint
    manifest: Manifest
    model: str


def select(
    home: Home,
    recording: str,
    model: str | None,
    say: Callable[[str], None],
    encoder_id: str | None = None,
    bucket: BucketStore | None = None,
) -> Selected:
    """Find the manifest of ``recording`` that fits ``model``, or the one that it was encoded with.

    Of several that fit it is the newest, unless ``encoder_id`` names one that is there. With ``bucket`` it is
    one of there, and the store of ``home`` is not asked.

    Raises:
        NotEncodedError: it is not encoded, or not by this model's vision tower.
        CheckpointError: the model is missing or not supported.
    """
    refs: list[ManifestHead] = [
        *(find_recording(home, recording) if bucket is None else find_in_bucket(bucket, recording))
    ]
    refs.sort(key=lambda ref: ref.encoder_id.hex != encoder_id)
    name = model or model_of(home, refs[0].recording.id, refs[0].encoder_id)
    checkpoint, spec = find_encoder(home, name, say)
    manifest = (
        manifest_for(refs, spec, name)
        if bucket is None
        else manifest_for(refs, spec, name, bucket.read_manifest)
    )
    return Selected(checkpoint, manifest, name)


def find_recording(home: Home, selector: str) -> list[ManifestRef]:
    """Return all manifests of one recording, newest first.

    ``selector`` is ``latest``, an id, a path, a name or the start of an id. ``latest`` is
    the newest that sources know, else the newest in the store.

    Raises:
        NotEncodedError: no such recording is encoded.
        InputError: several recordings fit.
    """
    if selector == LATEST:
        newest = newest_recording(home)
        if newest is None and fetch_manifests(home, None):
            newest = newest_recording(home)
        if newest is None:
            raise NotEncodedError(
                "Nothing is encoded yet: run seeonce encode demo, or encode a recording of yours."
            )
        selector = newest
    if not selector:
        raise InputError("RECORDING is empty: give an id or a path, or leave it out for the newest.")
    refs = list_manifests(home)
    found = matching_recording(selector, (ref.recording for ref in refs))
    if found is None and fetch_manifests(home, selector):
        refs = list_manifests(home)
        found = matching_recording(selector, (ref.recording for ref in refs))
    if found is not None:
        return [ref for ref in refs if ref.recording.id == found]
    raise NotEncodedError(
        f"{selector!r} is not encoded: run seeonce encode {shlex.quote(selector)}, or see what there is with "
        "seeonce recordings."
    )


def find_in_bucket(bucket: BucketStore, selector: str) -> list[ManifestHead]:
    """Return all manifests of one recording in a bucket, newest first; ``latest`` is the newest there.

    Raises:
        NotEncodedError: it has no such recording.
        InputError: several recordings fit.
    """
    heads = bucket.list_manifests()
    if heads and selector == LATEST:
        selector = heads[0].recording.id
    found = matching_recording(selector, (head.recording for head in heads))
    if found is None:
        named = ", ".join(sorted({head.recording.id for head in heads})[:_NUM_NAMED])
        raise NotEncodedError(
            f"{bucket.objects.address} has no recording {selector!r}"
            f"{f'; it has {named}' if named else ''}: encode it with --to, or push it there"
        )
    return [head for head in heads if head.recording.id == found]


def newest_recording(home: Home) -> str | None:
    """Return the id of the recording that ``latest`` means now; ``None`` when there is no recording."""
    listed = latest_recording()
    return listed.id if listed else next((ref.recording.id for ref in list_manifests(home)), None)


def manifest_for(
    refs: Sequence[ManifestHead],
    spec: EncoderSpec,
    model: str,
    read: Callable[[ManifestHead], Manifest] = lambda ref: read_manifest(ref.path),
) -> Manifest:
    """Return the newest manifest whose features the model's own encoder would give.

    Other limits on pixels are welcome: they change how finely a frame was seen, not what the language
    model expects.

    Raises:
        NotEncodedError: the recording is encoded, but by other weights or in another dtype.
    """
    for ref in refs:
        if _with_limits_of(ref.encoder, spec) == spec:
            return read(ref)
    found = ", ".join(sorted({f"{ref.encoder_id.hex[:12]} ({ref.encoder.compute_dtype})" for ref in refs}))
    recording = refs[0].recording
    again = "demo" if recording.kind == "demo" else shlex.quote(recording.path)
    raise NotEncodedError(
        f"{recording.id} is encoded under {found}, not by the vision tower of {model} in "
        f"{spec.compute_dtype}: run seeonce encode {again} --model {shlex.quote(model)}"
    )


def _with_limits_of(encoder: EncoderSpec, spec: EncoderSpec) -> EncoderSpec:
    limits = spec.preprocessing
    preprocessing = dataclasses.replace(
        encoder.preprocessing, min_pixels=limits.min_pixels, max_pixels=limits.max_pixels
    )
    return dataclasses.replace(encoder, preprocessing=preprocessing)
