"""How much memory KV caches and recurrent states may take, and what a batch of sequences takes of it.

A batch is one array a layer, as wide as its longest row, so what counts is rows times columns; every
sequence is counted as if it used all of its ``max_tokens``. Recurrent states are of one size, however long
the row.
"""

from dataclasses import dataclass
from typing import Any

from checkpoint.backend import memory_bytes
from infer.kv_cache import rounded_up
from infer.prefixes import SharedPrefix
from infer.sequence import Sequence

_SHARE_OF_DEVICE = 0.6  # the rest is for activations, features, and what else runs
_SHARE_OF_HOST = 0.25
_SPARE_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class InFlight:
    """The sequences that decode now: their number, the columns in use, and the most that will follow.

    ``num_slots`` are held for them, some of which may be free, and they read ``prefixes`` in place.
    """

    num_rows: int = 0
    num_columns: int = 0
    num_to_come: int = 0
    num_slots: int = 0
    prefixes: frozenset[SharedPrefix] = frozenset()


@dataclass(frozen=True, slots=True)
class KVMemory:
    """A bound in bytes; ``token_bytes`` are keys and values of one token, all layers.

    ``max_context`` is the model's: an answer ends there, whatever its ``max_tokens``. ``row_bytes`` are the
    recurrent states of one row, all layers.
    """

    max_bytes: int
    token_bytes: int
    max_context: int
    row_bytes: int = 0

    def size(self, sequence: Sequence) -> tuple[int, int]:
        """Return how many tokens a sequence's prompt has of its own, and how many may follow."""
        num_tokens = len(sequence.prompt.ids)
        to_come = min(sequence.request.sampling.max_tokens, self.max_context - num_tokens)
        return num_tokens - sequence.num_in_place, to_come

    def problem(self, sequence: Sequence) -> str | None:
        """Say why a sequence cannot be answered even alone, ``None`` if it can."""
        num_tokens, to_come = self.size(sequence)
        if to_come < 1:
            return (
                f"The prompt has {num_tokens:,} tokens and the model's context {self.max_context:,}: "
                "shorten it, or encode with a lower --max-pixels."
            )
        needed = self.batch_bytes(InFlight(), [(num_tokens, to_come)])
        if needed > self.max_bytes:
            return (
                f"The prompt's {num_tokens:,} tokens and {to_come:,} of an answer need {needed / 1e9:.3g} GB "
                f"of KV cache, and it may take {self.max_bytes / 1e9:.3g} GB: raise --kv-memory, lower "
                "--max-tokens, or show fewer frames."
            )
        return None

    def batch_bytes(self, now: InFlight, new: list[tuple[int, int]]) -> int:
        """Return what ``now`` and new prompts of (tokens, max_tokens) take together, at their longest."""
        if not now.num_rows and not new:
            return 0
        columns = max([now.num_columns, *(prompt for prompt, _ in new)])
        to_come = max([now.num_to_come, *(max_tokens for _, max_tokens in new)])
        num_rows = max(now.num_slots, now.num_rows + len(new))
        return num_rows * (rounded_up(columns + to_come) * self.token_bytes + self.row_bytes)

    def prefix_bytes(self, num_tokens: int) -> int:
        """Return what a kept prefix takes; of no tokens nothing is kept."""
        return num_tokens * self.token_bytes + self.row_bytes if num_tokens else 0


def default_kv_bytes(weight_bytes: int) -> int:
    """Return a share of what the device recommends less the weights; on a CPU, of the host's memory."""
    return _share_of(weight_bytes, _SHARE_OF_DEVICE, _SHARE_OF_HOST)


def spare_bytes(weight_bytes: int) -> int:
    """Return how much MLX may keep of buffers that are free, for their next use."""
    return _share_of(weight_bytes, _SPARE_SHARE, _SPARE_SHARE)


def _share_of(weight_bytes: int, of_device: float, of_host: float) -> int:
    import mlx.core as mx

    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    device: dict[str, Any] = {} if on_cpu else dict(mx.device_info())
    # Metal recommends; CUDA tells what the device has.
    recommended = device.get("max_recommended_working_set_size") or device.get("total_memory")
    if recommended:
        return max(0, int((int(recommended) - weight_bytes) * of_device))
    return int(memory_bytes() * of_host)
