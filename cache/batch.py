"""Several entries committed together: built aside one by one, then made durable, renamed, acknowledged.

Owns: the order of these steps over all entries, and what a lost race means. Does not own: how one entry
is built (``cache.commit``), when a batch is large enough (its caller).

    add: folder, chunk, metadata, read back      each entry, under tmp/
    commit: fsync every file and folder          only now may any of them become visible
            rename every folder into place
            fsync each group folder once         only now is any of them acknowledged

A process killed, or a power cut, anywhere in between leaves whole entries or none.
"""

import errno
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from cache.commit import BuiltEntry, CommitStep, NewEntry, OnStep, build_aside
from cache.entry import Features, Provenance
from cache.entry_json import CHUNK_NAME, METADATA_NAME
from cache.files import Durability, Folder, flush_fd, sync_fd
from cache.home import Home
from cache.key import EncoderSpec, EntryKey, PixelDigest, entry_key
from cache.layout import FRAMES, TMP, group_name, make_group
from cache.refusal import refused

_OCCUPIED = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR})
# Each lost race needs another writer who was faster, and a damaged entry of his: more is no race.
_MAX_RACES = 8


class CommitBatch:
    """Entries on their way into a store; to be used in ``with``, by one thread.

    What was added but not committed is removed at the end. After an error of ``add`` the entries that
    were added before can still be committed; after one of ``commit`` none is acknowledged.
    """

    __slots__ = ("_built", "_durability", "_home", "_on_step", "_serves", "_tmp")

    def __init__(
        self, home: Home, durability: Durability, on_step: OnStep, serves: Callable[[EntryKey], bool]
    ) -> None:
        """``serves`` reads an entry, puts it away when it is damaged, and says whether it was right."""
        self._home, self._durability, self._on_step, self._serves = home, durability, on_step, serves
        self._tmp: Folder | None = None
        self._built: list[BuiltEntry] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go()

    @property
    def num_entries(self) -> int:
        """How many entries wait to be committed."""
        return len(self._built)

    @property
    def num_bytes(self) -> int:
        """Bytes of their payloads: on the disk, but not yet durable."""
        return sum(built.num_bytes for built in self._built)

    def add(
        self, pixels: PixelDigest, spec: EncoderSpec, features: Features, provenance: Provenance
    ) -> EntryKey:
        """Build an entry aside; until this returns the features must not change, afterwards they may go.

        Raises:
            ValueError: the features are not such as the encoder gives.
            StoreError: the disk is full or broken; nothing of this entry is left.
        """
        _check_features(features, spec)
        key = entry_key(pixels, spec.encoder_id)
        try:
            entry = NewEntry(key, pixels, spec, features, provenance)
            self._built.append(build_aside(self._opened_tmp(), entry, self._on_step))
        except OSError as error:
            raise refused(self._home.path, f"cannot write entry {key}", error) from error
        return key

    def commit(self) -> tuple[EntryKey, ...]:
        """Make all entries durable and visible; acknowledge them by returning their keys.

        When another writer was first, his entry stays: same key, same features.

        Raises:
            StoreError: the disk refuses; whole entries may be visible, but none is acknowledged.
        """
        keys = tuple(built.key for built in self._built)
        try:
            if self._built:
                self._commit(self._opened_tmp())
        except OSError as error:
            what = f"cannot write entry {keys[0]}" + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
            raise refused(self._home.path, what, error) from error
        finally:
            self._let_go()
        return keys

    def _commit(self, tmp: Folder) -> None:
        for built in self._built:
            built.sync(self._durability, self._on_step)
        with Folder.open_root(self._home.store) as root, root.folder(FRAMES) as frames, ExitStack() as open_:
            groups: dict[str, Folder] = {}
            for built in self._built:
                name = group_name(built.key)
                if name not in groups:
                    groups[name] = open_.enter_context(_open_group(frames, name, self._durability))
                self._publish(tmp, built, groups[name])
                self._on_step(CommitStep.renamed)
            _sync_groups(groups.values(), self._durability)
            self._on_step(CommitStep.groups_synced)
        self._on_step(CommitStep.acknowledged)

    def _publish(self, tmp: Folder, built: BuiltEntry, group: Folder) -> None:
        for races in range(_MAX_RACES + 1):
            try:
                return tmp.rename(built.name, group, built.key.hex)
            except OSError as error:
                if error.errno not in _OCCUPIED or races == _MAX_RACES:
                    raise
            if self._serves(built.key):
                with suppress(FileNotFoundError):  # removed again: the place is free, ours goes there
                    return _sync_entry(group, built.key, self._durability)
        return None  # pragma: no cover - the last race raises

    def _opened_tmp(self) -> Folder:
        if self._tmp is None:
            with Folder.open_root(self._home.store) as root:
                root.make_folder(TMP, exist_ok=True)
                self._tmp = root.folder(TMP)
        return self._tmp

    def _let_go(self) -> None:
        """Close what is open, and remove under ``tmp/`` what was not renamed away."""
        for built in self._built:
            built.close()
        self._built.clear()
        if self._tmp is not None:
            self._tmp.close()
            self._tmp = None


def sync_entries(store: Path, keys: Iterable[EntryKey], durability: Durability) -> None:
    """Make durable what others wrote and may not have made durable yet; an entry that is gone is left out.

    Raises:
        OSError: the disk refuses.
    """
    with ExitStack() as open_:
        frames = open_.enter_context(Folder.open(store / FRAMES))
        groups: dict[str, Folder] = {}
        for key in keys:
            with suppress(FileNotFoundError):
                name = group_name(key)
                if name not in groups:
                    groups[name] = open_.enter_context(frames.folder(name))
                _sync_entry(groups[name], key, durability)
        _sync_groups(groups.values(), durability)


def _open_group(frames: Folder, name: str, durability: Durability) -> Folder:
    try:
        return frames.folder(name)
    except FileNotFoundError:
        make_group(frames, name)
        sync_fd(frames.fd, durability)
        return frames.folder(name)


def _sync_entry(group: Folder, key: EntryKey, durability: Durability) -> None:
    """Make another writer's entry durable: we acknowledge it, and he may not be so far yet."""
    with group.folder(key.hex) as entry:
        for name in (CHUNK_NAME, METADATA_NAME):
            with entry.open_file(name) as fd:
                sync_fd(fd, durability)
        sync_fd(entry.fd, durability)


def _sync_groups(groups: Iterable[Folder], durability: Durability) -> None:
    """Make the new names durable; the last call also empties the drive's own cache."""
    waiting = list(groups)
    for group in waiting[:-1]:
        sync_fd(group.fd, durability)
    for group in waiting[-1:]:
        flush_fd(group.fd, durability)


def _check_features(features: Features, spec: EncoderSpec) -> None:
    layers, _, hidden = features.array.shape
    expected = (spec.num_layers, spec.out_hidden_size, spec.preprocessing.merge_size)
    if (layers, hidden, features.merge_size) != expected:
        raise ValueError(
            f"the encoder gives (layers, hidden, merge_size) {expected}, "
            f"got {(layers, hidden, features.merge_size)}"
        )
