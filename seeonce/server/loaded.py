"""A model that is loaded: what of it and of its prompts stays from request to request."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from cache.base.errors import SeeonceError
from cache.base.home import Home
from infer.prefixes import PrefixPool
from infer.request import Request, Text, Turn
from infer.sequence import Sequence
from precompute.loaded import Loaded, load_encoder
from seeonce.runs.describe import load_engine
from seeonce.server.errors import ApiError, refused
from seeonce.server.jobs import Job
from seeonce.server.models import ServedModel
from seeonce.server.options import ServeOptions
from seeonce.verifier.canary import sound_limits

if TYPE_CHECKING:
    from precompute.encoder import VisionEncoder

_MOST_CHARACTERS = 16  # a token, many times what text has
_TOO_LONG = "context_length_exceeded"


class LoadedModel:
    """A language model with the prefixes that it has read, and its encoder once a new picture came."""

    def __init__(
        self,
        home: Home,
        model: ServedModel,
        options: ServeOptions,
        say: Callable[[str], None],
    ) -> None:
        """Load the language model.

        Raises:
            CheckpointError: it does not load, or answers wrongly here.
        """
        self.model = model
        self.limits = sound_limits(home, model.checkpoint, options.limits, say)
        dtype = model.spec.compute_dtype
        self.engine = load_engine(home, model.checkpoint, dtype, self.limits, options.prefix_cache)
        self.memory = self.engine.memory(self.limits)
        shares = self.limits.share_prefixes
        self.prefixes = PrefixPool(self.memory.max_bytes // 2 if shares else 0, lasting=True)
        self._encoders: Loaded = {}

    def encoder(self) -> "VisionEncoder":
        """Return the encoder: limits on pixels change how a picture is cut, which was done before."""
        return load_encoder(self.model.checkpoint, self.model.spec, self._encoders)

    def problem(self, job: Job, request: Request) -> ApiError | None:
        """Say why a job cannot be answered, before anything is computed for it."""
        if job.cancelled:
            return ApiError(499, "The client is gone.")
        most = _MOST_CHARACTERS * self.model.checkpoint.text.max_context
        turns = (*request.earlier, Turn("user", request.segments))
        num = sum(len(part.text) for turn in turns for part in turn.segments if isinstance(part, Text))
        if num > most:  # which takes long to find out token by token
            return refused(f"The texts have {num:,} characters: shorten them.", "messages", _TOO_LONG)
        try:
            sequence = Sequence(request, self.engine.tokenizer.prompt(request))
        except SeeonceError as error:
            return refused(str(error), "messages")
        problem = self.memory.problem(sequence)
        return None if problem is None else refused(problem, "messages", _TOO_LONG)
