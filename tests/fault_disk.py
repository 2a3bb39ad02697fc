"""A layer between the store and the operating system that records every change and injects errors.

Owns: what of a recorded history a power cut may leave, and how a store is built from that. Does not own:
what must be true of it (``test_power_loss``).

The model is harsher than any filesystem in use. Of a file, all bytes written before its last fsync are
kept; of later ones any may be dropped, cut or zero. Of a folder, all names made or removed before its last
fsync are kept; of later ones any may be lost, each by itself, the two halves of a rename too. A file is
reached through names only.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

REFUSABLE = ("open", "mkdir", "posix_fallocate", "write", "preadv", "fsync", "rename", "link")
_REAL: dict[str, Callable[..., Any]] = {
    name: getattr(os, name) for name in (*REFUSABLE, "unlink", "rmdir") if hasattr(os, name)
}
_REAL["fsync"] = lambda _: None  # it is recorded; a real one only takes time
# macOS has no posix_fallocate; there the tests take the way of Linux all the same.
_REAL.setdefault("posix_fallocate", lambda fd, _, size: os.ftruncate(fd, max(size, os.fstat(fd).st_size)))


@dataclass(frozen=True, slots=True)
class Named:
    """A name in a folder now means that file or folder, or nothing (None)."""

    folder: int
    name: str
    meant: int | None


@dataclass(frozen=True, slots=True)
class Wrote:
    """Bytes at an offset of a file."""

    file: int
    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Synced:
    """fsync of a file or folder."""

    what: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The store said that this is durable."""

    what: object


Event = Named | Wrote | Synced | Acknowledged


class Kept(Enum):
    """What becomes of a change that no fsync covers."""

    all = "all"
    part = "part"
    zeros = "zeros"
    nothing = "nothing"


