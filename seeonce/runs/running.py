"""One run under way: known answers first, then decoding, a line for each result, totals as they come.

Owns what is decoded and what is not, and how a run ends. Does not own which asks there are
(``seeonce.runs.plan``), the model (``seeonce.runs.answering``) or the files (``seeonce.runs.writing``).
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from cache.errors import StoreError
from cache.manifest import now
from cache.store import Store
from infer.limits import BatchLimits
from infer.sampling import Sampling
from seeonce.runs.answering import Answerer
from seeonce.runs.known import AskId, KnownAnswers, Reply
from seeonce.runs.lines import results_of
from seeonce.runs.plan import Ask
from seeonce.runs.run import Result, RunInfo, Totals, Usage
from seeonce.runs.selection import Selected
from seeonce.runs.writing import RunWriter

if TYPE_CHECKING:
    from infer.engine_stats import EngineStats


class Listener(Protocol):
    """Who is told how pass two goes."""

    def say(self, line: str) -> None:
        """Take one line for the user."""

    def begin(self, num_results: int) -> None:
        """Learn how many results there will be."""

    def result(self, result: Result) -> None:
        """Take note of a finished answer."""


class Origin(Enum):
    """Where an answer came from."""

    decoded = "decoded"
    known = "known"
    repeated = "repeated"


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What a run answers, and with what. ``known`` is ``None`` where nothing is looked up and kept."""

    selected: Selected
    store: Store
    sampling: Sampling
    limits: BatchLimits
    answerer: Answerer
    known: KnownAnswers | None
    fresh: bool


def split(results: Sequence[Result], asks: Sequence[Ask]) -> tuple[list[Result], list[Ask]]:
    """Return the lines of asks that are answered whole, and the asks that are not; an error is no answer."""
    answered: dict[tuple[str, tuple[int, ...]], dict[int, Result]] = {}
    for line in results:
        if line.error is None:
            answered.setdefault((line.prompt_id, line.group), {})[line.frame] = line
    kept: list[Result] = []
    left: list[Ask] = []
    for ask in asks:
        found = answered.get((ask.prompt.prompt_id, ask.group), {})
        if found.keys() == set(ask.group):
            kept += found.values()
        else:
            left.append(ask)
    return kept, left


class Running:
    """One run: asks in, lines out."""

    def __init__(self, work: Work, writer: RunWriter, listener: Listener) -> None:
        """Write to ``writer``, which has the lines that are kept already."""
        self._work, self._writer, self._listener = work, writer, listener
        self._totals = Totals()

    def go(self, info: RunInfo, kept: Sequence[Result], asks: Sequence[Ask]) -> RunInfo:
        """Answer ``asks``, and return how the run ended; run.json says so too."""
        started = time.perf_counter()
        self._listener.begin(len(kept) + sum(len(ask.frames) for ask in asks))
        requests: set[tuple[str, tuple[int, ...]]] = set()
        for result in kept:
            if (result.prompt_id, result.group) not in requests:
                self._count_tokens(result.usage)
            requests.add((result.prompt_id, result.group))
            self._count(result)
        before = info.totals
        self._add(
            num_known=before.num_known,
            num_repeated=before.num_repeated,
            num_images=before.num_images,
            num_images_again=before.num_images_again,
        )
        try:
            for origin, ask, reply in self._answers(asks):
                self._take(origin, ask, reply)
            status = "done"
        except KeyboardInterrupt:
            status = "interrupted"
        except BaseException:
            with suppress(StoreError):  # the disk that failed may be the run's own
                self._writer.write_info(self._ended(info, "failed", started))
            raise
        info = self._ended(info, status, started)
        self._writer.write_info(info)
        return info

    def _take(self, origin: Origin, ask: Ask, reply: Reply) -> None:
        """Write a reply as lines, one a frame, and count it."""
        self._count_tokens(reply.usage)
        for result in results_of(ask, reply, self._work.selected.manifest.recording.id):
            self._add(num_known=origin is Origin.known, num_repeated=origin is Origin.repeated)
            self._writer.write(result)
            self._count(result)

    def _answers(self, asks: Sequence[Ask]) -> Iterator[tuple[Origin, Ask, Reply]]:
        """Yield what is known already, then decode the rest; the model is loaded only for that."""
        work = self._work
        recording = work.selected.manifest.recording.id
        waiting: dict[AskId, list[Ask]] = {}
        for ask in asks:
            reply = None if work.known is None or work.fresh else work.known.find(ask.id)
            if reply is not None:
                yield Origin.known, ask, reply
            elif work.fresh:
                waiting[AskId(f"{ask.id} {ask.number}")] = [ask]  # each is decoded, equal ones too
            else:
                waiting.setdefault(ask.id, []).append(ask)
        for first, reply in self._replies([same[0] for same in waiting.values()]):
            if work.known is not None and reply.error is None:
                work.known.keep(first.id, reply, recording)
            yield Origin.decoded, first, reply
            for ask in waiting.get(first.id, ())[1:]:
                yield Origin.repeated, ask, reply

    def _replies(self, asks: Sequence[Ask]) -> Iterator[tuple[Ask, Reply]]:
        work = self._work
        if asks:
            yield from work.answerer.replies(
                work.selected, work.store, asks, work.sampling, work.limits, self._prefilled
            )

    def _count(self, result: Result) -> None:
        self._add(
            num_results=1,
            num_errors=result.error is not None,
            num_parsed=result.parsed is not None,
        )
        self._listener.result(result)

    def _count_tokens(self, usage: Usage) -> None:
        """Count the tokens of a request, once for all of its lines."""
        self._add(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)

    def _prefilled(self, stats: "EngineStats") -> None:
        self._add(num_images=stats.num_images, num_images_again=stats.num_images_again)

    def _add(self, **more: int) -> None:
        """Add to the totals, by their names."""
        sums = {name: getattr(self._totals, name) + int(value) for name, value in more.items()}
        self._totals = dataclasses.replace(self._totals, **sums)

    def _ended(self, info: RunInfo, status: str, started: float) -> RunInfo:
        seconds = info.totals.seconds + time.perf_counter() - started
        totals = dataclasses.replace(self._totals, seconds=seconds)
        return dataclasses.replace(info, ended_at=now(), status=status, totals=totals)
