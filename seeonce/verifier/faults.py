"""The faults that controls put into copies of a store or a checkpoint."""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cache.base.canonical_json import seal
from cache.base.errors import CannotCheckError
from cache.base.files import Durability
from cache.base.home import Home
from cache.entry import CHUNK_NAME, METADATA_NAME, EntryInfo, Features
from cache.key import EncoderSpec, EntryKey, entry_key
from cache.layout import entry_folder
from cache.manifest import Manifest, SkippedFrame, manifest_path, manifest_to_json, write_manifest
from cache.store import Store
from checkpoint.config import Checkpoint
from checkpoint.identity import find_encoder
from seeonce.verifier.report import Level
from seeonce.verifier.sample import Group

Found = TypeVar("Found")

_LEFT_OUT = "left out of this copy"


@dataclass(frozen=True, slots=True)
class CopiedStore:
    """A home of its own whose store holds the entries of ``groups`` and one manifest of them."""

    home: Home
    store: Store
    manifest: Manifest
    groups: list[Group]

    def features(self, group: Group) -> Features:
        """Return the stored features of an entry. Raises ``CannotCheckError``."""
        return _required(self.store.read(group[0].key), group)

    def info(self, group: Group) -> EntryInfo:
        """Return what an entry says about itself. Raises ``CannotCheckError``."""
        return _required(self.store.peek(group[0].key), group)

    def entry_folder(self, key: EntryKey) -> Path:
        """Return where an entry lies."""
        return Path(entry_folder(self.store.path, key))

    def put(self, group: Group, features: Features) -> None:
        """Write other features under an entry's key, as a wrong encoder would have: every digest fits."""
        info = self.info(group)
        shutil.rmtree(self.entry_folder(group[0].key))
        self.store.write(info.pixels, info.encoder, features, info.provenance)

    def put_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest, also by one that does not fit together."""
        path = manifest_path(self.home, manifest.recording.id, manifest.encoder.encoder_id)
        _replace(path, seal(manifest_to_json(manifest)))

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
        shutil.copytree(entry_folder(store.path, key), entry_folder(copied.path, key))
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


def copy_again(unchanged: CopiedStore, to: Path) -> CopiedStore:
    """Copy a copy; its files are shared where the disk allows it, and faults replace them whole."""
    shutil.copytree(unchanged.home.path, to, copy_function=_link)
    home = Home(to)
    return replace(unchanged, home=home, store=Store.open(home, create=False, durability=Durability.none))


def _required(found: Found | None, group: Group) -> Found:
    if found is None:
        raise CannotCheckError(f"The entry of frame {group[0].index} is missing in the copy for controls.")
    return found


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # no hard links here
        shutil.copy2(source, target)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: its name, the level that must object, and what puts it into a copy and returns where.

    ``put`` raises ``CannotCheckError`` where the recording leaves no room for it. ``exact`` marks what only a
    comparison bit for bit can see.
    """

    name: str
    level: Level
    put: Callable[[CopiedStore, random.Random], str]
    exact: bool = False


def _zero_deepstack(copy: CopiedStore, rng: random.Random) -> str:
    group, features = _with_deepstack(copy, rng, 1)
    array = features.array.copy()
    array[1:] = 0
    copy.put(group, replace(features, array=array))
    return f"in frame {group[0].index}"


def _swap_layers(copy: CopiedStore, rng: random.Random) -> str:
    group, features = _with_deepstack(copy, rng, 2)
    order = list(range(len(features.array)))
    order[-2:] = reversed(order[-2:])
    copy.put(group, replace(features, array=np.ascontiguousarray(features.array[order])))
    return f"the last two, in frame {group[0].index}"


def _swap_frames(copy: CopiedStore, rng: random.Random) -> str:
    (one, mine), (other, theirs) = _two_alike(copy, rng)
    copy.put(one, theirs)
    copy.put(other, mine)
    return f"of frames {one[0].index} and {other[0].index}"


