"""What a run asks: a request for each prompt and each group of frames, named by content."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from blake3 import blake3

from cache.base.canonical_json import JsonValue, canonical
from cache.base.errors import InputError
from cache.base.home import Home
from cache.manifest import FrameEntry
from cache.pixel_index import PixelIndex
from checkpoint.backend import installed_version
from checkpoint.config import Checkpoint
from checkpoint.folder import has_thinking_switch
from checkpoint.identity import model_id
from infer.canary import combination
from infer.request import Image, Request, Segment
from infer.sampling import Sampling
from seeonce.runs.options import DescribeOptions
from seeonce.runs.prompts import Prompt
from seeonce.runs.recording import Selected

_CONTEXT = "seeonce 2026-11 asks, version 1"

ANSWER_EPOCH = 1
"""Raised when our own decoding or reading of answers changes, so that older ones are no longer known."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What answers: the digest of the checkpoint's files, its compute type, the device and its versions."""

    model_id: str
    compute_dtype: str
    computed_by: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests of a run, numbered from 0, and the digest of each: the same digest, the same answer.

    ``model_id`` is the digest of the checkpoint's files.
    """

    prompts: tuple[Prompt, ...]
    requests: tuple[Request, ...]
    digests: tuple[str, ...]
    model_id: str

    @property
    def id(self) -> str:
        """The digest of all that is asked, with what its lines say of the frames that they are about.

        Another recording of the same pictures has the same requests: a run about it is another run.
        """
        document: JsonValue = [
            [
                digest,
                self.prompt_of(request).prompt_id,
                [[frame.index, frame.timestamp_s, frame.source] for frame in request.frames],
            ]
            for request, digest in zip(self.requests, self.digests, strict=True)
        ]
        return blake3(canonical(document), derive_key_context=_CONTEXT).hexdigest()

    def prompt_of(self, request: Request) -> Prompt:
        """Return the prompt that a request asks: each is asked of one group of frames, then of the next."""
        return self.prompts[request.id % len(self.prompts)]


def plan_run(home: Home, selected: Selected, options: DescribeOptions) -> Plan:
    """Return what ``describe`` would ask; loads no model.

    Raises:
        InputError: the model is to think, and cannot.
    """
    if options.showing.thinking:
        _check_thinking(selected, options.sampling)
    manifest = selected.manifest
    return make_plan(
        manifest.frames,
        options,
        model_identity(home, selected.checkpoint, manifest.encoder.compute_dtype),
        manifest.recording.name,
    )


def model_identity(home: Home, checkpoint: Checkpoint, compute_dtype: str) -> ModelIdentity:
    """Return what answers questions in a model here; loads no model."""
    with PixelIndex(home) as index:
        digest = model_id(checkpoint, index)
    return ModelIdentity(digest, compute_dtype, computed_by())


def make_plan(
    frames: Sequence[FrameEntry], options: DescribeOptions, identity: ModelIdentity, recording: str = ""
) -> Plan:
    """Ask every prompt of every group of frames; ``{recording}`` stands for the name ``recording``."""
    showing = options.showing
    requests = list[Request]()
    for group in showing.groups(frames):
        for prompt in options.prompts:
            requests.append(
                Request(
                    len(requests),
                    showing.segments(prompt.text, group, recording),
                    options.sampling,
                    showing.system,
                    numbered=showing.frames_per_prompt > 1,
                    thinking=showing.thinking,
                )
            )
    digests = tuple(request_digest(request, identity) for request in requests)
    return Plan(options.prompts, tuple(requests), digests, identity.model_id)


def request_digest(request: Request, identity: ModelIdentity) -> str:
    """Return the digest, 64 hex digits, of a question and of everything else that its answer depends on.

    The frames count by their keys, in order: a key names pixels, preprocessing, vision weights and type.
    """
    sampling = request.sampling
    if sampling.temperature == 0:  # then nothing is drawn, and the seed does not matter
        sampling = replace(sampling, top_p=1.0, top_k=0, min_p=0.0, seed=0)
    document: JsonValue = {
        "epoch": ANSWER_EPOCH,
        "model": identity.model_id,
        "compute_dtype": identity.compute_dtype,
        "computed_by": identity.computed_by,
        "sampling": asdict(sampling),  # every field, those that come later too
        "system": request.system,
        "segments": [_segment(segment) for segment in request.segments],
        **({"thinking": True} if request.thinking else {}),
    }
    return blake3(canonical(document), derive_key_context=_CONTEXT).hexdigest()


def _check_thinking(selected: Selected, sampling: Sampling) -> None:
    if not has_thinking_switch(selected.checkpoint.path):
        raise InputError(
            f"The chat template of {selected.model} has no switch for --thinking: leave it out, or give "
            "another --model."
        )
    if sampling.schema is not None:
        raise InputError("--thinking and --schema were both given: under a schema an answer cannot reason.")


def _segment(segment: Segment) -> JsonValue:
    return ["image", segment.frame.key.hex] if isinstance(segment, Image) else ["text", segment.text]


def computed_by() -> str:
    """Name what computes here: its device, its versions and the epoch of our engine."""
    here = combination()
    texts = [f"{name} {installed_version(name)}" for name in ("transformers", "tokenizers")]
    return f"{here}, {here.dtype or 'default'}, engine {here.engine_epoch}, {', '.join(texts)}"
