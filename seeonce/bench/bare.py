"""What the decoder alone needs for some requests: their prefill, and their steps at full batches."""

import mlx.core as mx

from infer.decoding import DecodeBatch
from infer.engine import Engine
from infer.features import FeatureSource
from infer.hooks import RowHooks
from infer.kv_memory import InFlight, KVMemory
from infer.limits import BatchLimits
from infer.model import PromptInputs
from infer.prefill import Prefill
from infer.request import Request
from infer.scheduler import Schedule
from infer.sequence import Sequence


class BareDecoder:
    """Prefills as the engine does with all slots free, and steps without rows that join or leave.

    Nothing is read, watched, or handed out, and no step has a free slot.
    """

    def __init__(
        self, engine: Engine, requests: list[Request], source: FeatureSource, limits: BatchLimits
    ) -> None:
        """Read the features, and fill ``limits.max_num_seqs`` slots, or as many as there are requests."""
        self._engine, self._model, self._limits = engine, engine.model, limits
        self._requests = requests
        frames = {frame.key: frame for request in requests for frame in request.frames}
        self._features = {key: source.features(frame) for key, frame in frames.items()}
        self._num_rows = min(limits.max_num_seqs or len(requests), len(requests))
        self._batch = DecodeBatch(self._model.model)
        self.prefill(self._batch)
        self._lengths = list(self._batch.slots.lengths)

    def prefill(self, into: DecodeBatch | None = None) -> None:
        """Prefill all prompts; put the first into the slots of ``into``."""
        memory = KVMemory(2**62, self._model.kv_token_bytes, 2**31, self._model.row_bytes)
        arriving = (
            Sequence(each, self._engine.tokenizer.encode(each.segments, each.system))
            for each in self._requests
        )
        copies = self._engine.copy_prefixes
        schedule = Schedule(arriving, self._limits, memory, copy_prefixes=copies)
        with self._model.stream():
            while schedule.draw():
                batch = schedule.next_batch(InFlight())
                prefill = self._prefilled(batch, schedule)
                if into is not None and len(into) < self._num_rows:
                    into.join(prefill)

    def _prefilled(self, batch: list[Sequence], schedule: Schedule) -> Prefill:
        inputs = [self._inputs(each) for each in batch]
        for each in batch:
            each.begin(each.request.sampling.max_tokens, RowHooks())
        prefill = Prefill(self._model.model, batch, inputs, self._limits.prefill_step_size)
        while not prefill.is_done:
            prefill.step()
        for index, each in enumerate(batch):
            schedule.keep(each, prefill.kept.get((index, each.num_kept)))
        mx.eval(prefill.logits)
        return prefill

    def _inputs(self, sequence: Sequence) -> PromptInputs:
        features = [self._features[key] for key in sequence.keys]
        return self._model.inputs(sequence.prompt, features.__getitem__, sequence.num_shared)

    def steps(self) -> None:
        """Decode what follows each request's first token, a full batch after the other."""
        num_tokens = self._requests[0].sampling.max_tokens - 1
        num_left = len(self._requests) * num_tokens
        with self._model.stream():
            while num_left > 0:
                num_steps = min(num_tokens, -(-num_left // len(self._lengths)))
                self._steps(num_steps)
                num_left -= num_steps * len(self._lengths)

    def _steps(self, num_steps: int) -> None:
        slots = self._batch.slots
        slots.lengths = list(self._lengths)
        tokens = before = mx.zeros(len(slots.lengths), mx.uint32)
        for _ in range(num_steps):
            tokens = self._batch.forward(before)
            mx.async_eval(tokens)  # type: ignore[no-untyped-call]
            before.tolist()
            before = tokens
        mx.eval(tokens)
