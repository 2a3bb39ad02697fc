"""What one execution of pass two leaves: ``runs/<id>/run.json`` and ``results.jsonl``, as types."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from blake3 import blake3

from cache.base.canonical_json import JsonObject, JsonValue, parse
from cache.base.errors import InputError, StoreError
from cache.base.text import visible
from infer.limits import BatchLimits
from infer.request import TokenLogprob, Usage
from infer.sampling import Sampling
from seeonce.runs.parse import Description
from seeonce.runs.prompts import Showing

INFO_NAME = "run.json"
RESULTS_NAME = "results.jsonl"


@dataclass(frozen=True, slots=True)
class Result:
    """One line of results.jsonl: what one prompt said of one frame. ``frame`` is zero-based.

    ``group`` are the frames that the same request showed, in order; ``usage``, ``logprobs`` and ``reasoning``
    are the whole request's, and stand on each line of its group. ``logprobs`` are those of every token that
    was decoded, a stop string's too; ``None`` without ``--logprobs``. ``parsed`` is the description line as
    its fields, or the JSON value when a schema was asked for. A line without ``reasoning`` has no such field.
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
    reasoning: str = ""

    @property
    def was_cut(self) -> bool:
        """Whether it ends where its tokens did."""
        return self.finish_reason == "length"

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
    the decoder, ``num_images_again`` those of them that had gone before in this run, ``num_images_read``
    those that a prefix cache spared. ``prefix_seconds`` is what was prefilled that such a cache spares the
    next prompt, and ``prefix_bytes`` what it takes there.
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
    num_images_read: int = 0
    prefix_seconds: float = 0.0
    prefix_bytes: int = 0
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

    @property
    def settings_in_words(self) -> str:
        """What is not as usual in how it was asked; empty when all is."""
        return "; ".join(self.unusual_settings())

    def unusual_settings(self) -> list[str]:
        """Return each setting that is not as usual, in words: two ways of asking never have the same."""
        sampling, showing = self.sampling, self.showing
        parts = [f"schema {_schema(sampling.schema)}"] if sampling.schema else []
        if showing.system:
            parts.append(f"system {_short(showing.system)}")
        if showing.frames_per_prompt > 1:
            parts.append(f"{showing.frames_per_prompt} frames a prompt")
        if showing.stride not in (None, showing.frames_per_prompt):
            parts.append(f"stride {showing.stride}")
        if showing.image_position != Showing().image_position:
            parts.append(f"images {showing.image_position}")
        if showing.thinking:
            parts.append("thinking")
        usual = Sampling()
        for name in _NUMBERS:
            value = getattr(sampling, name)
            if value != getattr(usual, name):
                parts.append(f"{name} {value}")
        if sampling.stop:
            parts.append(f"stop {_short(json.dumps(sampling.stop, ensure_ascii=False))}")
        return parts


_WIDTH = 40
_NUMBERS = tuple(field.name for field in fields(Sampling) if field.name not in ("schema", "stop", "logprobs"))


def _schema(schema: str) -> str:
    """Name a JSON Schema by its title or its properties; any other text is shown as it is."""
    try:
        found = json.loads(schema)
    except (ValueError, RecursionError):
        return _short(schema)
    named = found.get("title") or found.get("properties") if isinstance(found, dict) else None
    if isinstance(named, dict):
        named = ", ".join(named)
    return f"{_cut(named)} ({_digest(schema)})" if isinstance(named, str) and named else _short(schema)


def _short(text: str) -> str:
    shown = _cut(text)
    return shown if shown == text else f"{shown} ({_digest(text)})"


def _cut(text: str) -> str:
    shown = " ".join(visible(text[: 2 * _WIDTH]).split())
    return shown if len(shown) <= _WIDTH else f"{shown[: _WIDTH - 1].rstrip()}…"


def _digest(text: str) -> str:
    return blake3(text.encode("utf-8", "replace")).hexdigest()[:6]


