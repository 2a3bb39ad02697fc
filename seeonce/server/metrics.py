"""What ``/metrics`` counts, in Prometheus's words."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, what: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"seeonce_{name}", what, labels, registry=registry)

        self.requests = counter("requests", "Requests by path and status.", ("path", "status"))
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts, those read before included.")
        self.cached_tokens = counter("cached_tokens", "Tokens of prompts that a kept prefix already had.")
        self.completion_tokens = counter("completion_tokens", "Tokens of answers.")
        self.prefixes_reused = counter("prefixes_reused", "Prompts that began from a kept prefix.")
        self.store_hits = counter("store_hits", "Images whose features were in the store.")
        self.store_misses = counter("store_misses", "Images whose features were not in the store.")
        self.images_encoded = counter("images_encoded", "Images that went through the vision encoder.")
        self.bytes_stored = counter("bytes_stored", "Bytes of features written to the store.")
        self.first_token = Histogram(
            "seeonce_time_to_first_token_seconds", "From the request to its first token.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.in_flight = Gauge("seeonce_in_flight", "Answers being decoded or prefilled.", registry=registry)
        self.queue = Gauge("seeonce_queue", "Answers that wait for their turn.", registry=registry)
