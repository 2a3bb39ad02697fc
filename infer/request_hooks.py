"""What the settings of a request bring along into the batch: penalty, schema, draw, stop strings.

Owns their order. Each is a module of its own; how they run in a batch is ``infer.hooks``.
"""

from collections.abc import Callable, Sequence

from infer.hooks import LogitsProcessor, RowHooks, TokenWatch
from infer.repetition import RepetitionWatch
from infer.request import Request
from infer.sampling import RepetitionPenalty, SeededDraw
from infer.stop import StopWatch


class Watches:
    """Several watches as one; the first word ends the answer."""

    def __init__(self, watches: Sequence[TokenWatch]) -> None:
        """Ask ``watches`` in their order."""
        self._watches = tuple(watches)

    def seen(self, token: int) -> str | None:
        """Let each take note of a token."""
        words = [watch.seen(token) for watch in self._watches]
        return next((word for word in words if word is not None), None)


def request_hooks(
    request: Request, decode: Callable[[Sequence[int]], str], schema: LogitsProcessor | None = None
) -> RowHooks:
    """Return what a request brings along; ``decode`` turns tokens into text, ``schema`` rules tokens out."""
    sampling = request.sampling
    processors: list[LogitsProcessor] = []
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenalty(sampling))
    if schema is not None:
        processors.append(schema)  # after the penalty, which it has the last word over; before the draw
    if sampling.temperature > 0:
        processors.append(SeededDraw(sampling, request.keys, request.prompt.ids))
    watches: list[TokenWatch] = [StopWatch(sampling.stop, decode)] if sampling.stop else []
    return RowHooks(tuple(processors), Watches([*watches, RepetitionWatch()]), sampling.logprobs)
