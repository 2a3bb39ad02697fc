"""Which runs there are, and what each came to."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from cache.base.errors import InputError
from cache.base.home import Home
from cache.base.text import visible
from cache.leases import living_leases
from seeonce.runs.lock import is_held
from seeonce.runs.run import INFO_NAME, RESULTS_NAME, Result, as_asked, info_fields, read_results

_WIDTH = 40


@dataclass(frozen=True, slots=True)
class Manner:
    """What run.json says of it; ``schema`` and ``system`` are empty where there was none."""

    schema: str = ""
    system: str = ""
    frames_per_prompt: int = 1
    stride: int | None = None
    image_position: str = "before"
    thinking: bool = False

    def __str__(self) -> str:
        """Say what is not as usual; nothing when all is."""
        parts = [f"schema {_schema(self.schema)}"] if self.schema else []
        if self.system:
            parts.append(f"system {_short(self.system)}")
        if self.frames_per_prompt > 1:
            parts.append(f"{self.frames_per_prompt} frames a prompt")
        if self.stride not in (None, self.frames_per_prompt):
            parts.append(f"stride {self.stride}")
        if self.image_position != "before":
            parts.append(f"images {visible(self.image_position)}")
        if self.thinking:
            parts.append("thinking")
        return "; ".join(parts)


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


Request = tuple[str, tuple[int, ...]]
"""A prompt's id, and the frames that were shown together."""