def _exchange_rows(copy: CopiedStore, rng: random.Random) -> str:
    (one, mine), (other, theirs) = _two_alike(copy, rng)
    left, right = mine.array.copy(), theirs.array.copy()
    left[:, ::2], right[:, ::2] = theirs.array[:, ::2], mine.array[:, ::2]
    copy.put(one, replace(mine, array=left))
    copy.put(other, replace(theirs, array=right))
    return f"every second token row of frames {one[0].index} and {other[0].index}"


def _shift_rows(copy: CopiedStore, rng: random.Random) -> str:
    group = rng.choice(copy.groups)
    features = copy.features(group)
    array = np.ascontiguousarray(np.roll(features.array, 1, axis=1))
    if array.tobytes() == features.array.tobytes():
        raise CannotCheckError("all token rows are alike")
    copy.put(group, replace(features, array=array))
    return f"in frame {group[0].index}"


def _lowest_bit(copy: CopiedStore, rng: random.Random) -> str:
    group = rng.choice(copy.groups)
    features = copy.features(group)
    array = features.array.copy()
    raw = array.reshape(-1).view(np.uint8)
    at = rng.randrange(array.size) * array.itemsize  # the first byte of a value holds its lowest bits
    raw[at] ^= 1
    copy.put(group, replace(features, array=array))
    return f"of one of {array.size:,} values of frame {group[0].index}"


