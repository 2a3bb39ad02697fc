"""Stores of every kind for the tests of what holds for all, and servers of buckets for the campaigns."""

import hashlib
import hmac
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import obstore
import pytest
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


@dataclass(frozen=True, slots=True)
class Server:
    """A server of S3 on this machine, with an empty bucket."""

    address: str
    environ: Mapping[str, str]


@contextmanager
def moto_server(_folder: Path) -> Iterator[Server]:
    """Start ``moto_server``, on the PATH or named by MOTO_SERVER."""
    program, port = os.environ.get("MOTO_SERVER") or shutil.which("moto_server"), free_port()
    if program is None:
        pytest.skip("no moto_server: pip install 'moto[server]' somewhere, and MOTO_SERVER=…/bin/moto_server")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], **quiet)  # type: ignore[call-overload]
    try:
        yield _with_bucket(port)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def ceph_server(folder: Path) -> Iterator[Server]:
    """Start Ceph with its gateway, where Debian's radosgw, ceph-mon and ceph-osd are installed."""
    port = free_port()
    if shutil.which("radosgw") is None or os.geteuid() != 0:
        pytest.skip("no Ceph, see tests/ceph.sh; and it runs as root here")
    try:
        script = Path(__file__).with_name("ceph.sh")
        subprocess.run(
            ["bash", str(script), str(folder), str(port)], check=True, capture_output=True, timeout=300
        )
        yield _with_bucket(port)
    finally:
        for file in (folder / "run").glob("*.pid"):
            with suppress(ValueError, ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGTERM)


SERVERS = {"moto": moto_server, "ceph": ceph_server}


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _with_bucket(port: int) -> Server:
    """Wait for a server, and make a bucket by a request that is signed as S3 wants it."""
    url, until_s = f"http://127.0.0.1:{port}", time.monotonic() + 120
    while True:
        try:
            put_bucket(url, "screens")
            return Server("s3://screens", {**KEYS, "AWS_ENDPOINT_URL": url})
        except OSError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.1)


def put_bucket(url: str, name: str) -> None:
    """Make a bucket: obstore cannot. Signature version 4, as AWS describes it."""
    now, host, nothing = datetime.now(UTC), url.partition("//")[2], hashlib.sha256(b"").hexdigest()
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    signed = "host;x-amz-content-sha256;x-amz-date"
    headers = f"host:{host}\nx-amz-content-sha256:{nothing}\nx-amz-date:{stamp}\n"
    request = f"PUT\n/{name}\n\n{headers}\n{signed}\n{nothing}"
    scope = f"{day}/us-east-1/s3/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{KEYS['AWS_SECRET_ACCESS_KEY']}".encode()
    for part in (*scope.split("/"), to_sign):
        key = hmac.digest(key, part.encode(), "sha256")
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={KEYS['AWS_ACCESS_KEY_ID']}/{scope}, SignedHeaders={signed}, "
        f"Signature={key.hex()}"
    )
    put = urllib.request.Request(f"{url}/{name}", method="PUT")
    for header, value in (
        ("Authorization", authorization),
        ("x-amz-content-sha256", nothing),
        ("x-amz-date", stamp),
    ):
        put.add_header(header, value)
    urllib.request.urlopen(put, timeout=30).close()
