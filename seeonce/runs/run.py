"""What one execution of pass two leaves: ``runs/<id>/run.json`` and ``results.jsonl``, as types.

Owns their fields. Files are written by ``seeonce.runs.writing`` and read by ``seeonce.runs.reading``.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cache.canonical_json import JsonObject, JsonValue
from cache.errors import StoreError
from seeonce.runs.answers import Description

INFO_NAME = "run.json"
RESULTS_NAME = "results.jsonl"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request cost."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could have come, and its natural log-probability."""

    token: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of an answer: what the model itself, before any filter, thought of it.

    ``top`` are the most likely tokens at this place, best first.
    """

    token: int
    text: str
    logprob: float
    top: tuple[Candidate, ...]


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
        found = JsonObject(self.parsed, "parsed")
        try:
            return Description(
                found.text("description"), found.text("activity"), found.texts("apps"), found.texts("topics")
            )
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

    id: str
    recording: str
    encoder_id: str
    model: str
    model_path: str
    revision: str
    prompts: tuple[str, ...]
    temperature: float
    top_p: float
    seed: int
    max_tokens: int
    max_num_seqs: int
    prefill_batch_size: int
    prefill_step_size: int
    compute_dtype: str
    versions: dict[str, str]
    started_at: str
    ended_at: str | None
    status: str
    totals: Totals
    name: str = ""
    prompt_names: tuple[str, ...] = ()
    plan_id: str = ""
    model_id: str = ""
    kv_memory_bytes: int | None = None
    share_prefixes: bool = True
    fresh: bool = False
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 20
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    frames_per_prompt: int = 1
    stride: int | None = None
    image_position: str = "before"
    system: str | None = None
    schema: str | None = None


def new_run_id(runs: Path) -> str:
    """Return an id that no run in ``runs`` has: date, time, fraction of the second. Ids sort by time."""
    while True:
        at = datetime.now(UTC)
        run_id = f"{at:%Y%m%d-%H%M%S}-{(at.microsecond << 16) // 1_000_000:04x}"
        if not (runs / run_id).exists():
            return run_id
