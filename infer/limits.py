"""How much pass two does at once. Light: the command line reads it without MLX."""

from dataclasses import dataclass

from cache.base.errors import InputError


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How many sequences decode at once, how many are prefilled together, and in chunks of what size.

    ``max_num_seqs`` ``None`` lets as many decode as fit and as make it faster (``scheduler.InFlightLimit``).
    ``kv_memory_bytes`` bounds what KV caches take, shared prefixes included; ``None`` takes a share of what
    the device has. ``share_prefixes`` prefills what prompts over the same frames begin with once.
    """

    max_num_seqs: int | None = None
    prefill_batch_size: int = 4
    prefill_step_size: int = 2048
    kv_memory_bytes: int | None = None
    share_prefixes: bool = True

    def __post_init__(self) -> None:
        for name, value in (
            ("--max-num-seqs", self.max_num_seqs),
            ("--prefill-batch-size", self.prefill_batch_size),
            ("--prefill-step-size", self.prefill_step_size),
        ):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; expected at least 1.")
        if self.kv_memory_bytes is not None and self.kv_memory_bytes < 1:
            raise InputError(f"--kv-memory is {self.kv_memory_bytes} bytes; expected more, for example 8GB.")
