"""The paths under which files and batches are sent, looked up and ended."""

import asyncio
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Message

from seeonce.server.asked import Strict, read_request
from seeonce.server.batches import Batches, Files
from seeonce.server.errors import ApiError, refused
from seeonce.server.guard import read_body

MAX_FILE_BYTES = 512 << 20
_LONGEST_WAIT_S = 30.0
_PAGE = 10_000

Json = dict[str, Any]


class BatchRequest(Strict):
    """A request to /v1/batches."""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None


def batch_paths(files: Files, batches: Batches) -> APIRouter:
    """Return the paths of ``files`` and ``batches``."""
    router = APIRouter()

    @router.post("/v1/files", response_model=None)
    async def send_file(request: Request) -> Response:
        """Keep a file of requests for a batch."""
        return JSONResponse(await _upload(request, files))

    @router.get("/v1/files")
    def list_files(
        purpose: str | None = None,
        limit: int = _PAGE,
        after: str | None = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> Json:
        """List the files."""
        found = [one for one in files.all() if purpose in (None, one["purpose"])]
        return _page(found if order == "desc" else found[::-1], limit, after)

    @router.get("/v1/files/{file_id}")
    def file(file_id: str) -> Json:
        """Say what a file is."""
        return files.info(file_id)

    @router.get("/v1/files/{file_id}/content", response_model=None)
    def content(file_id: str) -> Response:
        """Return what is in a file."""
        return FileResponse(files.path(file_id), media_type="application/jsonl")

    @router.delete("/v1/files/{file_id}")
    def delete(file_id: str) -> Json:
        """Remove a file."""
        files.delete(file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    @router.post("/v1/batches", response_model=None)
    async def new_batch(request: Request) -> Response:
        """Ask the requests of a file, in its own time."""
        asked = read_request(BatchRequest, await read_body(request))
        found = await run_in_threadpool(batches.new, asked.input_file_id, asked.endpoint, asked.metadata)
        return JSONResponse(found)

    @router.get("/v1/batches")
    def list_batches(limit: int = 20, after: str | None = None) -> Json:
        """List the batches, newest first."""
        return _page(batches.all(), limit, after)

    @router.get("/v1/batches/{batch_id}")
    def batch(batch_id: str) -> Json:
        """Say how far a batch is."""
        return batches.info(batch_id)

    @router.post("/v1/batches/{batch_id}/cancel")
    def cancel(batch_id: str) -> Json:
        """End a batch; its answers so far stay."""
        return batches.cancel(batch_id)

    return router


async def _upload(request: Request, files: Files) -> Json:
    num_bytes = 0

    async def receive() -> Message:
        nonlocal num_bytes
        message = await asyncio.wait_for(request.receive(), _LONGEST_WAIT_S)
        num_bytes += len(message.get("body", b""))
        if num_bytes > MAX_FILE_BYTES:
            raise ApiError(413, f"The file is larger than {MAX_FILE_BYTES >> 20} MiB.", "file")
        return message

    try:
        async with Request(request.scope, receive).form(max_files=1, max_fields=4) as form:
            for name in form:
                if name not in ("file", "purpose"):
                    raise refused(f"{name} is not known here: leave it out.", name)
            if form.get("purpose") != "batch":
                raise refused("purpose: expected batch.", "purpose")
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise refused("file: Field required", "file")

            def write(path: Path) -> None:
                with path.open("xb") as target:
                    shutil.copyfileobj(file.file, target)
                path.chmod(0o600)

            return await run_in_threadpool(files.new, file.filename or "input.jsonl", "batch", write)
    except TimeoutError:
        raise ApiError(408, "The rest of the file did not come.", headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise refused("The request ended before its file did.") from None


def _page(found: list[Json], limit: int, after: str | None) -> Json:
    if not 1 <= limit <= _PAGE:
        raise refused(f"limit: expected 1 to {_PAGE}.", "limit")
    ids = [one["id"] for one in found]
    if after is not None and after not in ids:
        raise refused("after: expected an id of the list.", "after")
    start = 0 if after is None else ids.index(after) + 1
    data = found[start : start + limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": start + limit < len(found),
    }
