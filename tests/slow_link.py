"""A link that gives so many bytes a second each way, over all its connections, in a process of its own.

    python tests/slow_link.py PORT BYTES_PER_S

Passes what comes to the port that it prints on to PORT of this machine.
"""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cache.mirror import Pace

_PIECE_BYTES = 128 << 10


@contextmanager
def slow_link(port: int, bytes_per_s: float) -> Iterator[int]:
    """Start a link to a port; yield the port of its other end."""
    command = [sys.executable, __file__, str(port), str(bytes_per_s)]
    environ = {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as link:
        assert link.stdout is not None
        try:
            yield int(link.stdout.readline())
        finally:
            link.terminate()


def _pass_on(source: socket.socket, target: socket.socket, pace: Pace) -> None:
    with suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            pace(len(piece))
            target.sendall(piece)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def main(port: int, bytes_per_s: float) -> None:
    """Serve until it is ended."""
    there, back = Pace(bytes_per_s), Pace(bytes_per_s)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            client, _ = server.accept()
            upstream = socket.create_connection(("127.0.0.1", port))
            for one in (client, upstream):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_pass_on, args=(client, upstream, there), daemon=True).start()
            threading.Thread(target=_pass_on, args=(upstream, client, back), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
