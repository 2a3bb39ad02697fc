"""Copies for controls: a home with the sampled entries alone, and a checkpoint that was changed.

Owns what is copied and how little of it; everything lies in a temporary folder that the caller removes.
What faults are put into a copy is ``seeonce.verifier.faults``'s.
"""

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cache.canonical_json import seal
from cache.entry import EntryInfo, Features
from cache.errors import CannotCheckError
from cache.files import Durability
from cache.home import Home
from cache.key import EncoderSpec, EntryKey, entry_key
from cache.layout import FRAMES, group_name
from cache.manifest import Manifest, SkippedFrame, manifest_path, write_manifest
from cache.manifest_json import manifest_to_json
from cache.pixel_index import PixelIndex
from cache.store import Store
from checkpoint.config import read_config
from checkpoint.folder import CheckpointFolder, find_folder
from checkpoint.identity import encoder_spec
from seeonce.runs.selection import Selected
from seeonce.verifier.sampling import Group

Found = TypeVar("Found")

_LEFT_OUT = "left out of this copy"
_CHANGED_WEIGHT = "patch_embed.proj.weight"
_SAFETENSORS_TYPES = {"F32": "<u4", "BF16": "<u2", "F16": "<u2"}


@dataclass(frozen=True, slots=True)
class CopiedStore:
    """A home of its own whose store holds the entries of ``groups`` and one manifest of them."""

    home: Home
    store: Store
    manifest: Manifest
    groups: list[Group]

    def features(self, group: Group) -> Features:
        """Return the stored features of an entry."""
        return _there(self.store.read(group[0].key), group)

    def info(self, group: Group) -> EntryInfo:
        """Return what an entry says about itself."""
        return _there(self.store.peek(group[0].key), group)

    def entry_folder(self, key: EntryKey) -> Path:
        """Return where an entry lies."""
        return self.store.path / FRAMES / group_name(key) / key.hex

    def put(self, group: Group, features: Features) -> None:
        """Write other features under an entry's key, as a wrong encoder would have: every digest fits."""
        info = self.info(group)
        shutil.rmtree(self.entry_folder(group[0].key))
        self.store.write(info.pixels, info.encoder, features, info.provenance)

    def put_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest, also by one that does not fit together."""
        path = manifest_path(self.home, manifest.recording.id, manifest.encoder.encoder_id)
        path.write_bytes(seal(manifest_to_json(manifest)))

    def give_to(self, encoder: EncoderSpec) -> None:
        """Claim that every entry was made by another encoder: its keys, with the features there are."""
        shutil.rmtree(
            manifest_path(self.home, self.manifest.recording.id, self.manifest.encoder.encoder_id).parent
        )
        for group in self.groups:
            features, info = self.features(group), self.info(group)
            self.store.write(info.pixels, encoder, features, info.provenance)
        frames = tuple(
            replace(frame, key=entry_key(frame.pixels, encoder.encoder_id)) for frame in self.manifest.frames
        )
        write_manifest(self.home, replace(self.manifest, encoder=encoder, frames=frames), Durability.none)


def copy_store(store: Store, manifest: Manifest, groups: list[Group], to: Path) -> CopiedStore:
    """Copy the entries of ``groups``, as they lie on disk, and what the manifest says of their frames."""
    home = Home(to)
    copied = Store.open(home, durability=Durability.none)
    for group in groups:
        key = group[0].key
        shutil.copytree(
            store.path / FRAMES / group_name(key) / key.hex, copied.path / FRAMES / group_name(key) / key.hex
        )
    kept = {frame.index for group in groups for frame in group}
    left_out = [
        SkippedFrame(frame.index, frame.timestamp_s, frame.source, _LEFT_OUT)
        for frame in manifest.frames
        if frame.index not in kept
    ]
    partly = replace(
        manifest,
        frames=tuple(frame for frame in manifest.frames if frame.index in kept),
        skipped=tuple(sorted([*manifest.skipped, *left_out], key=lambda frame: frame.index)),
    )
    write_manifest(home, partly, Durability.none)
    return CopiedStore(home, copied, partly, groups)


def copy_again(pristine: CopiedStore, to: Path) -> CopiedStore:
    """Copy a copy; its files are shared where the disk allows it, and faults replace them whole."""
    shutil.copytree(pristine.home.path, to, copy_function=_linked)
    home = Home(to)
    return replace(pristine, home=home, store=Store.open(home, create=False, durability=Durability.none))


def changed_weights(folder: CheckpointFolder, to: Path) -> Path:
    """Return a copy of a checkpoint, of the same name, one of whose vision weights is another."""
    found = [file for file in sorted(folder.path.glob("*.safetensors")) if _tensor(file) is not None]
    if not found:
        raise CannotCheckError(f"no vision weight ending in {_CHANGED_WEIGHT} is stored as floating point")
    if shutil.disk_usage(to.parent).free < 2 * found[0].stat().st_size:
        raise CannotCheckError(f"no room to copy {found[0].name} ({found[0].stat().st_size / 1e9:.1f} GB)")
    changed = _links(folder.path, to / folder.path.name, {found[0].name})
    file = changed / found[0].name
    shutil.copyfile(found[0], file)
    tensor = _tensor(file)
    if tensor is not None:
        dtype, start, stop = tensor
        values = np.memmap(file, dtype, "r+", start, ((stop - start) // np.dtype(dtype).itemsize,))
        values[:] = np.roll(values, 1)
        values.flush()
    return changed


def changed_preprocessing(folder: CheckpointFolder, to: Path) -> Path:
    """Return a copy of a checkpoint, of the same name, that normalises pictures by another mean."""
    names = ("preprocessor_config.json", "processor_config.json")
    changed = _links(folder.path, to / folder.path.name, set(names))
    for name in names:
        path = folder.path / name
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if name == names[0]:
            settings["image_mean"] = [0.4, 0.5, 0.6]
        elif "image_processor" in settings:
            settings["image_processor"]["image_mean"] = [0.4, 0.5, 0.6]
        if settings:
            (changed / name).write_text(json.dumps(settings), encoding="utf-8")
    return changed


def encoder_of(checkpoint: Path, copy: CopiedStore, selected: Selected) -> EncoderSpec:
    """Return the encoder of a changed checkpoint with the limits on pixels that the manifest names."""
    folder = find_folder(str(checkpoint), lambda _: None)
    with PixelIndex(copy.home) as index:
        spec = encoder_spec(folder, read_config(folder.path), index)
    limits = selected.manifest.encoder.preprocessing
    preprocessing = replace(spec.preprocessing, min_pixels=limits.min_pixels, max_pixels=limits.max_pixels)
    return replace(spec, preprocessing=preprocessing)


def _there(found: Found | None, group: Group) -> Found:
    if found is None:
        raise CannotCheckError(f"The entry of frame {group[0].index} is missing in the copy for controls.")
    return found


def _links(folder: Path, to: Path, but: set[str]) -> Path:
    to.mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file() and file.name not in but:
            (to / file.name).symlink_to(file.resolve())
    return to


def _tensor(file: Path) -> tuple[str, int, int] | None:
    """Return the stored type and the place, in bytes of the file, of the vision weight that is changed."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    for name, tensor in header.items():
        if name.endswith(_CHANGED_WEIGHT) and tensor["dtype"] in _SAFETENSORS_TYPES:
            start, stop = tensor["data_offsets"]
            return _SAFETENSORS_TYPES[tensor["dtype"]], 8 + length + start, 8 + length + stop
    return None


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # no hard links here
        shutil.copy2(source, target)
