"""What a run asks: every prompt over every frame or group, each ask with the digest that names it.

Owns which asks there are, in which order (all prompts of a group together, so that its features are read
once), and what makes two asks the same. Needs no model: what is asked is known before one is loaded.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from blake3 import blake3

from cache.canonical_json import JsonValue, canonical
from cache.manifest import FrameEntry
from checkpoint.backend import installed_version
from infer.canary import combination
from infer.grouping import Showing
from infer.prompt import Image, Prompt, Segment
from infer.sampling import Sampling
from seeonce.runs.known import AskId

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
class Ask:
    """One request of a run: a prompt over one or several frames. ``number`` counts them from 0.

    ``numbered`` tells that the frames were shown with their numbers, and each is to be answered for.
    """

    number: int
    id: AskId
    prompt: Prompt
    frames: tuple[FrameEntry, ...]
    segments: tuple[Segment, ...]
    system: str | None = None
    numbered: bool = False
    schema: str | None = None

    @property
    def group(self) -> tuple[int, ...]:
        """The indexes of its frames."""
        return tuple(frame.index for frame in self.frames)


def computed_by() -> str:
    """Name what computes here: its device, its versions and the epoch of our engine."""
    here = combination()
    texts = [f"{name} {installed_version(name)}" for name in ("transformers", "tokenizers")]
    return f"{here}, {here.dtype or 'default'}, engine {here.engine_epoch}, {', '.join(texts)}"


def make_plan(
    frames: Sequence[FrameEntry], prompts: Sequence[Prompt], answering: Answering, recording: str = ""
) -> tuple[Ask, ...]:
    """Return the asks of a run; ``recording`` is the name that ``{recording}`` stands for."""
    showing, asks = answering.showing, list[Ask]()
    for group in showing.groups(frames):
        for prompt in prompts:
            segments, number = showing.segments(prompt.text, group, recording), len(asks)
            name = ask_id(segments, answering)
            asks.append(
                Ask(
                    number,
                    name,
                    prompt,
                    group,
                    segments,
                    showing.system,
                    numbered=showing.frames_per_prompt > 1,
                    schema=answering.sampling.schema,
                )
            )
    return tuple(asks)


def ask_id(segments: Sequence[Segment], answering: Answering) -> AskId:
    """Return the digest of a question and of everything else that its answer depends on.

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
    }
    return AskId(blake3(canonical(document), derive_key_context=_CONTEXT).hexdigest())


def plan_id(asks: Sequence[Ask]) -> str:
    """Return the digest of all asks of a run, with what its lines say of the frames that they are about.

    Another recording of the same pictures has the same asks: a run about it is another run.
    """
    document: JsonValue = [
        [ask.id, ask.prompt.prompt_id, [_place(frame) for frame in ask.frames]] for ask in asks
    ]
    return blake3(canonical(document), derive_key_context=_CONTEXT).hexdigest()


def _place(frame: FrameEntry) -> JsonValue:
    return [frame.index, frame.timestamp_s, frame.source]


def _segment(segment: Segment) -> JsonValue:
    return ["image", segment.frame.key.hex] if isinstance(segment, Image) else ["text", segment.text]
