"""What the passes ask of a store, be it on a disk or in a bucket."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from cache.base.files import Durability
from cache.entry import EntryInfo, Features, Provenance
from cache.key import EncoderSpec, EntryKey, PixelDigest
from cache.manifest import Manifest, ManifestHead


class Batch(Protocol):
    """Entries on their way into a store, acknowledged together; to be used in ``with``, by one thread."""

    @property
    def num_entries(self) -> int:
        """How many entries wait to be committed."""

    @property
    def num_bytes(self) -> int:
        """Bytes of their payloads."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: Any) -> None: ...

    def add(
        self, pixels: PixelDigest, spec: EncoderSpec, features: Features, provenance: Provenance
    ) -> EntryKey:
        """Take an entry; afterwards its features may go."""

    def commit(self) -> tuple[EntryKey, ...]:
        """Acknowledge all entries by returning their keys; another writer's entry of a key stays."""


class Entries(Protocol):
    """Entries by key, written once and checked on every read. What is wrong is a miss."""

    @property
    def durability(self) -> Durability:
        """What an acknowledged entry survives."""

    def has(self, key: EntryKey) -> bool:
        """Say whether the entry is there: metadata and length are checked, the payload is not."""

    def exists(self, key: EntryKey) -> bool:
        """Say whether there is an entry of that name, right or wrong."""

    def entry_info(self, key: EntryKey) -> EntryInfo | None:
        """Return what an entry says about itself; None when it is missing or wrong."""

    def read(self, key: EntryKey, buffer: NDArray[np.uint8] | None = None) -> Features | None:
        """Return the features of an entry, every byte checked; None when it is missing or wrong."""

    def batch(self) -> Batch:
        """Return a batch of entries to be written."""

    def make_durable(self, keys: Iterable[EntryKey]) -> None:
        """Make entries of other writers as durable as one's own."""


class Manifests(Protocol):
    """The manifests of a store: for each recording and encoder the newest."""

    def list_manifests(self, on_problem: Callable[[str], None]) -> Sequence[ManifestHead]:
        """Return what manifests are of, newest first; ``on_problem`` hears of those that cannot be read."""

    def read_manifest(self, head: ManifestHead) -> Manifest:
        """Return the frames too.

        Raises:
            StoreError: it is missing, damaged or of a newer format.
        """

    def write_manifest(self, manifest: Manifest) -> None:
        """Make this the newest manifest of its recording and encoder."""
