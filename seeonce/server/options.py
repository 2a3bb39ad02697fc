"""The options of a server: what it answers with, whose pictures it takes, and who may ask."""

from dataclasses import dataclass, field
from pathlib import Path

from infer.limits import BatchLimits


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How to serve: the options of ``seeonce serve``.

    Besides the request itself and the store, pictures may come from ``folders`` and, if ``remote``, from the
    network; ``store`` keeps the features of those that are new. ``hosts`` are names under which the server is
    asked, ``origins`` pages that may ask it, ``api_key`` what they must send. At most ``max_open`` answers
    are waited for at once; of what prompts begin with, ``prefix_cache`` bytes are kept on disk.
    """

    model: str | None = None
    limits: BatchLimits = field(default_factory=BatchLimits)
    folders: tuple[Path, ...] = ()
    remote: bool = False
    store: bool = True
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    api_key: str | None = None
    max_open: int = 256
    idle_unload_s: float = 1800.0
    prefix_cache: int = 0