@dataclass(slots=True)
class Disk:
    """What happened below one folder, and what shall fail: the ``fail_at``-th refusable call,
    and all after it when it fails for good.

    ``watched`` is for its user: the number of the first event that he is interested in.
    """

    root: Path
    events: list[Event] = field(default_factory=list)
    folders: set[int] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    fail_at: int | None = None
    fails_for_good: bool = False
    error: int = 0
    watched: int = 0
    _ids: dict[int, int] = field(default_factory=dict)
    _num_ids: int = 0

    def acknowledge(self, what: object) -> None:
        self.events.append(Acknowledged(what))

    def settle(self) -> None:
        """Take everything so far for durable: another process did it long ago."""
        self.events += [Synced(number) for number in range(self._num_ids + 1)]
        self.watched = len(self.events)

    @contextmanager
    def watching(self) -> Iterator["Disk"]:
        """Put this layer in place of the functions of ``os``."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cache.base.files.sys", SimpleNamespace(platform="linux"))
            for name, real in _REAL.items():
                patch.setattr(os, name, self._watched(name, real), raising=False)
            if not self._ids:
                self.folders.add(self._new(self.root.stat().st_ino))
            yield self

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        after: Callable[..., None] | None = getattr(self, f"_after_{name}", None)
        before: Callable[..., Any] | None = getattr(self, f"_before_{name}", None)

        def call(*args: Any, **kwargs: Any) -> Any:
            if name in REFUSABLE:
                self.calls.append(name)
                if self._fails(len(self.calls) - 1):
                    raise OSError(self.error, os.strerror(self.error))
            seen = before(*args, **kwargs) if before else None
            result = real(*args, **kwargs)
            if after:
                after(seen, result, *args, **kwargs)
            return result

        return call

    def _fails(self, call: int) -> bool:
        if self.fail_at is None:
            return False
        return call >= self.fail_at if self.fails_for_good else call == self.fail_at

    def _new(self, inode: int) -> int:
        self._num_ids += 1
        self._ids[inode] = self._num_ids
        return self._num_ids

    def _id(self, fd: int) -> int | None:
        return self._ids.get(os.fstat(fd).st_ino)

    def _at(self, name: str, dir_fd: int | None) -> tuple[int | None, str]:
        path = Path(os.fspath(name))
        return (
            (self._ids.get(path.parent.stat().st_ino), path.name)
            if dir_fd is None
            else (self._id(dir_fd), name)
        )

    def _meant(self, name: str, dir_fd: int | None) -> int | None:
        try:
            return self._ids.get(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_ino)
        except FileNotFoundError:
            return None

    def _name(self, name: str, dir_fd: int | None, meant: int | None) -> None:
        folder, name = self._at(name, dir_fd)
        if folder is not None:
            self.events.append(Named(folder, name, meant))

    def _after_open(
        self, _: Any, fd: int, name: str, flags: int, *__: Any, dir_fd: int | None = None
    ) -> None:
        if flags & os.O_CREAT and self._at(name, dir_fd)[0] is not None:
            self._name(name, dir_fd, self._new(os.fstat(fd).st_ino))

    def _after_mkdir(self, _: Any, __: Any, name: str, *___: Any, dir_fd: int | None = None) -> None:
        if self._at(name, dir_fd)[0] is not None:
            made = self._new(os.stat(name, dir_fd=dir_fd).st_ino)
            self.folders.add(made)
            self._name(name, dir_fd, made)

    def _before_write(self, fd: int, _: Any) -> int:
        return os.lseek(fd, 0, os.SEEK_CUR) if self._id(fd) is not None else 0

    def _after_write(self, offset: int, num_bytes: int, fd: int, content: Any) -> None:
        if (file := self._id(fd)) is not None:
            self.events.append(Wrote(file, offset, bytes(content[:num_bytes])))

    def _after_posix_fallocate(self, _: Any, __: Any, fd: int, offset: int, size: int) -> None:
        if (file := self._id(fd)) is not None:
            self.events.append(Wrote(file, offset, bytes(size)))

    def _after_fsync(self, _: Any, __: Any, fd: int) -> None:
        if (what := self._id(fd)) is not None:
            self.events.append(Synced(what))

    def _before_rename(self, name: str, *_: Any, src_dir_fd: int | None = None, **__: Any) -> int | None:
        return self._meant(name, src_dir_fd)

    def _after_rename(
        self,
        meant: int | None,
        _: Any,
        name: str,
        target: str,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> None:
        self._name(name, src_dir_fd, None)
        self._name(target, dst_dir_fd, meant)

    def _after_link(
        self,
        _: Any,
        __: Any,
        name: str,
        target: str,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
        **___: Any,
    ) -> None:
        self._name(target, dst_dir_fd, self._meant(target, dst_dir_fd))

    def _after_unlink(self, _: Any, __: Any, name: str, *, dir_fd: int | None = None) -> None:
        self._name(name, dir_fd, None)

    _after_rmdir = _after_unlink


def survivors(
    disk: Disk,
    events: list[Event],
    target: Path,
    name_kept: Callable[[], bool],
    data_kept: Callable[[], Kept],
) -> None:
    """Build under ``target`` what a power cut after these events may leave."""
    last_sync = {event.what: at for at, event in enumerate(events) if isinstance(event, Synced)}
    names: dict[int, dict[str, int]] = {}
    contents: dict[int, bytearray] = {}
    for at, event in enumerate(events):
        if isinstance(event, Named):
            if at < last_sync.get(event.folder, -1) or name_kept():
                names.setdefault(event.folder, {})[event.name] = event.meant or 0
        elif isinstance(event, Wrote):
            kept = Kept.all if at < last_sync.get(event.file, -1) else data_kept()
            _apply(contents.setdefault(event.file, bytearray()), event, kept)
    _build(disk, target, 1, names, contents)


def _apply(content: bytearray, wrote: Wrote, kept: Kept) -> None:
    if kept is Kept.nothing:
        return
    new = bytes(len(wrote.content)) if kept is Kept.zeros else wrote.content
    if kept is Kept.part:
        new = new[: len(new) // 2]
    content.extend(bytes(max(0, wrote.offset + len(new) - len(content))))
    content[wrote.offset : wrote.offset + len(new)] = new


def _build(
    disk: Disk, path: Path, folder: int, names: dict[int, dict[str, int]], contents: dict[int, bytearray]
) -> None:
    path.mkdir()
    for name, meant in names.get(folder, {}).items():
        if meant in disk.folders:
            _build(disk, path / name, meant, names, contents)
        elif meant:
            (path / name).write_bytes(contents.get(meant, b""))


def chances(seed: int) -> tuple[Callable[[], bool], Callable[[], Kept]]:
    """Return what a random disk keeps."""
    chance = random.Random(seed)
    return lambda: chance.random() < 0.5, lambda: chance.choice(list(Kept))
