"""Reads a run back: what it was asked, and what it answered.

A run may have been killed in the middle of a line: what is no whole result is told and left out, never
guessed. Going on with a run needs all of its run.json, and one of another version is an error; who sums up
runs of any version (``seeonce.runs.runs``) takes the fields that there are.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

from cache.canonical_json import JsonObject, JsonValue, parse
from cache.errors import StoreError
from seeonce.runs.reply_json import logprobs_from_json
from seeonce.runs.run import INFO_NAME, RESULTS_NAME, Result, RunInfo, Totals, Usage

_MAX_INFO_BYTES = 16 << 20


def read_info(run: Path) -> RunInfo:
    """Read run.json.

    Raises:
        StoreError: it is missing, broken, or of another version.
    """
    path = run / INFO_NAME
    try:
        return _info(parse(path.read_bytes(), str(path)))
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}): is it a run?") from error


def info_fields(run: Path) -> dict[str, object]:
    """Return what run.json says, whatever version wrote it; nothing where it cannot be read."""
    with suppress(OSError, ValueError, RecursionError):
        path = run / INFO_NAME
        if path.stat().st_size <= _MAX_INFO_BYTES:
            found = json.loads(path.read_bytes())
            if isinstance(found, dict):
                return found
    return {}


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
    usage = found.child("usage")
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
        usage=Usage(usage.integer("prompt_tokens"), usage.integer("completion_tokens")),
        parsed=cast(JsonValue, found.raw("parsed")),
        error=found.text_or_none("error"),
        group=found.integers("group") if found.has("group") else (),
    )


def _info(found: JsonObject) -> RunInfo:
    versions = found.raw("versions")
    if not isinstance(versions, dict):
        raise StoreError("run.json: versions should be an object")
    return RunInfo(
        id=found.text("id"),
        recording=found.text("recording"),
        encoder_id=found.text("encoder_id"),
        model=found.text("model"),
        model_path=found.text("model_path"),
        revision=found.text("revision"),
        prompts=found.texts("prompts"),
        temperature=found.number("temperature"),
        top_p=found.number("top_p"),
        seed=found.integer("seed"),
        max_tokens=found.integer("max_tokens"),
        max_num_seqs=found.integer("max_num_seqs"),
        prefill_batch_size=found.integer("prefill_batch_size"),
        prefill_step_size=found.integer("prefill_step_size"),
        compute_dtype=found.text("compute_dtype"),
        versions={str(name): str(version) for name, version in versions.items()},
        started_at=found.text("started_at"),
        ended_at=found.text_or_none("ended_at"),
        status=found.text("status"),
        totals=_totals(found.child("totals")),
        name=found.text("name"),
        prompt_names=found.texts("prompt_names"),
        plan_id=found.text("plan_id"),
        model_id=found.text("model_id"),
        kv_memory_bytes=found.integer_or_none("kv_memory_bytes"),
        share_prefixes=found.flag("share_prefixes"),
        fresh=found.flag("fresh"),
        top_k=found.integer("top_k"),
        min_p=found.number("min_p"),
        repetition_penalty=found.number("repetition_penalty"),
        repetition_window=found.integer("repetition_window"),
        stop=found.texts("stop"),
        logprobs=found.integer_or_none("logprobs"),
        frames_per_prompt=found.integer("frames_per_prompt"),
        stride=found.integer_or_none("stride"),
        image_position=found.text("image_position"),
        system=found.text_or_none("system"),
        schema=found.text_or_none("schema"),
    )


def _totals(found: JsonObject) -> Totals:
    return Totals(
        num_results=found.integer("num_results"),
        num_errors=found.integer("num_errors"),
        num_parsed=found.integer("num_parsed"),
        num_known=found.integer("num_known"),
        num_repeated=found.integer("num_repeated"),
        prompt_tokens=found.integer("prompt_tokens"),
        completion_tokens=found.integer("completion_tokens"),
        num_images=found.integer("num_images"),
        num_images_again=found.integer("num_images_again"),
        seconds=found.number("seconds"),
    )
