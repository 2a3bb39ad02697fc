"""Files and batches of the API, kept in the home: a batch goes on when the server starts again."""

import asyncio
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from cache.base.errors import InputError, StoreError, disk_error
from cache.base.files import PRIVATE_FOLDER, Durability, Folder
from cache.base.home import Home
from seeonce.runs.lock import RunLock
from seeonce.server.batch_run import BadLineError, Batch
from seeonce.server.errors import ApiError

_log = logging.getLogger("seeonce.server")
_INFO = "batch.json"
_ID = re.compile(r"(file-|batch_)[0-9a-f]{24}")
_OPEN = ("validating", "in_progress", "finalizing", "cancelling")
_TIMES = (
    "in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at",
    "cancelled_at", "expires_at",
)  # fmt: skip

Json = dict[str, Any]


class Files:
    """Files that clients sent and batches left: ``files/<id>.jsonl``, and what is said of it beside it."""

    def __init__(self, home: Home) -> None:
        self.folder = home.path / "files"

    def new(self, name: str, purpose: str, write: Callable[[Path], object]) -> Json:
        """Keep a file that ``write`` puts at the path it is given. Raises ``StoreError``."""
        file_id = f"file-{secrets.token_hex(12)}"
        self.put(file_id, name, purpose, write)
        return self.info(file_id)

    def put(self, file_id: str, name: str, purpose: str, write: Callable[[Path], object]) -> None:
        """Keep a file under an id. Raises ``StoreError``."""
        try:
            self.folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
            path = self.folder / f"{file_id}.jsonl"
            write(path)
            info = {
                "id": file_id, "object": "file", "bytes": path.stat().st_size, "created_at": int(time.time()),
                "expires_at": None, "filename": name[:255], "purpose": purpose, "status": "processed",
                "status_details": None,
            }  # fmt: skip
            _save(self.folder, f"{file_id}.json", info)
        except OSError as error:
            raise disk_error(self.folder, "The file cannot be kept", error) from error

    def path(self, file_id: str) -> Path:
        """Return where a file lies. Raises ``ApiError``."""
        self.info(file_id)
        return self.folder / f"{file_id}.jsonl"

    def info(self, file_id: str) -> Json:
        """Return the file object. Raises ``ApiError``."""
        found = _load(self.folder / f"{file_id}.json") if _ID.fullmatch(file_id) else None
        if found is None:
            raise ApiError(404, f"There is no file {file_id[:80]!r}.", "file_id")
        return found

    def all(self) -> list[Json]:
        """Return the file objects, newest first."""
        found = [_load(path) for path in self.folder.glob("file-*.json")]
        return sorted(filter(None, found), key=lambda one: (-one["created_at"], one["id"]))

    def delete(self, file_id: str) -> None:
        """Remove a file. Raises ``ApiError``."""
        path = self.path(file_id)
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)


