"""What pass one leaves of a recording under one encoder: every frame's index, time, source and key.

Owns: where manifests lie, writing, reading and listing them. Does not own: what a manifest is
(``cache.recording``), the entries that it names (``cache.store``).
"""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cache.canonical_json import JsonObject, seal, unseal
from cache.errors import StoreError
from cache.files import Durability, Folder
from cache.home import Home
from cache.inventory import names_in
from cache.key import EncoderId, EncoderSpec, EntryKey, PixelDigest
from cache.layout import RECORDINGS, now
from cache.manifest_json import (
    MANIFEST_FORMAT,
    frame_from_json,
    manifest_to_json,
    recording_from_json,
    skipped_from_json,
)
from cache.recording import FrameEntry, Manifest, ManifestNames, ManifestRef, RecordingInfo, SkippedFrame

__all__ = [
    "FrameEntry",
    "Manifest",
    "ManifestNames",
    "ManifestRef",
    "RecordingInfo",
    "SkippedFrame",
    "list_manifests",
    "manifest_files",
    "manifest_names",
    "manifest_path",
    "now",
    "read_manifest",
    "write_manifest",
]

MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 512 << 20
_MAX_ID_BYTES = 200
_TRIES = 4

_log = logging.getLogger("seeonce.cache")


def manifest_path(home: Home, recording_id: str, encoder_id: EncoderId) -> Path:
    """Return where the manifest of a recording under an encoder lies.

    Raises:
        StoreError: the id cannot be a folder's name.
    """
    _check_id(recording_id)
    return home.store / RECORDINGS / recording_id / encoder_id.hex / MANIFEST_FILE


def write_manifest(home: Home, manifest: Manifest, durability: Durability = Durability.batch) -> Path:
    """Write a manifest, replacing the one before it at once; return its path.

    Raises:
        ValueError: the manifest has problems.
        StoreError: a bad recording id, or the disk refuses.
    """
    if problems := manifest.problems():
        raise ValueError(f"manifest of {manifest.recording.id}: {problems[0]} ({len(problems)} problems)")
    path = manifest_path(home, manifest.recording.id, manifest.encoder.encoder_id)
    raw = seal(manifest_to_json(manifest))
    try:
        for tries_left in reversed(range(_TRIES)):
            try:
                _replace(home, manifest, raw, durability)
                break
            except (
                FileNotFoundError
            ):  # its folder was just made, and removed by a forget of the same recording
                if not tries_left:
                    raise
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror}; check the disk, its space and permissions"
        ) from error
    return path


def _replace(home: Home, manifest: Manifest, raw: bytes, durability: Durability) -> None:
    with (
        Folder.open(home.store / RECORDINGS) as recordings,
        _made(recordings, manifest.recording.id, durability) as recording,
        _made(recording, manifest.encoder.encoder_id.hex, durability) as folder,
    ):
        folder.replace(MANIFEST_FILE, raw, durability)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; whether its keys fit its pixels is asked by ``Manifest.problems``.

    Raises:
        StoreError: it is missing, damaged or of a newer format.
    """
    document = _read_document(path)
    return Manifest(
        recording=recording_from_json(document),
        encoder=EncoderSpec.from_json(document.raw("encoder")),
        frames=tuple(map(frame_from_json, document.children("frames"))),
        skipped=tuple(map(skipped_from_json, document.children("skipped"))),
        complete=document.flag("complete"),
        created_at=document.text("created_at"),
    )


def list_manifests(home: Home, on_problem: Callable[[str], None] = _log.warning) -> list[ManifestRef]:
    """Return all manifests, newest first. One that cannot be read is told to ``on_problem``."""
    refs = []
    for path in manifest_files(home):
        try:
            refs.append(_ref(path))
        except StoreError as error:
            on_problem(str(error))
    return sorted(refs, key=lambda ref: (ref.created_at, ref.path), reverse=True)


def manifest_files(home: Home) -> list[Path]:
    """Return where manifests lie, readable or not.

    Raises:
        OSError: a folder cannot be listed, so that there may be more.
    """
    return [
        path / MANIFEST_FILE
        for recording in _folders(home.store / RECORDINGS)
        for path in _folders(recording)
        if MANIFEST_FILE in names_in(path)
    ]


def manifest_names(path: Path) -> ManifestNames:
    """Return which entries, pictures and files a manifest names.

    Raises:
        StoreError: it is missing, damaged or of a newer format.
    """
    document = _read_document(path)
    frames = document.children("frames")
    sources = (frame.text("source") for frame in (*frames, *document.children("skipped")))
    try:
        return ManifestNames(
            frozenset(EntryKey.from_hex(frame.text("key")) for frame in frames),
            frozenset(PixelDigest.from_hex(frame.text("pixels")) for frame in frames),
            frozenset([document.child("recording").text("path"), *sources]),
        )
    except ValueError as error:
        raise StoreError(f"manifest {path}: {error}; run seeonce encode again") from None


def _folders(path: Path) -> list[Path]:
    with suppress(FileNotFoundError), os.scandir(path) as items:
        return [path / item.name for item in items if item.is_dir(follow_symlinks=False)]
    return []


def _made(parent: Folder, name: str, durability: Durability) -> Folder:
    parent.make_folder(name, exist_ok=True)
    parent.sync(durability)
    return parent.folder(name)


def _check_id(recording_id: str) -> None:
    size = len(recording_id.encode("utf-8", "surrogateescape"))
    forbidden = "/" in recording_id or "\\" in recording_id or ".." in recording_id
    if (
        forbidden
        or recording_id.startswith(".")
        or not 0 < size <= _MAX_ID_BYTES
        or not recording_id.isprintable()
    ):
        raise StoreError(
            f"recording id {recording_id[:80]!r}: expected 1 to {_MAX_ID_BYTES} printable bytes "
            "without '/', '\\' and '..', not starting with '.'"
        )


def _read_document(path: Path) -> JsonObject:
    try:
        with Folder.open(path.parent) as folder:
            raw = folder.read(path.name, MAX_MANIFEST_BYTES)
    except OSError as error:
        raise StoreError(
            f"cannot read manifest {path}: {error.strerror}; run seeonce encode again"
        ) from error
    try:
        document = unseal(raw, f"manifest {path}")
    except StoreError as error:
        raise StoreError(f"{error}; run seeonce encode again") from None
    if (found := document.integer("format")) != MANIFEST_FORMAT:
        raise StoreError(f"{path} has format {found}, this seeonce reads {MANIFEST_FORMAT}: upgrade seeonce")
    return document


def _ref(path: Path) -> ManifestRef:
    document = _read_document(path)
    ref = ManifestRef(
        path=path,
        recording=recording_from_json(document),
        encoder=EncoderSpec.from_json(document.raw("encoder")),
        created_at=document.text("created_at"),
        num_frames=document.length("frames"),
        num_skipped=document.length("skipped"),
        complete=document.flag("complete"),
    )
    if (path.parent.parent.name, path.parent.name) != (ref.recording.id, ref.encoder_id.hex):
        raise StoreError(f"manifest {path} is that of recording {ref.recording.id}, encoder {ref.encoder_id}")
    return ref