@dataclass(frozen=True, slots=True)
class Run:
    """A run read back: its run.json as far as it goes, its answers by frame and then as they were asked.

    ``state`` is "done", "running", "interrupted", "failed", or "unknown" when there is no run.json.
    """

    info: RunInfo
    answers: tuple[Result, ...] = ()
    state: str = "unknown"

    @property
    def label(self) -> str:
        """Its name, else its id."""
        return self.info.name or self.info.id

    @property
    def answered_prompts(self) -> list[str]:
        """The prompts that have answers, in the order in which they were asked."""
        answered = dict.fromkeys(answer.prompt for answer in self.answers)
        return [prompt for prompt in dict.fromkeys([*self.info.prompts, *answered]) if prompt in answered]

    @property
    def num_errors(self) -> int:
        """How many answers are errors."""
        return sum(answer.error is not None for answer in self.answers)

    @property
    def num_parsed(self) -> int:
        """How many answers have the form that was asked for."""
        schema = self.info.sampling.schema
        return sum(
            answer.error is None if schema else answer.description is not None for answer in self.answers
        )

    @property
    def parse_rate(self) -> float | None:
        """The share of answers in the form that was asked for; ``None`` without such a form."""
        asked = self.info.sampling.schema or any("description:" in prompt for prompt in self.info.prompts)
        return self.num_parsed / len(self.answers) if self.answers and (asked or self.num_parsed) else None

    @property
    def num_frames(self) -> int:
        """How many frames it has answers about."""
        return len({(answer.recording, answer.frame) for answer in self.answers})

    @property
    def prompt_tokens(self) -> int:
        """Tokens of its prompts, those of images among them."""
        counted = sum(answer.usage.prompt_tokens for answer in one_per_request(self.answers))
        return self.info.totals.prompt_tokens or counted

    @property
    def completion_tokens(self) -> int:
        """Tokens of its answers."""
        counted = sum(answer.usage.completion_tokens for answer in one_per_request(self.answers))
        return self.info.totals.completion_tokens or counted

    def as_dict(self) -> dict[str, object]:
        """Return what ``runs --json`` says of it."""
        info = self.info
        return {
            "id": info.id,
            "name": info.name,
            "recording": info.recording,
            "encoder_id": info.encoder_id,
            "model": info.model,
            "prompts": info.prompts,
            "prompt_names": info.prompt_names,
            "plan_id": info.plan_id,
            "started_at": info.started_at,
            "state": self.state,
            "seconds": info.totals.seconds,
            "num_frames": self.num_frames,
            "num_answers": len(self.answers),
            "num_errors": self.num_errors,
            "num_parsed": self.num_parsed,
            "num_known": info.totals.num_known,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "manner": {
                "schema": info.sampling.schema or "",
                "system": info.showing.system or "",
                "frames_per_prompt": info.showing.frames_per_prompt,
                "stride": info.showing.stride,
                "image_position": info.showing.image_position,
                "thinking": info.showing.thinking,
            },
        }


def prompt_order(prompts: Sequence[str]) -> Callable[[Result], int]:
    """Return a key that sorts results by the order in which prompts were asked; those of others come last."""
    order = {prompt: number for number, prompt in enumerate(prompts)}
    return lambda result: order.get(result.prompt, len(order))


RequestKey = tuple[str, tuple[int, ...]]
"""A prompt's id, and the frames that were shown together."""


def request_of(answer: Result) -> RequestKey:
    """Return the key of the request that an answer came from, within its run."""
    return answer.prompt_id, answer.group or (answer.frame,)


def one_per_request(answers: Iterable[Result]) -> Iterator[Result]:
    """Yield one line of each request: those of the frames that it showed together all say its tokens."""
    seen: set[RequestKey] = set()
    for answer in answers:
        if request_of(answer) not in seen:
            yield answer
        seen.add(request_of(answer))


_MAX_INFO_BYTES = 16 << 20
_LATER_TOTALS = ("num_images_read", "prefix_seconds", "prefix_bytes")


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
    """Return run.json as it is written now: older runs have settings beside all else, and fewer fields."""

    def of(cls: Any) -> dict[str, object]:
        return {field.name: found.raw(field.name) for field in fields(cls) if found.has(field.name)}

    groups = (("sampling", Sampling), ("limits", BatchLimits), ("showing", Showing))
    known = {name: of(cls) for name, cls in groups} | of(RunInfo)
    if isinstance(totals := known.get("totals"), dict):
        known["totals"] = {name: getattr(Totals(), name) for name in _LATER_TOTALS} | totals
    if isinstance(showing := known["showing"], dict):
        known["showing"] = {"thinking": False} | showing
    return JsonObject(known, what)
