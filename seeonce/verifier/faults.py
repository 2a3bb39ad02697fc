"""The faults that controls put into a copy of a store: what everyone's cache has had wrong.

Owns each fault and its name. Faults of features are written as valid entries: every digest fits, so that
only a comparison with live encoding can object. Does not own who objects (``seeonce.verifier.controls``).
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cache.entry import Features
from cache.entry_json import CHUNK_NAME, METADATA_NAME
from seeonce.verifier.control_copy import CopiedStore
from seeonce.verifier.report import Level
from seeonce.verifier.sampling import Group


class NotApplicableError(Exception):
    """The recording or the checkpoint leaves no room for a fault; the text says why."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: its name, how it is put into a copy (returns where), and the level that must object.

    ``exact`` marks what only a comparison bit for bit can see.
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
        raise NotApplicableError("all token rows are alike")
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
        raise NotApplicableError(f"the checkpoint has {len(deepstack)} DeepStack layers")
    if num_layers > 1 and deepstack[-1].tobytes() == deepstack[-2].tobytes():
        raise NotApplicableError("the last two DeepStack layers are alike")
    if num_layers == 1 and not deepstack.view(np.uint8).any():
        raise NotApplicableError("DeepStack is zero as it is")
    return group, features


def _two_groups(copy: CopiedStore, rng: random.Random) -> tuple[Group, Group]:
    if len(copy.groups) < 2:
        raise NotApplicableError("there is one entry only")
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
    raise NotApplicableError("no two entries of one size are in the sample")


def _replace(path: Path, content: bytes) -> None:
    """Give a file new content without touching the file that other copies share."""
    aside = path.with_name(path.name + ".new")
    aside.write_bytes(content)
    os.replace(aside, path)  # noqa: PTH105