_MOST = 1 << 63
_RUNS_NAMED = 5


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What run.json says of a run; texts are empty and numbers 0 where it does not.

    ``state`` is "done", "running", "interrupted", "failed", or "unknown" when there is no run.json.
    """

    id: str
    name: str = ""
    recording: str = ""
    encoder_id: str = ""
    model: str = ""
    prompts: tuple[str, ...] = ()
    prompt_names: tuple[str, ...] = ()
    plan_id: str = ""
    started_at: str = ""
    state: str = "unknown"
    seconds: float = 0.0
    num_frames: int = 0
    num_answers: int = 0
    num_errors: int = 0
    num_parsed: int = 0
    num_known: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    manner: Manner = field(default_factory=Manner)

    @property
    def parse_rate(self) -> float | None:
        """The share of answers in the form that was asked for; ``None`` when none was."""
        asked = self.manner.schema or any("description:" in prompt for prompt in self.prompts)
        return self.num_parsed / self.num_answers if self.num_answers and (asked or self.num_parsed) else None

    @property
    def label(self) -> str:
        """Its name, or its id when it has none."""
        return self.name or self.id


@dataclass(frozen=True, slots=True)
class Run:
    """A run read back, its answers by frame and then as they were asked."""

    info: RunSummary
    answers: tuple[Result, ...]


def list_runs(home: Home) -> list[RunSummary]:
    """Return all runs, newest first. Ids begin with the time, so their order is that of time."""
    folders = [path for path in home.runs.iterdir() if path.is_dir()] if home.runs.is_dir() else []
    names = sorted((path.name for path in folders if not path.name.startswith(".")), reverse=True)
    return [load_run(home.runs / name, lambda _: None).info for name in names]


def finished_run(home: Home, name: str, plan_id: str) -> RunSummary | None:
    """Return the newest run of a name that answered all of a plan.

    A request that failed may fare better the next time. An answer that leaves a frame out, or was cut before
    its schema was fulfilled, is an error, too, but it is the answer: asking again gives the same.
    """
    for folder, fields in _of_plan(home, name, plan_id, "done"):
        run = load_run(folder, lambda _: None)
        failed = any(answer.error and answer.finish_reason == "error" for answer in run.answers)
        if not failed and run.info.num_answers == _total(fields):
            return run.info
    return None


def running_run(home: Home, name: str, plan_id: str) -> RunSummary | None:
    """Return a run of a name that another process is making of a plan now."""
    for folder, _ in _of_plan(home, name, plan_id, "running"):
        if is_held(folder):
            return load_run(folder, lambda _: None).info
    return None


def _of_plan(home: Home, name: str, plan_id: str, status: str) -> Iterator[tuple[Path, dict[str, object]]]:
    """Yield folder and run.json of the runs that have a name, a plan and a status, newest first."""
    for path in sorted(home.runs.glob(f"*/{INFO_NAME}"), reverse=True):
        fields = info_fields(path.parent)
        if (fields.get("name"), fields.get("plan_id"), fields.get("status")) == (name, plan_id, status):
            yield path.parent, fields


def _total(fields: dict[str, object]) -> int:
    totals = fields.get("totals")
    return int(_number(totals, "num_results")) if isinstance(totals, dict) else -1


def select_run(home: Home, selector: str, say: Callable[[str], None]) -> Run:
    """Return the run that RUN means: ``latest``, an id, the start of one, or a name (the newest so called).

    ``RUN:N`` keeps the N-th prompt alone, and ``RUN:text`` the one that begins with a text.

    Raises:
        InputError: no run or prompt fits, or several do.
    """
    name, colon, prompt = selector.rpartition(":")
    try:
        return load_run(_folder(home, selector), say)
    except InputError:
        if not colon or not name:
            raise
    return _only_prompt(load_run(_folder(home, name), say), prompt)


def load_run(folder: Path, say: Callable[[str], None]) -> Run:
    """Read a run; what of its answers is torn is told to ``say`` and left out."""
    answers: tuple[Result, ...] = ()
    if (folder / RESULTS_NAME).is_file():
        answers = read_results(folder, say)
    summary = _summary(folder, answers)
    asked = as_asked(summary.prompts)
    # Not as they came, which depends on their lengths: RUN:2 must be the second prompt, always.
    in_order = sorted(answers, key=lambda answer: (answer.frame, asked(answer)))
    return Run(summary, tuple(in_order))


def _by_id(home: Home, selector: str) -> Path:
    ids = sorted((path.parent.name for path in home.runs.glob(f"*/{INFO_NAME}")), reverse=True)
    fits = ids[:1] if selector == "latest" else [id_ for id_ in ids if id_ == selector]
    fits = fits or [id_ for id_ in ids if selector and id_.startswith(selector)]
    if len(fits) == 1:
        return home.runs / fits[0]
    if not ids:
        raise InputError(f"No run in {home.runs}: run seeonce describe first")
    named = ", ".join((fits or ids)[:_RUNS_NAMED])
    raise InputError(
        f"{selector!r} fits {named}: give more of the id"
        if fits
        else f"No run {selector!r}; the newest are {named}"
    )


def _folder(home: Home, selector: str) -> Path:
    try:
        return _by_id(home, selector)
    except InputError:
        for path in sorted(home.runs.glob(f"*/{INFO_NAME}"), reverse=True):
            if selector and info_fields(path.parent).get("name") == selector:
                return path.parent
        raise


def _only_prompt(run: Run, wanted: str) -> Run:
    """Keep the answers to one prompt, given as its number from 1 or the start of its text."""
    answered = dict.fromkeys(answer.prompt for answer in run.answers)
    prompts = list(dict.fromkeys(run.info.prompts))
    if not answered.keys() <= set(prompts):  # its run.json is not that of these answers
        prompts = list(answered)
    if wanted.isdecimal() and 1 <= int(wanted) <= len(prompts):
        fits = [prompts[int(wanted) - 1]]
    else:
        fits = [prompt for prompt in prompts if wanted and prompt.startswith(wanted)]
    if len(fits) != 1:
        raise InputError(
            f"Run {run.info.id} has {len(prompts)} prompts and {wanted!r} fits {len(fits)} of them: "
            "give a number from 1 on, or the start of the text."
        )
    return Run(run.info, tuple(answer for answer in run.answers if answer.prompt == fits[0]))


def _summary(folder: Path, answers: Sequence[Result]) -> RunSummary:
    fields = info_fields(folder)
    totals = fields.get("totals")
    totals = totals if isinstance(totals, dict) else {}
    usages = [answer.usage for answer in requests(answers)]
    asked = _texts(fields, "prompts")
    manner = _manner(fields)
    return RunSummary(
        id=folder.name,
        name=_text(fields, "name"),
        recording=_text(fields, "recording") or (answers[0].recording if answers else ""),
        encoder_id=_text(fields, "encoder_id"),
        model=_text(fields, "model"),
        prompts=asked or tuple(dict.fromkeys(answer.prompt for answer in answers)),
        prompt_names=_texts(fields, "prompt_names"),
        plan_id=_text(fields, "plan_id"),
        started_at=_text(fields, "started_at"),
        state=_state(folder, fields),
        seconds=_number(totals, "seconds"),
        num_frames=len({(answer.recording, answer.frame) for answer in answers}),
        num_answers=len(answers),
        num_errors=sum(answer.error is not None for answer in answers),
        num_parsed=sum(
            answer.error is None if manner.schema else answer.description is not None for answer in answers
        ),
        num_known=int(_number(totals, "num_known")),
        prompt_tokens=int(_number(totals, "prompt_tokens")) or sum(usage.prompt_tokens for usage in usages),
        completion_tokens=int(_number(totals, "completion_tokens"))
        or sum(usage.completion_tokens for usage in usages),
        manner=manner,
    )


def request_of(answer: Result) -> Request:
    """Return what names the request that an answer came from, within its run."""
    return answer.prompt_id, answer.group or (answer.frame,)


def requests(answers: Iterable[Result]) -> Iterator[Result]:
    """Yield one line of each request: those of the frames that it showed together all say its tokens."""
    seen: set[Request] = set()
    for answer in answers:
        if request_of(answer) not in seen:
            yield answer
        seen.add(request_of(answer))


def _manner(fields: dict[str, object]) -> Manner:
    sampling, showing = _settings(fields, "sampling"), _settings(fields, "showing")
    return Manner(
        schema=_text(sampling, "schema"),
        system=_text(showing, "system"),
        frames_per_prompt=int(_number(showing, "frames_per_prompt")) or 1,
        stride=int(_number(showing, "stride")) or None,
        image_position=_text(showing, "image_position") or "before",
        thinking=showing.get("thinking") is True,
    )


def _settings(fields: dict[str, object], name: str) -> dict[str, object]:
    """Return a group of settings; runs made before they were grouped have them beside all else."""
    found = fields.get(name, fields)
    return found if isinstance(found, dict) else {}


def _state(folder: Path, fields: dict[str, object]) -> str:
    """Return how a run stands; one that says "running" and that no process writes was killed."""
    status = _text(fields, "status") or "unknown"
    return "interrupted" if status == "running" and not is_held(folder) else status


def _text(fields: dict[str, object], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _texts(fields: dict[str, object], name: str) -> tuple[str, ...]:
    value = fields.get(name)
    return tuple(str(item) for item in value) if isinstance(value, list) else ()


def _number(fields: dict[str, object], name: str) -> float:
    value = fields.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST:
        return float(value)
    return 0.0


def remove_runs(home: Home, recording_id: str) -> int:
    """Remove every run that asked about this recording; return how many there were.

    A run whose ``run.json`` cannot be read is kept: nobody knows whose it is. So is one that is not ended
    while some command holds a lease: it may be that one's.
    """
    busy, num_removed = bool(living_leases(home.store)), 0
    for path in sorted(home.runs.iterdir()) if home.runs.is_dir() else []:
        fields = info_fields(path)
        recording, status = fields.get("recording"), fields.get("status")
        if recording == recording_id and not path.is_symlink() and not (busy and status == "running"):
            shutil.rmtree(path, ignore_errors=True)
            num_removed += not path.exists()
    return num_removed
