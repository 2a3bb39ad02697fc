"""Pass two from names to results: manifest, language weights, every prompt over every frame.

Owns the order of these steps. Opens no image and evaluates no vision weight.
"""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cache.errors import StoreError
from cache.home import Home
from cache.manifest import FrameEntry, Manifest, now
from cache.store import Store
from cache.usage import entries_in_use
from checkpoint.backend import installed_version
from infer.limits import BatchLimits
from infer.prompt import Prompt
from infer.sampling import Sampling
from infer.selection import NewestId, Selected, select
from results.answers import parse_description, without_reasoning
from results.run import Result, RunInfo, RunWriter, Totals, Usage, new_run_id


class Listener(Protocol):
    """Who is told how pass two goes."""

    def say(self, line: str) -> None:
        """Take one line for the user."""

    def begin(self, num_results: int) -> None:
        """Learn how many results there will be."""

    def result(self, result: Result) -> None:
        """Take note of a finished answer."""


@dataclass(frozen=True, slots=True)
class DescribeOptions:
    """What to ask and how: the options of ``seeonce describe``."""

    prompts: tuple[Prompt, ...]
    recording: str = "latest"
    model: str | None = None
    output: Path | None = None
    sampling: Sampling = field(default_factory=Sampling)
    limits: BatchLimits = field(default_factory=BatchLimits)


@dataclass(frozen=True, slots=True)
class DescribeResult:
    """How a run ended, and where it lies."""

    info: RunInfo
    path: Path
    interrupted: bool


def describe(home: Home, options: DescribeOptions, newest_id: NewestId, listener: Listener) -> DescribeResult:
    """Ask every prompt of every encoded frame of a recording, and write a run.

    Raises:
        NotEncodedError: the recording is not encoded by this model's vision tower.
        CheckpointError: the model is missing or not supported.
        InputError: ``output`` cannot be written.
    """
    selected = select(home, options.recording, options.model, newest_id, listener.say)
    store = Store.open(home, create=False)
    info = _run_info(selected, options)
    in_use = entries_in_use(store, "describe", selected.manifest)
    with in_use, RunWriter(home, info, options.output) as writer:
        started, tally = time.perf_counter(), _Tally()
        listener.begin(len(selected.manifest.frames) * len(options.prompts))
        try:
            for result in _results(selected, store, options):
                tally.add(result)
                writer.write(result)
                listener.result(result)
            status = "done"
        except KeyboardInterrupt:
            status = "interrupted"
        except BaseException:
            with suppress(StoreError):  # the disk that failed may be the run's own
                writer.write_info(tally.ended(info, "failed", started))
            raise
        info = tally.ended(info, status, started)
        writer.write_info(info)
    return DescribeResult(info, writer.path, interrupted=status == "interrupted")


class _Tally:
    """Counts results as they come."""

    def __init__(self) -> None:
        self._totals = Totals()

    def add(self, result: Result) -> None:
        totals = self._totals
        self._totals = dataclasses.replace(
            totals,
            num_results=totals.num_results + 1,
            num_errors=totals.num_errors + (result.error is not None),
            num_parsed=totals.num_parsed + (result.parsed is not None),
            prompt_tokens=totals.prompt_tokens + result.usage.prompt_tokens,
            completion_tokens=totals.completion_tokens + result.usage.completion_tokens,
        )

    def ended(self, info: RunInfo, status: str, started: float) -> RunInfo:
        totals = dataclasses.replace(self._totals, seconds=time.perf_counter() - started)
        return dataclasses.replace(info, ended_at=now(), status=status, totals=totals)


def _results(selected: Selected, store: Store, options: DescribeOptions) -> Iterator[Result]:
    from infer.batching import Answer, Request, answer_all
    from infer.mlx_vlm_adapter import LanguageHalf
    from infer.stored import StoredFeatures
    from infer.tokenizer import ChatTokenizer

    manifest = selected.manifest
    tokenizer = ChatTokenizer(selected.folder, selected.config)
    half = LanguageHalf(selected.folder, selected.config, manifest.encoder.compute_dtype)
    asked = [(frame, prompt) for frame in manifest.frames for prompt in options.prompts]

    def requests() -> Iterator[Request]:
        for number, (frame, prompt) in enumerate(asked):
            tokens = tokenizer.encode(prompt.segments(frame))
            yield Request(number, tokens, (frame,), options.sampling)

    def result(answer: Answer) -> Result:
        frame, prompt = asked[answer.request.id]
        text = without_reasoning(tokenizer.decode(answer.tokens), opened=tokenizer.opens_think)
        usage = Usage(len(answer.request.prompt.ids), len(answer.tokens))
        return _result(manifest, frame, prompt, text, answer.finish_reason, usage, answer.error)

    source = StoredFeatures(store, manifest.recording.id)
    for answer in answer_all(requests(), half, source, tokenizer.stop_ids, options.limits):
        yield result(answer)


def _result(
    manifest: Manifest,
    frame: FrameEntry,
    prompt: Prompt,
    text: str,
    finish_reason: str,
    usage: Usage,
    error: str | None,
) -> Result:
    return Result(
        recording=manifest.recording.id,
        frame=frame.index,
        timestamp_s=frame.timestamp_s,
        source=frame.source,
        key=frame.key.hex,
        prompt_id=prompt.prompt_id,
        prompt=prompt.text,
        text=text,
        finish_reason=finish_reason,
        usage=usage,
        parsed=parse_description(text),
        error=error,
    )


def _run_info(selected: Selected, options: DescribeOptions) -> RunInfo:
    sampling, limits = options.sampling, options.limits
    return RunInfo(
        id=new_run_id(),
        recording=selected.manifest.recording.id,
        encoder_id=selected.manifest.encoder.encoder_id.hex,
        model=selected.model,
        model_path=str(selected.folder.path),
        revision=selected.folder.revision,
        prompts=tuple(prompt.text for prompt in options.prompts),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        max_tokens=sampling.max_tokens,
        max_num_seqs=limits.max_num_seqs,
        prefill_batch_size=limits.prefill_batch_size,
        prefill_step_size=limits.prefill_step_size,
        compute_dtype=selected.manifest.encoder.compute_dtype,
        versions={name: installed_version(name) for name in ("seeonce", "mlx", "mlx-vlm", "transformers")},
        started_at=now(),
        ended_at=None,
        status="running",
        totals=Totals(),
    )
