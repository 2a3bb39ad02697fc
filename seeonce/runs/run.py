"""What one execution of pass two leaves: ``runs/<id>/run.json`` and ``results.jsonl``, as types."""

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self, cast

from cache.base.canonical_json import JsonObject, JsonValue, parse
from cache.base.errors import InputError, StoreError, disk_error
from cache.base.text import output_path
from infer.limits import BatchLimits
from infer.request import TokenLogprob, Usage
from infer.sampling import Sampling
from seeonce.runs.lock import lock_file
from seeonce.runs.parse import Description
from seeonce.runs.prompts import Showing

INFO_NAME = "run.json"
RESULTS_NAME = "results.jsonl"


@dataclass(frozen=True, slots=True)
class Result:
    """One line of results.jsonl: what one prompt said of one frame. ``frame`` is zero-based.

    ``group`` are the frames that the same request showed, in order; ``usage`` and ``logprobs`` are the whole
    request's, and stand on each line of its group. ``logprobs`` are those of every token that was decoded, a
    stop string's too; ``None`` when nobody asked. ``parsed`` is the description line taken apart, or the JSON
    value when a schema was asked for.
    """

    recording: str
    frame: int
    timestamp_s: float
    source: str
    key: str
    prompt_id: str
    prompt: str
    text: str
    finish_reason: str
    usage: Usage
    parsed: Description | JsonValue
    error: str | None
    group: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def description(self) -> Description | None:
        """The fields of the description line, or of a JSON answer that has the same."""
        if not isinstance(self.parsed, dict):
            return self.parsed if isinstance(self.parsed, Description) else None
        try:
            return JsonObject(self.parsed, "parsed").record(Description)
        except StoreError:
            return None


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run came to; ``seconds`` is its wall time with loading.

    Of the results, ``num_known`` were answered by earlier runs and ``num_repeated`` had the frame and prompt
    of another result of this run: neither were decoded. ``num_images`` counts the images that went through
    the decoder, ``num_images_again`` those of them that had gone before in this run.
    """

    num_results: int = 0
    num_errors: int = 0
    num_parsed: int = 0
    num_known: int = 0
    num_repeated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_images: int = 0
    num_images_again: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RunInfo:
    """run.json: what was run, with what, when, and how it ended.

    ``prompt_names`` are those of an experiment, in the order of ``prompts``. ``plan_id`` is the digest of all
    that was asked: two finished runs of one plan have the same answers. ``model_id`` is the digest of the
    checkpoint's files. ``status`` is "running", "done", "interrupted" or "failed"; a run that says "running"
    and that no process holds was killed (``seeonce.runs.lock``).
    """

    id: str = ""
    recording: str = ""
    encoder_id: str = ""
    model: str = ""
    model_path: str = ""
    revision: str = ""
    prompts: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    limits: BatchLimits = field(default_factory=BatchLimits)
    showing: Showing = field(default_factory=Showing)
    compute_dtype: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    started_at: str = ""
    ended_at: str | None = None
    status: str = "unknown"
    totals: Totals = field(default_factory=Totals)
    name: str = ""
    prompt_names: tuple[str, ...] = ()
    plan_id: str = ""
    model_id: str = ""
    fresh: bool = False


def as_asked(prompts: Sequence[str]) -> Callable[[Result], int]:
    """Return a key that sorts results by the order in which prompts were asked; those of others come last."""
    order = {prompt: number for number, prompt in enumerate(prompts)}
    return lambda result: order.get(result.prompt, len(order))


def new_run_id(runs: Path) -> str:
    """Return an id that no run in ``runs`` has: date, time, fraction of the second. Ids sort by time."""
    while True:
        at = datetime.now(UTC)
        run_id = f"{at:%Y%m%d-%H%M%S}-{(at.microsecond << 16) // 1_000_000:04x}"
        if not (runs / run_id).exists():
            return run_id


def logprobs_from_json(found: JsonObject, name: str) -> tuple[TokenLogprob, ...] | None:
    """Read log-probabilities; a field that is missing or null has none.

    Raises:
        StoreError: they are something else.
    """
    if not found.has(name) or found.raw(name) is None:
        return None
    return tuple(one.record(TokenLogprob) for one in found.children(name))


_MAX_INFO_BYTES = 16 << 20


def read_info(run: Path) -> RunInfo:
    """Read run.json.

    Raises:
        StoreError: it is missing, broken, or of another version.
    """
    path = run / INFO_NAME
    try:
        return _grouped(parse(path.read_bytes(), str(path)), str(path)).record(RunInfo)
    except InputError as error:  # settings that nothing could have been asked with
        raise StoreError(f"{path}: {error}") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}): is it a run?") from error


def readable_info(run: Path) -> RunInfo:
    """Read run.json as far as it goes, whatever version wrote it; all else has its default."""
    found: object = None
    with suppress(OSError, ValueError, RecursionError):
        path = run / INFO_NAME
        if path.stat().st_size <= _MAX_INFO_BYTES:
            found = json.loads(path.read_bytes())
    known = JsonObject(found if isinstance(found, dict) else {}, INFO_NAME)
    return replace(_grouped(known, INFO_NAME).record(RunInfo, partly=True), id=run.name)


def _grouped(found: JsonObject, what: str) -> JsonObject:
    """Return run.json with its settings in groups; older runs have them beside all else."""

    def of(cls: Any) -> dict[str, object]:
        return {field.name: found.raw(field.name) for field in fields(cls) if found.has(field.name)}

    groups = (("sampling", Sampling), ("limits", BatchLimits), ("showing", Showing))
    return JsonObject(of(RunInfo) | {name: of(cls) for name, cls in groups if not found.has(name)}, what)


def read_results(run: Path, say: Callable[[str], None], *, logprobs: bool = False) -> tuple[Result, ...]:
    """Read results.jsonl, in the order in which the answers came; what is no result is told to ``say``.

    Log-probabilities are most of a file that has them, and are read only when asked for. Fields of a newer
    version are not looked at, and lines of before frames were grouped have no group.

    Raises:
        StoreError: the file cannot be read.
    """
    path = run / RESULTS_NAME
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return ()  # killed before its first line
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}): is it a run?") from error
    results = []
    for number, line in enumerate(lines, 1):
        try:
            found = JsonObject(json.loads(line), "the line")
            result = _result(found)
            results.append(_with_logprobs(result, found) if logprobs else result)
        except (StoreError, ValueError, RecursionError) as error:
            say(f"{path}, line {number}: not a result ({error}); it is left out")
    return tuple(results)


def _with_logprobs(result: Result, found: JsonObject) -> Result:
    return replace(result, logprobs=logprobs_from_json(found, "logprobs"))


def _result(found: JsonObject) -> Result:
    return Result(
        recording=found.text("recording"),
        frame=found.integer("frame"),
        timestamp_s=found.number("timestamp_s"),
        source=found.text("source"),
        key=found.text("key"),
        prompt_id=found.text("prompt_id"),
        prompt=found.text("prompt"),
        text=found.text("text"),
        finish_reason=found.text("finish_reason"),
        usage=found.child("usage").record(Usage),
        parsed=cast(JsonValue, found.raw("parsed")),
        error=found.text_or_none("error"),
        group=found.integers("group") if found.has("group") else (),
    )


# Line separators of Unicode, at which some readers split lines.
_SEPARATORS = {"\u0085": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}


Place = tuple[int, int]
"""Where a line belongs when its run is done: the number of its request, that of its frame in the request."""


class OutputFile:
    """The user's own file of results: emptied when the first line comes, not before.

    Several runs of one command may write to it, one after the other.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and lock it.

        Raises:
            InputError: it cannot be written, or another run is writing it.
        """
        try:
            given = output_path(path, "--output")
            self._file = os.fdopen(os.open(given, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666), "wb")
        except OSError as error:
            raise InputError(
                f"--output {path} cannot be written ({error.strerror}): give another file."
            ) from error
        self._is_file = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)  # not a pipe or a terminal
        self._to_empty = self._is_file
        if self._is_file and not lock_file(self._file.fileno()):
            self._file.close()
            raise InputError(f"--output {path} is being written by another run: wait, or give another file.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what could not be written was told when it was written
            self._file.close()

    def write(self, line: bytes) -> None:
        """Append a line, at once. Raises ``OSError``."""
        if self._to_empty:
            self._file.truncate(0)  # only now: a run that fails before must not cost earlier results
            self._to_empty = False
        self._file.write(line)
        self._file.flush()

    def replace_last(self, lines: Iterable[bytes], num_bytes: int) -> None:
        """Write the same lines in another order over the last ``num_bytes``. Raises ``OSError``."""
        if self._is_file and num_bytes:
            self._file.seek(-num_bytes, os.SEEK_CUR)
            self._file.writelines(lines)
            self._file.flush()


class RunWriter:
    """Writes one run; use as a context manager."""

    def __init__(
        self,
        path: Path,
        info: RunInfo,
        output: OutputFile | None = None,
        kept: Iterable[tuple[Place, Result]] = (),
    ) -> None:
        """Begin the run in the folder ``path``, whose lock the caller holds, with the lines ``kept``.

        Raises:
            StoreError: the home cannot be written.
        """
        self.path = path
        self._output = output
        self._lines: list[tuple[Place, int]] = []  # of each line its place and its bytes, as they came
        with self._refusals():
            self._file = self._started([(place, line_of(result)) for place, result in kept])
        self.write_info(info)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what could not be written was told when it was written
            self._file.close()

    def write(self, result: Result, place: Place) -> None:
        """Append a line, at once.

        Raises:
            StoreError: the disk is full or refuses.
        """
        line = line_of(result)
        with self._refusals():
            self._file.write(line)
            self._file.flush()
            self._lines.append((place, len(line)))
            if self._output is not None:
                self._output.write(line)

    def put_in_order(self) -> None:
        """Put the lines, which stand as their answers came, into the order in which they were asked.

        Raises:
            StoreError: the disk is full or refuses; the lines stay as they were.
        """
        if self._lines == sorted(self._lines):
            return
        spans = list[tuple[Place, int, int]]()
        start = 0
        for place, size in self._lines:
            spans.append((place, start, size))
            start += size
        with self._refusals(), (self.path / RESULTS_NAME).open("rb") as file:

            def lines() -> Iterator[bytes]:
                for _, at, size in sorted(spans):
                    file.seek(at)
                    yield file.read(size)

            fresh = self.path / f".{RESULTS_NAME}.new"
            with _private(fresh) as ordered:
                ordered.writelines(lines())
            fresh.replace(self.path / RESULTS_NAME)
            if self._output is not None:
                self._output.replace_last(lines(), start)

    def write_info(self, info: RunInfo) -> None:
        """Replace run.json as a whole.

        Raises:
            StoreError: the disk is full or refuses.
        """
        fresh = self.path / f".{INFO_NAME}.new"
        with self._refusals():
            with _private(fresh) as file:
                file.write(_utf8(json.dumps(asdict(info), indent=2, ensure_ascii=False) + "\n"))
            fresh.replace(self.path / INFO_NAME)

    def _started(self, kept: list[tuple[Place, bytes]]) -> IO[bytes]:
        """Start the file with ``kept``: a reader sees the lines that were there before, or these."""
        fresh = self.path / f".{RESULTS_NAME}.new"
        file = _private(fresh)
        for place, line in kept:
            file.write(line)
            self._lines.append((place, len(line)))
        file.flush()
        fresh.replace(self.path / RESULTS_NAME)
        if self._output is not None:
            for _, line in kept:
                self._output.write(line)
        return file

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = f"The run cannot be written to {self.path}; what was written stays"
            raise disk_error(self.path, what, error) from error


def line_of(result: Result) -> bytes:
    """Return a result as its line of results.jsonl: one line to every reader, and always valid UTF-8."""
    text = json.dumps(asdict(result), ensure_ascii=False)
    for separator, escaped in _SEPARATORS.items():
        text = text.replace(separator, escaped)
    return _utf8(text + "\n")


def _utf8(json_text: str) -> bytes:
    # A file name that is no UTF-8 comes as lone surrogates: written as JSON's own escapes.
    return json_text.encode("utf-8", "backslashreplace")


def _private(path: Path) -> IO[bytes]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "wb")
