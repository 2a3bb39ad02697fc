"""The server: its parts put together, its paths, and its life from start to SIGTERM."""

import asyncio
import html
import signal
import sys
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cache.base.errors import SeeonceError
from cache.base.home import Home
from cache.pixel_index import PixelIndex
from cache.store import Store
from checkpoint.backend import installed_version
from checkpoint.identity import model_id
from seeonce.runs.plan import computed_by
from seeonce.server.asked import ChatRequest, CompletionRequest, Model, read_request
from seeonce.server.batch_paths import batch_paths
from seeonce.server.batches import Batches, Files
from seeonce.server.completions import Completions
from seeonce.server.connections import BoundedConnection
from seeonce.server.engine_thread import EngineThread
from seeonce.server.errors import ApiError, as_api_error, refused
from seeonce.server.features import ServedFeatures
from seeonce.server.guard import Guard, read_body
from seeonce.server.metrics import Metrics
from seeonce.server.models import Models
from seeonce.server.options import ServeOptions
from seeonce.server.pictures import Pictures
from seeonce.server.responses import ResponseRequest

_GRACE_S = 30
_SWITCH_S = 0.0005
_SMALL_BYTES = 64 << 10
_IN_FLIGHT = 32  # what batches keep supplied, where nobody says how many decode


class Server:
    """All parts of one server; use as a context manager, or ``start`` and ``stop`` it."""

    def __init__(self, home: Home, options: ServeOptions, say: Callable[[str], None]) -> None:
        """Open the store of ``home``, and make it when there is none.

        Raises:
            SeeonceError: the store or the model cannot be used.
        """
        store = Store.open(home)
        self.metrics = Metrics()
        self.models = Models(home, options.model, say)
        self.pictures = Pictures(home, store, options, self.metrics)
        features = ServedFeatures(store, self.metrics)
        self.engine = EngineThread(home, options, features, self.metrics, say)
        self.completions = Completions(self.models, self.pictures, self.engine)
        self.files = Files(home)
        self.batches = Batches(
            home, self.files, self.identity, 2 * (options.limits.max_num_seqs or _IN_FLIGHT)
        )
        self.paths = _paths(self)
        self.app = _guarded(self.paths, options, self.metrics)
        self._home = home

    async def identity(self, name: str | None) -> str:
        """Name all that the answers of a model depend on, "" when there is no such model."""
        try:
            model = await self.completions.model(name)
        except (ApiError, SeeonceError):
            return ""

        def named() -> str:
            with PixelIndex(self._home) as index:
                return f"{model_id(model.checkpoint, index)}, {computed_by()}"

        return await asyncio.to_thread(named)

    def start(self, *, batches: bool = True) -> None:
        """Load the default model, and go on with the ``batches`` that the last server left.

        Raises:
            CheckpointError: it does not load.
        """
        # The engine waits for the interpreter's lock after each step, by default up to 5 ms.
        sys.setswitchinterval(_SWITCH_S)
        self.engine.start()
        try:
            self.engine.call(lambda: self.engine.load(self.models.open(self.models.default))).result()
            if batches:
                self.batches.start(self.paths)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End what runs."""
        self.batches.stop()
        self.engine.stop()
        self.pictures.close()


def serve(home: Home, options: ServeOptions, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that are under way have 30 seconds to end.

    Raises:
        SeeonceError: the store or the model cannot be used.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = Server(home, options, say)
    server.start()
    try:
        config = uvicorn.Config(
            server.app,
            host,
            port,
            http=BoundedConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
        )
        say(f"Serving {server.models.default} at http://{host}:{port}/v1; Ctrl-C ends it.")
        # uvicorn takes the signal, and raises it again once it has ended: then there is more to end.
        signal.signal(signal.SIGTERM, lambda *_: None)
        uvicorn.Server(config).run()
    finally:
        server.stop()


def _paths(server: Server) -> FastAPI:
    app = FastAPI(
        title="seeonce", version=installed_version("seeonce"), docs_url=None, redoc_url=None,
        description="The store behind OpenAI's API: a picture that was ever seen costs no vision again.",
    )  # fmt: skip
    for kind in (ApiError, SeeonceError, StarletteHTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _refuse)

    @app.post("/v1/chat/completions", openapi_extra=_body_of(ChatRequest), response_model=None)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation of texts and pictures."""
        return await server.completions.chat(await _read(ChatRequest, request), request)

    @app.post("/v1/completions", openapi_extra=_body_of(CompletionRequest), response_model=None)
    async def completions(request: Request) -> Response:
        """Go on with a text."""
        return await server.completions.text(await _read(CompletionRequest, request), request)

    @app.post("/v1/responses", openapi_extra=_body_of(ResponseRequest), response_model=None)
    async def responses(request: Request) -> Response:
        """Answer a conversation as a response, which is not kept."""
        return await server.completions.response(await _read(ResponseRequest, request), request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the models that can be asked, and which is loaded."""
        names = await asyncio.to_thread(server.models.names)
        return {"object": "list", "data": [_model(server, name) for name in names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """Say whether a model can be asked."""
        return _model(server, await asyncio.to_thread(server.models.known, name))

    @app.get("/health", response_model=None)
    async def health() -> Response:
        """Say whether the server can answer."""
        is_well = server.engine.is_alive
        return JSONResponse({"status": "ok" if is_well else "failed"}, 200 if is_well else 503)

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        """Count, in Prometheus's words."""
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """Show the paths, without a byte from another server."""
        return HTMLResponse(_page(app.openapi()))

    app.include_router(batch_paths(server.files, server.batches))  # last: paths are tried in order
    return app


async def _read(kind: type[Model], request: Request) -> Model:
    """Read a request, a large one in a thread: a picture in it takes long."""
    body = await read_body(request)
    if len(body) < _SMALL_BYTES:
        return read_request(kind, body)
    return await asyncio.to_thread(read_request, kind, body)


def _guarded(app: FastAPI, options: ServeOptions, metrics: Metrics) -> ASGIApp:
    inner: ASGIApp = app
    if options.origins:
        inner = CORSMiddleware(
            app,
            allow_origins=sorted(options.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
        )
    return _Counted(Guard(inner, options), app, metrics)


class _Counted:
    """Counts requests by path and status."""

    def __init__(self, app: ASGIApp, paths: FastAPI, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._known = {getattr(route, "path", "") for route in paths.routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self._known else "other"
                self._metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted)


def _model(server: Server, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "seeonce",
        "seeonce": {"loaded": server.engine.loaded == name},
    }


def _body_of(kind: type[BaseModel]) -> dict[str, Any]:
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def _refuse(_: Request, error: Exception) -> Response:
    """Answer with the API's error object, whatever went wrong."""
    if isinstance(error, ApiError):
        answer = error
    elif isinstance(error, SeeonceError):
        answer = as_api_error(error)
    elif isinstance(error, StarletteHTTPException):
        answer = ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    elif isinstance(error, RequestValidationError):
        found = error.errors()[0]
        name = str(found["loc"][-1])
        answer = refused(f"{name}: {found['msg']}", name)
    else:  # a bug
        answer = ApiError(500, f"The request failed ({type(error).__name__}).")
    return JSONResponse(answer.body, answer.status, answer.headers)


def _page(openapi: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{method.upper()}</td><td><code>{html.escape(path)}</code></td>"
        f"<td>{html.escape(str(about.get('description', '')))}</td></tr>"
        for path, methods in openapi["paths"].items()
        for method, about in methods.items()
    )
    return (
        "<!doctype html><meta charset=utf-8><title>seeonce</title>"
        f"<h1>seeonce {html.escape(openapi['info']['version'])}</h1>"
        f"<p>{html.escape(openapi['info']['description'])}</p>"
        f'<table>{rows}</table><p>All fields: <a href="/openapi.json">openapi.json</a>.</p>'
    )
