"""How much pass two does at once. Light: the command line reads it without MLX."""

from dataclasses import dataclass

from cache.errors import InputError


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How many sequences decode at once, how many are prefilled together, and in chunks of what size."""

    max_num_seqs: int = 8
    prefill_batch_size: int = 4
    prefill_step_size: int = 2048

    def __post_init__(self) -> None:
        for name, value in (
            ("--max-num-seqs", self.max_num_seqs),
            ("--prefill-batch-size", self.prefill_batch_size),
            ("--prefill-step-size", self.prefill_step_size),
        ):
            if value < 1:
                raise InputError(f"{name} is {value}; expected at least 1.")