def _flip_in(name: str) -> Callable[[CopiedStore, random.Random], str]:
    def flip(copy: CopiedStore, rng: random.Random) -> str:
        group = rng.choice(copy.groups)
        path = copy.entry_folder(group[0].key) / name
        raw = bytearray(path.read_bytes())
        position = rng.randrange(8 * len(raw))
        raw[position // 8] ^= 1 << position % 8
        _replace(path, bytes(raw))
        return f"bit {position:,} of {name} of frame {group[0].index}"

    return flip


def _wrong_key(copy: CopiedStore, rng: random.Random) -> str:
    one, other = _two_groups(copy, rng)
    frames = tuple(
        replace(frame, key=other[0].key) if frame.index == one[0].index else frame
        for frame in copy.manifest.frames
    )
    copy.put_manifest(replace(copy.manifest, frames=frames))
    return f"frame {one[0].index} names the key of frame {other[0].index}"


def _wrong_picture(copy: CopiedStore, rng: random.Random) -> str:
    one, other = _two_groups(copy, rng)
    place, changed = other[0], {frame.index for frame in one}
    frames = tuple(
        replace(
            place,
            index=frame.index,
            timestamp_s=frame.timestamp_s,
            source=frame.source,
            neighbour=frame.neighbour,
        )
        if frame.index in changed
        else frame
        for frame in copy.manifest.frames
    )
    copy.put_manifest(replace(copy.manifest, frames=frames))
    return f"frame {one[0].index} names picture and key of frame {place.index}"


FAULTS = (
    Fault("DeepStack zeroed", Level.embeddings, _zero_deepstack),
    Fault("DeepStack layers swapped", Level.embeddings, _swap_layers),
    Fault("two frames' entries swapped", Level.embeddings, _swap_frames),
    Fault("rows of one batch exchanged", Level.embeddings, _exchange_rows),
    Fault("token rows shifted by one", Level.embeddings, _shift_rows),
    Fault("lowest bit of one value, digests fitting", Level.embeddings, _lowest_bit, exact=True),
    Fault("one bit flipped in a payload", Level.bytes, _flip_in(CHUNK_NAME)),
    Fault("one bit flipped in metadata", Level.bytes, _flip_in(METADATA_NAME)),
    Fault("manifest names the wrong key", Level.bytes, _wrong_key),
    Fault("manifest names another frame's picture and key", Level.embeddings, _wrong_picture),
)


def _with_deepstack(copy: CopiedStore, rng: random.Random, num_layers: int) -> tuple[Group, Features]:
    group = rng.choice(copy.groups)
    features = copy.features(group)
    deepstack = features.deepstack
    if len(deepstack) < num_layers:
        raise CannotCheckError(f"the checkpoint has {len(deepstack)} DeepStack layers")
    if num_layers > 1 and deepstack[-1].tobytes() == deepstack[-2].tobytes():
        raise CannotCheckError("the last two DeepStack layers are alike")
    if num_layers == 1 and not deepstack.view(np.uint8).any():
        raise CannotCheckError("DeepStack is zero as it is")
    return group, features


def _two_groups(copy: CopiedStore, rng: random.Random) -> tuple[Group, Group]:
    if len(copy.groups) < 2:
        raise CannotCheckError("there is one entry only")
    one, other = rng.sample(copy.groups, 2)
    return one, other


def _two_alike(
    copy: CopiedStore, rng: random.Random
) -> tuple[tuple[Group, Features], tuple[Group, Features]]:
    """Return two entries of one size: what is exchanged between them fits the manifest."""
    pairs = [
        (one, other)
        for number, one in enumerate(copy.groups)
        for other in copy.groups[number + 1 :]
        if one[0].grid_thw == other[0].grid_thw
    ]
    rng.shuffle(pairs)
    for one, other in pairs:
        mine, theirs = copy.features(one), copy.features(other)
        if mine.array.tobytes() != theirs.array.tobytes():
            return (one, mine), (other, theirs)
    raise CannotCheckError("no two entries of one size are in the sample")


def _replace(path: Path, content: bytes) -> None:
    """Give a file new content without touching the file that other copies share."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(content)
    fresh.replace(path)


_CHANGED_WEIGHT = "patch_embed.proj.weight"
_SAFETENSORS_TYPES = {"F32": "<u4", "BF16": "<u2", "F16": "<u2"}


def changed_weights(checkpoint: Checkpoint, to: Path) -> Path:
    """Return a copy of a checkpoint, of the same name, one of whose vision weights is another."""
    found = [file for file in sorted(checkpoint.path.glob("*.safetensors")) if _tensor(file) is not None]
    if not found:
        raise CannotCheckError(f"no vision weight ending in {_CHANGED_WEIGHT} is stored as floating point")
    if shutil.disk_usage(to.parent).free < 2 * found[0].stat().st_size:
        raise CannotCheckError(f"no room to copy {found[0].name} ({found[0].stat().st_size / 1e9:.1f} GB)")
    changed = _linked_folder(checkpoint.path, to / checkpoint.path.name, {found[0].name})
    file = changed / found[0].name
    shutil.copyfile(found[0], file)
    tensor = _tensor(file)
    if tensor is not None:
        dtype, start, stop = tensor
        values = np.memmap(file, dtype, "r+", start, ((stop - start) // np.dtype(dtype).itemsize,))
        values[:] = np.roll(values, 1)
        values.flush()
    return changed


def changed_preprocessing(checkpoint: Checkpoint, to: Path) -> Path:
    """Return a copy of a checkpoint, of the same name, that normalises pictures by another mean."""
    names = ("preprocessor_config.json", "processor_config.json")
    changed = _linked_folder(checkpoint.path, to / checkpoint.path.name, set(names))
    for name in names:
        path = checkpoint.path / name
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if name == names[0]:
            settings["image_mean"] = [0.4, 0.5, 0.6]
        elif "image_processor" in settings:
            settings["image_processor"]["image_mean"] = [0.4, 0.5, 0.6]
        if settings:
            (changed / name).write_text(json.dumps(settings), encoding="utf-8")
    return changed


def _linked_folder(folder: Path, to: Path, but: set[str]) -> Path:
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


CHECKPOINT_CHANGES = (
    ("weights changed under the same name", changed_weights),
    ("other preprocessing under the same name", changed_preprocessing),
)


def encoder_of(checkpoint: Path, copy: CopiedStore) -> EncoderSpec:
    """Return the encoder of a changed checkpoint with the limit on pixels that the manifest names."""
    max_pixels = copy.manifest.encoder.preprocessing.max_pixels
    return find_encoder(copy.home, str(checkpoint), lambda _: None, max_pixels)[1]
