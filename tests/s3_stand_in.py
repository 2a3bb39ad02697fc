"""A small server of S3 in this process, which does to requests what a test wants.

    python tests/s3_stand_in.py

serves in a process of its own, and prints its address and the environment of its clients as JSON.
"""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

from bucket_samples import KEYS, Server

Fault = tuple[int, str]
"""The status and the code of an error.

Status 0 is none: ``drop`` or ``stall`` the request, ``cut`` its answer in half, do it and let the answer be
``lost``.
"""

Before = Callable[[str, str], Fault | None]
"""Is asked with the method and the name of an object before each request; None lets it pass."""


class StandIn(ThreadingHTTPServer):
    """Objects in memory, of one bucket, and how often each request came for each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.is_public = False
        self.before: Before = lambda method, name: None
        self.asked = Counter[tuple[str, str]]()
        self.lock = threading.Lock()
        self.ended = threading.Event()


@contextmanager
def stand_in() -> Iterator[tuple[StandIn, Server]]:
    """Serve an empty bucket."""
    server = StandIn()
    serving = threading.Thread(target=server.serve_forever, args=(0.01,))
    serving.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        yield server, Server("s3://screens", {**KEYS, "AWS_ENDPOINT_URL": url})
    finally:
        server.ended.set()
        server.shutdown()
        serving.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: StandIn

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path)
        self.name, self.query = (
            unquote(parts.path.partition("/screens")[2].lstrip("/")),
            parse_qs(parts.query, True),
        )
        with self.server.lock:
            self.server.asked[self.command, self.name] += 1
            fault = self.server.before(self.command, self.name)
        if "Authorization" not in self.headers and not self.server.is_public:
            fault = 403, "AccessDenied"
        if fault is not None and fault[0]:
            return self._error(*fault)
        if fault is not None and fault[1] in ("drop", "stall"):
            self.close_connection = True
            if fault[1] == "stall":
                self.server.ended.wait(60)
            return None
        self.etag = f'"{hashlib.md5(body).hexdigest()}"'
        with self.server.lock:
            status, answer, headers = getattr(self, f"_{self.command.lower()}")(body)
        if fault is not None and fault[1] == "lost":
            self.close_connection = True
            return None
        if status >= 400:
            return self._error(status, answer.decode())
        return self._send(status, answer, headers, is_cut=fault is not None)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _put(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if self.headers.get("If-None-Match") == "*" and self.name in self.server.objects:
            return 412, b"PreconditionFailed", {}
        kept = {name: value for name, value in self.headers.items() if name.lower().startswith("x-amz-meta-")}
        kept |= {"ETag": self.etag, "Last-Modified": format_datetime(_now(), True)}
        self.server.objects[self.name] = body, kept
        return 200, b"", {"ETag": kept["ETag"]}

    def _get(self, _: bytes) -> tuple[int, bytes, dict[str, str]]:
        if "list-type" in self.query:
            return 200, self._listing(), {}
        if self.name not in self.server.objects:
            return 404, b"NoSuchKey", {}
        body, kept = self.server.objects[self.name]
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(wanted[1]), int(wanted[2] or len(body) - 1) + 1
            return 206, body[start:stop], {**kept, "Content-Range": f"bytes {start}-{stop - 1}/{len(body)}"}
        return 200, body, kept

    _head = _get

    def _delete(self, _: bytes) -> tuple[int, bytes, dict[str, str]]:
        self.server.objects.pop(self.name, None)
        return 204, b"", {}

    def _post(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        names = [unescape(name) for name in re.findall("<Key>(.*?)</Key>", body.decode())]
        for name in names:
            self.server.objects.pop(name, None)
        done = "".join(f"<Deleted><Key>{escape(name)}</Key></Deleted>" for name in names)
        return 200, f"<DeleteResult>{done}</DeleteResult>".encode(), {}

    def _listing(self) -> bytes:
        prefix, delimiter = (self.query.get(name, [""])[0] for name in ("prefix", "delimiter"))
        found, folders = [], set[str]()
        for name, (body, kept) in sorted(self.server.objects.items()):
            rest = name.removeprefix(prefix)
            if not name.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            found.append(
                f"<Contents><Key>{escape(name)}</Key><Size>{len(body)}</Size><ETag>{escape(kept['ETag'])}</ETag>"
                f"<LastModified>{_now().isoformat()}</LastModified></Contents>"
            )
        below = "".join(
            f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(folders)
        )
        inside = f"{''.join(found)}{below}<IsTruncated>false</IsTruncated>"
        return f"<ListBucketResult>{inside}</ListBucketResult>".encode()

    def _error(self, status: int, code: str) -> None:
        self._send(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode(), {})

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, is_cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if is_cut else body)
        if is_cut:
            self.close_connection = True


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


if __name__ == "__main__":
    with stand_in() as (_, served):
        print(json.dumps({"address": served.address, "environ": dict(served.environ)}), flush=True)
        threading.Event().wait()
