"""The embeddings level of verify-cache: stored features against what the encoder makes of each frame now."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from blake3 import blake3

from cache.base.errors import CannotCheckError, NotEncodedError, StalePictureError, StoreError
from cache.base.listener import Listener
from cache.entry import Features
from cache.key import EntryKey
from cache.manifest import FrameEntry, Manifest
from cache.store import Store
from checkpoint import backend
from precompute.live import LiveFrames
from seeonce.verifier.differences import (
    feature_differences,
    feature_problem,
    layer_figures,
    same_provenance,
)
from seeonce.verifier.report import Check, LayerFigures, Tolerances
from seeonce.verifier.sample import Group, confidence, confidence_words, entry_groups

if TYPE_CHECKING:
    from PIL import Image


EncodeNow = Callable[[FrameEntry, "Image.Image"], Features]
"""Encodes the picture of a frame live."""


class EmbeddingCheck:
    """Compares a sample, and gives live's features afterwards.

    Only their digests are kept: memory does not grow with the sample.
    """

    def __init__(self, store: Store, live: LiveFrames, encode: EncodeNow, allowed: Tolerances) -> None:
        """Compare entries of ``store`` with what ``encode`` gives; ``live`` has their pictures."""
        self._store, self._live, self._encode, self._allowed = store, live, encode, allowed
        self._here = backend.provenance()
        self._digests: dict[EntryKey, bytes] = {}
        self._layers: list[list[LayerFigures]] = []
        self._compared: list[Group] = []
        self._problems: list[str] = []
        self._unchecked: list[str] = []

    @property
    def num_compared(self) -> int:
        """How many entries were compared."""
        return len(self._compared)

    @property
    def all_exact(self) -> bool:
        """Whether every bit of every entry that was compared agrees."""
        return all(difference.exact for entry in self._layers for difference in entry)

    def run(self, manifest: Manifest, sample: list[Group], by: str, listener: Listener) -> Check:
        """Check the place of every frame in the recording, and encode every entry of the sample live, once.

        ``by`` names the encoder.
        """
        for frame in manifest.frames:
            if (place := self._live.misplaced(frame)) is not None:
                self._problems.append(f"frame {frame.index}: {place}")
        for number, group in enumerate(sample, 1):
            self._check(group)
            listener.show("live", "entry", number, len(sample))
        return self._verdict(manifest, by)

    def features(self, frame: FrameEntry) -> Features:
        """Return the features that live encoding gave for a frame: from the store, bit for bit live's.

        Raises:
            NotEncodedError: the entry is gone since it was compared.
            StoreError: what is read is not what live encoding gave.
        """
        features = self._store.read(frame.key)
        if features is None:
            raise NotEncodedError(f"The entry of frame {frame.index} is gone since it was compared.")
        if _digest(features) != self._digests[frame.key]:
            raise StoreError(f"The entry of frame {frame.index} is not what live encoding gave.")
        return features

    def _check(self, group: Group) -> None:
        """Compare an entry with the picture of its first frame; the others that own it must show the same.

        A frame that uses the entry of a near-duplicate neighbour has another picture, on purpose.
        """
        own = [frame for frame in group if frame.neighbour is None]
        first = (own or group)[0]
        if (damage := self._store.check(first.key)) is not None:
            self._problems.append(f"frame {first.index}: entry {first.key.hex[:12]}: {damage}")
            return
        stored, info = self._store.read(first.key), self._store.peek(first.key)
        if stored is None or info is None:
            self._problems.append(f"frame {first.index}: its entry changed while it was checked")
            return
        if not own:
            self._problems.append(f"frame {first.index}: no frame has the picture of its entry")
            return
        picture = self._picture(first)
        if picture is None:
            return
        shown = [self._shows(frame, first, picture) for frame in own[1:]]
        if not all(shown):
            return
        live = self._encode(first, picture)
        same = same_provenance(info.provenance, self._here)
        tolerance = self._allowed.features_same if same else self._allowed.features_other
        differences = feature_differences(stored, live)
        problem = feature_problem(stored, live, differences, tolerance)
        if problem is not None:
            named = ", ".join(str(frame.index) for frame in group[:6]) + (", …" if len(group) > 6 else "")
            self._problems.append(f"frame{'s' if len(group) > 1 else ''} {named}: {problem}")
        self._digests[first.key] = _digest(live)
        self._layers += [differences] if differences is not None else []
        self._compared.append(group)

    def _picture(self, frame: FrameEntry) -> "Image.Image | None":
        """Return a frame's picture, if it is still the one whose digest the manifest names."""
        try:
            return self._live.image(frame)
        except StalePictureError as error:
            self._problems.append(f"frame {frame.index}: {error}")
        except CannotCheckError as error:
            self._unchecked.append(str(error))
        return None

    def _shows(self, frame: FrameEntry, first: FrameEntry, picture: "Image.Image") -> bool:
        """Tell whether a frame shows ``picture``, pixel by pixel: a digest may miss a difference."""
        found = self._picture(frame)
        if found is None:
            return False
        alike = found.size == picture.size and found.tobytes() == picture.tobytes()
        if not alike:
            self._problems.append(
                f"frame {frame.index}: it shows another picture than frame {first.index}, "
                "whose entry it names"
            )
        return alike

    def _verdict(self, manifest: Manifest, by: str) -> Check:
        groups = entry_groups(manifest)
        num_exact = sum(all(difference.exact for difference in entry) for entry in self._layers)
        num_frames = sum(frame.neighbour is None for group in self._compared for frame in group)
        num_near = sum(frame.neighbour is not None for frame in manifest.frames)
        words = (
            f"{len(self._compared)} of {len(groups)} entries ({num_frames} of {len(manifest.frames)} frames) "
            f"encoded live by {by}, {num_exact} equal bit for bit"
        )
        if num_near:
            words += f"; {num_near} more frames use a near duplicate's entry, their own pictures not compared"
        if num_exact < len(self._compared) and not self._problems:
            widest = max(self._allowed.features_same, self._allowed.features_other)
            words += f", the others within {widest:g}"
        sure = None
        if not self._problems and not self._unchecked:
            sure = confidence(groups, self._compared)
            words += f"; {confidence_words(sure)}"
        return Check(
            name="embeddings",
            equal=not self._problems,
            words=words,
            num_checked=len(self._compared),
            num_total=len(groups),
            problems=tuple(self._problems),
            unchecked=tuple(self._unchecked),
            confidence=sure,
            layers=layer_figures(self._layers),
        )


def _digest(features: Features) -> bytes:
    """Digest features with their shape, dtype and grid."""
    hasher = blake3(f"{features.array.shape} {features.dtype} {features.grid_thw}".encode())
    hasher.update(features.array.reshape(-1).view("u1").data)
    return hasher.digest()
