"""Stores of every kind for the tests of what holds for all, and servers of buckets for the campaigns."""

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
from store_samples import PROVENANCE, SPEC, entry_folder, features, new_store, pixels

from cache.bucket import BucketStore
from cache.entry import Features
from cache.key import EntryKey
from cache.objects import Objects
from cache.store import Store

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing-secret", "AWS_REGION": "us-east-1"}


@dataclass(frozen=True, slots=True)
class Place:
    """A store and the way behind its back."""

    store: Store | BucketStore

    def write(self, number: int = 0, stored: Features | None = None) -> EntryKey:
        """Commit features for the picture ``number``, by default those of its seed."""
        with self.store.batch() as batch:
            batch.add(pixels(number), SPEC, stored or features(number), PROVENANCE)
            return batch.commit()[0]

    def raw(self, key: EntryKey, name: str) -> bytes:
        """Read a file of an entry."""
        if isinstance(self.store, Store):
            return (entry_folder(self.store, key) / name).read_bytes()
        return bytes(obstore.get(self.store.objects.store, _name(key, name)).bytes())

    def replace(self, key: EntryKey, name: str, content: bytes) -> None:
        """Replace a file of an entry, or remove it."""
        if isinstance(self.store, Store):
            (entry_folder(self.store, key) / name).write_bytes(content)
        else:
            obstore.put(self.store.objects.store, _name(key, name), content)

    def remove(self, key: EntryKey, name: str) -> None:
        """Remove a file of an entry."""
        if isinstance(self.store, Store):
            (entry_folder(self.store, key) / name).unlink()
        else:
            obstore.delete(self.store.objects.store, _name(key, name))


def _name(key: EntryKey, name: str) -> str:
    return f"frames/{key.hex[:2]}/{key.hex}/{name}"


def new_place(kind: str, tmp_path: Path) -> Place:
    """Return an empty store of a kind: local, memory, file, or the address of a bucket."""
    if kind == "local":
        return Place(new_store(tmp_path))
    address = {"memory": f"memory://{tmp_path}", "file": f"file://{tmp_path}/bucket"}.get(kind, kind)
    return Place(BucketStore.open(address, create=True))


class KilledError(BaseException):
    """The process died here."""


class Watched:
    """Objects that call ``before`` with the name and arguments of each operation, and do it then."""

    def __init__(self, objects: Objects, before: Callable[[str, str], None]) -> None:
        self._objects, self._before = objects, before

    def __getattr__(self, operation: str) -> Any:
        found = getattr(self._objects, operation)
        if operation not in ("put_new", "get", "stream", "head", "delete", "list"):
            return found

        def call(name: str, *more: Any) -> Any:
            self._before(operation, name)
            return found(name, *more)

        return call


def watched(store: BucketStore, before: Callable[[str, str], None]) -> BucketStore:
    """Return the same store, whose every request is shown to ``before`` first."""
    return BucketStore(Watched(store.objects, before), store.store_id, store.writable)  # type: ignore[arg-type]


@contextmanager
def moto_server(monkeypatch_env: Callable[[str, str], None]) -> Iterator[str]:
    """Start ``moto_server``, on the PATH or named by MOTO_SERVER; yield a bucket's address."""
    program = os.environ.get("MOTO_SERVER") or shutil.which("moto_server")
    if program is None:
        raise FileNotFoundError("moto_server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [program, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            try:
                request = urllib.request.Request(f"{url}/screens", method="PUT")
                request.add_header(
                    "Authorization", "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/x"
                )
                urllib.request.urlopen(request, timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch_env(name, value)
        yield "s3://screens"
    finally:
        process.terminate()
        process.wait()
