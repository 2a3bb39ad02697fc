"""What a run of the engine did, counted as it went: the figures that a user is told and tests hold."""

from dataclasses import dataclass, replace

from infer.prefix import Keys
from infer.tokenizer import PromptTokens


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What was prefilled and shared, and the most that was held at once.

    ``num_images`` counts images that went through the decoder. ``num_images_again`` of these had gone
    before in this run, in the same list of frames: each costs what sharing was to save.
    """

    num_requests: int = 0
    num_prefilled_tokens: int = 0
    num_shared_tokens: int = 0
    num_images: int = 0
    num_image_tokens: int = 0
    num_images_again: int = 0
    max_in_flight: int = 0
    max_prefix_bytes: int = 0


class Tally:
    """Counts while the engine runs."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self.stats = EngineStats()
        self._seen: set[Keys] = set()

    def prefilled(self, keys: Keys, prompt: PromptTokens, num_shared: int) -> None:
        """Count a prompt whose tokens from ``num_shared`` on go through the decoder."""
        shown = [
            (keys[: number + 1], span.start + span.num_tokens - max(span.start, num_shared))
            for number, span in enumerate(prompt.images)
            if span.start + span.num_tokens > num_shared
        ]
        stats = self.stats
        self.stats = replace(
            stats,
            num_requests=stats.num_requests + 1,
            num_prefilled_tokens=stats.num_prefilled_tokens + len(prompt.ids) - num_shared,
            num_shared_tokens=stats.num_shared_tokens + num_shared,
            num_images=stats.num_images + len(shown),
            num_image_tokens=stats.num_image_tokens + sum(count for _, count in shown),
            num_images_again=stats.num_images_again + sum(frames in self._seen for frames, _ in shown),
        )
        self._seen.update(frames for frames, _ in shown)

    def held(self, num_in_flight: int, prefix_bytes: int) -> None:
        """Note how many sequences decode and how much is kept."""
        if num_in_flight > self.stats.max_in_flight or prefix_bytes > self.stats.max_prefix_bytes:
            self.stats = replace(
                self.stats,
                max_in_flight=max(num_in_flight, self.stats.max_in_flight),
                max_prefix_bytes=max(prefix_bytes, self.stats.max_prefix_bytes),
            )
