"""Escribano's protocol: JSON lines over a Unix socket, one client and one request at a time."""

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from stat import S_ISSOCK

from cache.base.errors import InputError, SeeonceError
from seeonce.bridge.answers import Answerer, Reply

_WAIT_S = 5.0  # for a client, before it is asked whether Escribano is still there
_MAX_LINE_BYTES = 64 << 20
_SHOWN = 80  # characters of a method
_VLM_TOKENS, _FIT_TOKENS, _TOO_MANY_TOKENS = 4000, 8000, 1 << 31
_OF_THE_OTHER_MODE = ("llm_infer", "llm_prompt_fit", "load_llm")


def socket_path() -> Path:
    """Return where Escribano looks for the bridge that describes pictures."""
    named = os.environ.get("ESCRIBANO_MLX_SOCKET_PATH") or "/tmp/escribano-mlx.sock"  # noqa: S108 - its default
    return Path(f"{named.replace('.sock', '')}-vlm.sock")


def serve(path: Path, answerer: Answerer, say: Callable[[str], None], ready: Callable[[], None]) -> None:
    """Answer clients until one says ``shutdown`` or the process that started this one is gone.

    An old socket is removed, any other file is not. ``ready`` is called once clients can connect.

    Raises:
        InputError: the socket cannot be made.
    """
    parent = os.getppid()
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listening:
        _bind(listening, path)
        ours = path.stat().st_ino
        try:
            listening.settimeout(_WAIT_S)
            ready()
            while os.getppid() == parent:
                with suppress(TimeoutError):
                    client, _ = listening.accept()
                    with closing(client):
                        if _attend(client, answerer, say):
                            return
                    answerer.keep()
        finally:
            with suppress(OSError):
                if path.stat().st_ino == ours:  # a later bridge may have put its own there
                    path.unlink()


def _bind(listening: socket.socket, path: Path) -> None:
    mask = os.umask(0o177)  # what is on the screen is the user's own
    try:
        if path.exists() and S_ISSOCK(path.stat().st_mode):
            path.unlink()
        listening.bind(str(path))
        listening.listen(1)
    except OSError as error:
        raise InputError(f"{path}: no socket can be made there ({error.strerror or error})") from error
    finally:
        os.umask(mask)


def _attend(client: socket.socket, answerer: Answerer, say: Callable[[str], None]) -> bool:
    """Answer the lines of one client; tell whether it asked for the end."""
    client.settimeout(None)
    try:
        with client.makefile("rb") as lines:
            while line := lines.readline(_MAX_LINE_BYTES):
                if not line.strip():
                    continue
                if len(line) == _MAX_LINE_BYTES:  # its rest would be answered as requests of their own
                    client.sendall(b'{"error": "The request is too long", "done": true}\n')
                    return False
                reply = _reply(line, answerer, say)
                client.sendall(json.dumps(reply).encode() + b"\n")
                if reply.get("status") == "shutting_down":
                    return True
    except OSError as error:  # it went away, as Escribano does when it ends
        say(f"The client went away ({error}).")
    return False


def _reply(line: bytes, answerer: Answerer, say: Callable[[str], None]) -> Reply:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {"error": f"Invalid JSON: {error}", "done": True}
    if not isinstance(request, dict):
        return {"error": "Invalid request: expected an object", "done": True}
    number, params = request.get("id"), request.get("params")
    named: Reply = {"id": number if isinstance(number, int) else 0}
    method = str(request.get("method"))[:_SHOWN]
    try:
        found = _answer(method, params if isinstance(params, dict) else {}, answerer)
    except SeeonceError as error:
        problem = " ".join(str(error).split())
        say(f"{method}: {problem}")
        return named | {"error": problem, "done": True}
    except Exception as error:  # the client waits: it is to hear of a bug, too
        sys.excepthook(type(error), error, error.__traceback__)
        return named | {"error": f"{type(error).__name__}: {error}", "done": True}
    return named | found | ({} if method == "shutdown" else {"done": True})


def _answer(method: str, params: Mapping[str, object], answerer: Answerer) -> Reply:
    if method in ("vlm_infer", "text_infer"):
        return answerer.infer(params, _tokens(params, _VLM_TOKENS))
    if method == "text_prompt_fit":
        return answerer.prompt_fit(params, _tokens(params, _FIT_TOKENS))
    if method == "ping":
        return {"pong": True, "text": ""}
    if method == "unload_vlm":
        answerer.unload()
        return {"status": "unloaded"}
    if method == "unload_llm":
        return {"status": "unloaded"}
    if method == "shutdown":
        return {"status": "shutting_down"}
    if method in _OF_THE_OTHER_MODE:
        raise InputError(f"{method} not available in VLM-only mode")
    raise InputError(f"Unknown method: {method}")


def _tokens(params: Mapping[str, object], default: int) -> int:
    wanted = params.get("maxTokens", default)
    if not isinstance(wanted, int | float) or not 1 <= wanted < _TOO_MANY_TOKENS:
        raise InputError(f"maxTokens is {str(wanted)[:_SHOWN]}; expected a number of at least 1")
    return int(wanted)