class Batches:
    """Runs one batch after the other, in a thread with an event loop of its own."""

    def __init__(
        self, home: Home, files: Files, identity: Callable[[str | None], Awaitable[str]], num_at_once: int
    ) -> None:
        """Keep batches in ``home``, each in a folder; ``num_at_once`` requests of one are asked at once."""
        self._folder, self._files = home.path / "batches", files
        self._identity, self._num_at_once = identity, num_at_once
        self._loop = asyncio.new_event_loop()
        self._waiting: asyncio.Queue[str] = asyncio.Queue()
        self._running: tuple[str, asyncio.Task[None]] | None = None
        self._batch: Batch | None = None  # of the one that runs, once its requests are asked
        self._thread = threading.Thread(target=self._loop.run_forever, name="seeonce-batches", daemon=True)

    def start(self, app: ASGIApp) -> None:
        """Begin, with the batches that were not done when the last server ended."""
        self._thread.start()
        left = sorted(self.all(), key=lambda one: int(one["created_at"]))
        asyncio.run_coroutine_threadsafe(self._work(app), self._loop)
        for one in left:
            if one["status"] in _OPEN:
                self._loop.call_soon_threadsafe(self._waiting.put_nowait, one["id"])

    def stop(self) -> None:
        """End what runs; the next server goes on with it."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def new(self, input_file_id: str, endpoint: str, metadata: dict[str, str] | None) -> Json:
        """Take a batch. Raises ``ApiError``."""
        self._files.info(input_file_id)
        batch_id = f"batch_{secrets.token_hex(12)}"
        now_s = int(time.time())
        found: Json = {
            "id": batch_id, "object": "batch", "endpoint": endpoint, "errors": None,
            "input_file_id": input_file_id, "completion_window": "24h", "status": "validating",
            "output_file_id": None, "error_file_id": None, "created_at": now_s,
            "request_counts": {"total": 0, "completed": 0, "failed": 0}, "metadata": metadata,
            **dict.fromkeys(_TIMES),
        }  # fmt: skip
        try:
            (self._folder / batch_id).mkdir(mode=PRIVATE_FOLDER, parents=True)
            self._save(found)
        except OSError as error:
            raise disk_error(self._folder, "The batch cannot be kept", error) from error
        self._loop.call_soon_threadsafe(self._waiting.put_nowait, batch_id)
        return found

    def info(self, batch_id: str) -> Json:
        """Return the batch object as it is now. Raises ``ApiError``."""
        found = _load(self._folder / batch_id / _INFO) if _ID.fullmatch(batch_id) else None
        if found is None:
            raise ApiError(404, f"There is no batch {batch_id[:80]!r}.", "batch_id")
        running, batch = self._running, self._batch
        if running is not None and running[0] == batch_id and batch is not None:
            found["request_counts"] = _counts(batch)
        return found

    def all(self) -> list[Json]:
        """Return the batch objects, newest first."""
        found = []
        for path in self._folder.glob(f"batch_*/{_INFO}"):
            with suppress(ApiError):  # it cannot be read
                found.append(self.info(path.parent.name))
        return sorted(found, key=lambda one: (-one["created_at"], one["id"]))

    def cancel(self, batch_id: str) -> Json:
        """End a batch; what was answered stays. Raises ``ApiError``."""
        found = self.info(batch_id)
        if found["status"] not in _OPEN:
            raise ApiError(409, f"The batch is {found['status']} already.", "batch_id")
        self._save(found | {"status": "cancelling", "cancelling_at": int(time.time())})
        self._loop.call_soon_threadsafe(self._cancel, batch_id)
        return self.info(batch_id)

    def _cancel(self, batch_id: str) -> None:
        if self._running is not None and self._running[0] == batch_id:
            self._running[1].cancel()

    async def _end(self) -> None:
        """End every task of the loop, and wait for them."""
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, app: ASGIApp) -> None:
        while True:
            batch_id = await self._waiting.get()
            task = asyncio.create_task(self._run(batch_id, app))
            self._running = (batch_id, task)
            await asyncio.wait([task])
            self._batch = self._running = None
            if not task.cancelled() and (error := task.exception()) is not None:  # of the disk
                _log.error("%s waits for the next start of the server: %s", batch_id, error)

    async def _run(self, batch_id: str, app: ASGIApp) -> None:
        try:
            lock = RunLock(self._folder / batch_id)
        except (InputError, StoreError):  # another server has it
            return
        with lock:
            found = self.info(batch_id)
            if found["status"] in ("validating", "in_progress"):
                found = await self._ask(found, app)
            if found["status"] in ("finalizing", "cancelling"):
                self._finish(found)

    async def _ask(self, found: Json, app: ASGIApp) -> Json:
        """Run a batch, and say how it ended; an end of the server leaves it as it is."""
        folder = self._folder / found["id"]
        now = {"status": "in_progress", "in_progress_at": found["in_progress_at"] or int(time.time())}
        self._save(found := found | now)
        batch = Batch(
            self._files.folder / f"{found['input_file_id']}.jsonl",
            folder / "output.jsonl",
            folder / "errors.jsonl",
            found["endpoint"],
        )
        self._batch = batch
        try:
            self._files.info(found["input_file_id"])
            await batch.run(app, self._identity, self._num_at_once)
            after: Json = {"status": "finalizing", "finalizing_at": int(time.time())}
        except asyncio.CancelledError:
            found = self.info(found["id"])
            if found["status"] != "cancelling":
                raise
            after = {}
        except Exception as error:  # of a task group, or of the input
            after = {"status": "failed", "failed_at": int(time.time()), "errors": _errors(error)}
        found = self.info(found["id"]) | after | {"request_counts": _counts(batch)}
        self._save(found)
        return found

    def _finish(self, found: Json) -> None:
        """Make files of what came; done again after a kill, it does the rest."""
        folder = self._folder / found["id"]
        for name, field in (("output", "output_file_id"), ("errors", "error_file_id")):
            path = folder / f"{name}.jsonl"
            if path.is_file() and path.stat().st_size and found[field] is None:
                found = found | {field: f"file-{secrets.token_hex(12)}"}
        self._save(found)
        for name, field in (("output", "output_file_id"), ("errors", "error_file_id")):
            path = folder / f"{name}.jsonl"
            if found[field] is not None and path.is_file():
                self._files.put(found[field], f"{found['id']}_{name}.jsonl", "batch_output", path.replace)
        status = "cancelled" if found["status"] == "cancelling" else "completed"
        self._save(found | {"status": status, f"{status}_at": int(time.time())})

    def _save(self, found: Json) -> None:
        _save(self._folder / found["id"], _INFO, found)


def _counts(batch: Batch) -> Json:
    return {"total": batch.total, "completed": batch.completed, "failed": batch.failed}


def _errors(error: Exception) -> Json:
    line, problem = (error.line, error.problem) if isinstance(error, BadLineError) else (None, str(error))
    code = "server_error" if line is None else "invalid_request"
    data = [{"code": code, "line": line, "message": problem, "param": None}]
    return {"object": "list", "data": data}


def _save(folder: Path, name: str, found: Json) -> None:
    with Folder.open(folder) as opened:
        opened.replace(name, json.dumps(found).encode() + b"\n", Durability.none)


def _load(path: Path) -> Json | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
