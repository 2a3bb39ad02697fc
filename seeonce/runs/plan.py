"""What a run asks: a request for each prompt and each group of frames, named by content."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from blake3 import blake3

from cache.base.canonical_json import JsonValue, canonical
from cache.base.errors import InputError
from cache.base.home import Home
from cache.manifest import FrameEntry
from cache.pixel_index import PixelIndex
from checkpoint.backend import installed_version
from checkpoint.identity import model_id
from infer.canary import combination
from infer.request import Image, Request, Segment
from infer.sampling import Sampling
from seeonce.runs.options import DescribeOptions
from seeonce.runs.prompts import Prompt, Showing
from seeonce.runs.recording import Selected

_CONTEXT = "seeonce 2026-11 asks, version 1"

ANSWER_EPOCH = 1
"""Raised when our own decoding or reading of answers changes, so that older ones are no longer known."""


@dataclass(frozen=True, slots=True)
class Answering:
    """Everything but the question that an answer depends on.

    ``model_id`` is the digest of the checkpoint's files; ``computed_by`` names device and versions.
    """

    model_id: str
    compute_dtype: str
    computed_by: str
    sampling: Sampling
    showing: Showing = field(default_factory=Showing)


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests of a run, numbered from 0, and the digest of each: the same digest, the same answer."""

    prompts: tuple[Prompt, ...]
    requests: tuple[Request, ...]
    digests: tuple[str, ...]

    @property
    def id(self) -> str:
        """The digest of all that is asked, with what its lines say of the frames that they are about.

        Another recording of the same pictures has the same requests: a run about it is another run.
        """
        document: JsonValue = [
            [digest, self.prompt_of(request).prompt_id, [_place(frame) for frame in request.frames]]
            for request, digest in zip(self.requests, self.digests, strict=True)
        ]
        return blake3(canonical(document), derive_key_context=_CONTEXT).hexdigest()

    def prompt_of(self, request: Request) -> Prompt:
        """Return the prompt that a request asks: each is asked of one group of frames, then of the next."""
        return self.prompts[request.id % len(self.prompts)]


def plan(home: Home, selected: Selected, options: DescribeOptions) -> Plan:
    """Return what ``describe`` would ask; loads no model.

    Raises:
        InputError: the model is to think, and cannot.
    """
    if options.showing.thinking:
        _check_thinking(selected, options.sampling)
    manifest = selected.manifest
    answering = Answering(
        checkpoint_digest(home, selected),
        manifest.encoder.compute_dtype,
        computed_by(),
        options.sampling,
        options.showing,
    )
    return make_plan(manifest.frames, options.prompts, answering, manifest.recording.name)


def make_plan(
    frames: Sequence[FrameEntry], prompts: Sequence[Prompt], answering: Answering, recording: str = ""
) -> Plan:
    """Ask every prompt of every group of frames; ``{recording}`` stands for the name ``recording``."""
    showing = answering.showing
    requests = list[Request]()
    for group in showing.groups(frames):
        for prompt in prompts:
            requests.append(
                Request(
                    len(requests),
                    showing.segments(prompt.text, group, recording),
                    answering.sampling,
                    showing.system,
                    numbered=showing.frames_per_prompt > 1,
                    thinking=showing.thinking,
                )
            )
    digests = tuple(request_digest(request.segments, answering) for request in requests)
    return Plan(tuple(prompts), tuple(requests), digests)


def request_digest(segments: Sequence[Segment], answering: Answering) -> str:
    """Return the digest, 64 hex digits, of a question and of everything else that its answer depends on.

    The frames count by their keys, in order: a key names pixels, preprocessing, vision weights and type.
    """
    sampling = answering.sampling
    if sampling.temperature == 0:  # then nothing is drawn, and the seed is of no consequence
        sampling = replace(sampling, top_p=1.0, top_k=0, min_p=0.0, seed=0)
    document: JsonValue = {
        "epoch": ANSWER_EPOCH,
        "model": answering.model_id,
        "compute_dtype": answering.compute_dtype,
        "computed_by": answering.computed_by,
        "sampling": asdict(sampling),  # every field, those that come later too
        "system": answering.showing.system,
        "segments": [_segment(segment) for segment in segments],
        **({"thinking": True} if answering.showing.thinking else {}),
    }
    return blake3(canonical(document), derive_key_context=_CONTEXT).hexdigest()


def _check_thinking(selected: Selected, sampling: Sampling) -> None:
    family = selected.config.family
    if family.thinking_switch is None:
        raise InputError(
            f"{family.title} has no switch for --thinking: leave it out, or give another --model."
        )
    if sampling.schema is not None:
        raise InputError("--thinking and --schema were both given: under a schema an answer cannot reason.")


def _place(frame: FrameEntry) -> JsonValue:
    return [frame.index, frame.timestamp_s, frame.source]


def _segment(segment: Segment) -> JsonValue:
    return ["image", segment.frame.key.hex] if isinstance(segment, Image) else ["text", segment.text]


def computed_by() -> str:
    """Name what computes here: its device, its versions and the epoch of our engine."""
    here = combination()
    texts = [f"{name} {installed_version(name)}" for name in ("transformers", "tokenizers")]
    return f"{here}, {here.dtype or 'default'}, engine {here.engine_epoch}, {', '.join(texts)}"


def checkpoint_digest(home: Home, selected: Selected) -> str:
    """Return the digest of the files of the checkpoint that answers."""
    with PixelIndex(home) as index:
        return model_id(selected.folder, index)
