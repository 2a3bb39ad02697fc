"""Who may ask: the Host header, the origin of a page, the key, and how large and slow a body may be."""

import asyncio
import hmac
import ipaddress

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from seeonce.server.errors import ApiError, refused
from seeonce.server.options import ServeOptions

MAX_BODY_BYTES = 128 << 20
_LONGEST_WAIT_S = 30.0
_LONGEST_BODY_S = 300.0
_OPEN_PATHS = ("/health",)


class Guard:
    """Refuses, before anything is read, who may not ask."""

    def __init__(self, app: ASGIApp, options: ServeOptions) -> None:
        self._app, self._options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            error = self._problem(scope)
            if error is not None:
                response = JSONResponse(error.body, error.status, error.headers)
                await response(scope, receive, send)
                return
        elif scope["type"] == "websocket":
            return
        await self._app(scope, receive, send)

    def _problem(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            return ApiError(403, "The Host header names another server: see --allow-host.")
        origin = headers.get("origin")
        same = (f"http://{host}", f"https://{host}")
        if origin is not None and origin not in (*same, *self._options.origins):
            return ApiError(403, "Pages of this origin may not ask: see --allow-origin.")
        is_preflight = scope["method"] == "OPTIONS" and origin is not None
        if self._options.api_key is None or is_preflight or scope["path"] in _OPEN_PATHS:
            return None
        kind, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip().encode() if kind.lower() == "bearer" else b""
        if hmac.compare_digest(given, self._options.api_key.encode()):
            return None
        return ApiError(
            401, "Incorrect API key provided.", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
        )

    def _is_ours(self, host: str) -> bool:
        """An address is always ours: a page can only lead here by a name that it owns."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        name = name.strip("[]").lower()
        if name in ("localhost", *self._options.hosts):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


async def read_body(request: Request) -> bytes:
    """Read the body of a request for JSON.

    Raises:
        ApiError: it is of another kind, too large, or comes too slowly.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "Send the request as application/json.")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    loop = asyncio.get_running_loop()
    last_s = loop.time() + _LONGEST_BODY_S
    try:
        async with asyncio.timeout(_LONGEST_WAIT_S) as wait:
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large()
                wait.reschedule(min(loop.time() + _LONGEST_WAIT_S, last_s))
        return bytes(body)
    except TimeoutError:
        raise ApiError(
            408, "The rest of the request did not come.", headers={"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise refused("The request ended before its body did.") from None


def _too_large() -> ApiError:
    return ApiError(
        413, f"The request is larger than {MAX_BODY_BYTES >> 20} MiB.", headers={"Connection": "close"}
    )
