"""Workload 1: several questions about each of several frames, live against stored.

Owns the comparison, and the arithmetic of what storing can save at most: live costs K·(V + P + s + d) a
frame, warm P + K·(s + d), with V vision, P prefill of the image, s prefill of the question, d decoding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from bench.measure import Contestant, Measured, alternate
from bench.peers import LiveModel
from bench.stage import QUESTIONS, Encoded, Warm, encode_frames
from bench.table import Cell, Table
from cache.home import Home
from infer.limits import BatchLimits
from precompute.vision import VisionEncoder

_ONE = BatchLimits(max_num_seqs=1, prefill_batch_size=1, share_prefixes=False)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is asked: questions a frame, tokens an answer, requests in flight, repetitions."""

    num_questions: tuple[int, ...]
    max_tokens: int
    num_in_flight: int
    num_repetitions: int


def measure(encoded: Encoded, scratch: Path, sizes: Sizes) -> Table:
    """Compare mlx-vlm live, one by one and batched, with ours cold and warm."""
    live, warm = LiveModel(encoded.model), Warm(encoded)
    rows: list[tuple[Cell, ...]] = []
    remarks: list[str] = []
    for num_questions in sizes.num_questions:
        found = _compare(encoded, live, warm, scratch, QUESTIONS[:num_questions], sizes)
        rows += _rows(num_questions, found)
        warm_s = found[-1].timing.median_s
        speed_up = found[0].timing.median_s / warm_s
        remarks.append(_arithmetic(encoded, warm, num_questions, sizes.max_tokens, speed_up))
    title = (
        f"Prompt experiment: {len(encoded.manifest.frames)} frames, {sizes.max_tokens} tokens an answer, "
        f"{sizes.num_in_flight} in flight"
    )
    header = ("questions a frame", "path", "seconds", "spread", "times as fast as live", "answers", "wrong")
    return Table("prompt_experiment", title, header, tuple(rows), tuple(remarks))


def _compare(
    encoded: Encoded, live: LiveModel, warm: Warm, scratch: Path, questions: tuple[str, ...], sizes: Sizes
) -> list[Measured[list[str]]]:
    asked = [(Path(frame.source), question) for frame in encoded.manifest.frames for question in questions]
    requests = encoded.requests(questions, sizes.max_tokens)
    limits = BatchLimits(max_num_seqs=sizes.num_in_flight)
    homes = _fresh_homes(scratch / f"cold-{len(questions)}")

    def cold() -> list[str]:
        again = encode_frames(encoded.model, encoded.images, Home(next(homes)))
        return Warm(again).texts(requests, limits)

    return alternate(
        [
            Contestant("mlx-vlm live, one by one", partial(live.one_by_one, asked, sizes.max_tokens)),
            Contestant(
                "mlx-vlm live, batch_generate",
                partial(live.batched, asked, sizes.max_tokens, sizes.num_in_flight),
            ),
            Contestant("seeonce cold (encode, load, describe)", cold),
            Contestant("seeonce warm, nothing shared", partial(warm.texts, requests, _unshared(limits))),
            Contestant("seeonce warm", partial(warm.texts, requests, limits)),
        ],
        sizes.num_repetitions,
    )


def _fresh_homes(folder: Path) -> Iterator[Path]:
    number = 0
    while True:
        yield folder / str(number)
        number += 1


def _unshared(limits: BatchLimits) -> BatchLimits:
    return BatchLimits(limits.max_num_seqs, share_prefixes=False)


def _rows(num_questions: int, found: list[Measured[list[str]]]) -> list[tuple[Cell, ...]]:
    right = found[0].outcome
    return [
        (
            num_questions,
            measured.name,
            measured.timing.median_s,
            f"{measured.timing.spread:.0%}",
            found[0].timing.median_s / measured.timing.median_s,
            len(measured.outcome),
            sum(answer != want for answer, want in zip(measured.outcome, right, strict=True)),
        )
        for measured in found
    ]


def _arithmetic(encoded: Encoded, warm: Warm, num_questions: int, max_tokens: int, speed_up: float) -> str:
    """Measure the shares of one frame, one request at a time, and say what they allow."""
    vision_s, image_s, question_s, decode_s = _shares(encoded, warm, max_tokens)
    live_s = num_questions * (vision_s + image_s + question_s + decode_s)
    warm_s = image_s + num_questions * (question_s + decode_s)
    allowed = live_s / warm_s
    return (
        f"K = {num_questions}: V {vision_s:.3f}, P {image_s:.3f}, s {question_s:.3f}, d {decode_s:.3f} s "
        f"allow {num_questions}·(V + P + s + d) / (P + {num_questions}·(s + d)) = {allowed:.2f} times; "
        f"measured {speed_up:.2f} times, {speed_up / allowed:.0%} of it (decoding in batches adds to it)."
    )


def _shares(encoded: Encoded, warm: Warm, max_tokens: int) -> tuple[float, float, float, float]:
    """Return seconds of vision, image prefill, question prefill and decoding, one request at a time."""
    whole = encoded.requests(QUESTIONS[:1], max_tokens)[:1]
    first = encoded.requests(QUESTIONS[:1], 1)[:1]
    image = encoded.requests(("",), 1)[:1]
    encoder = encoded.model.encoder()
    found = alternate(
        [
            Contestant("vision", partial(_encode_first, encoded, encoder)),
            Contestant("image", partial(warm.texts, image, _ONE)),
            Contestant("first token", partial(warm.texts, first, _ONE)),
            Contestant("whole", partial(warm.texts, whole, _ONE)),
        ],
        num_repetitions=3,
    )
    vision_s, image_s, first_s, whole_s = (measured.timing.median_s for measured in found)
    return vision_s, image_s, max(0.0, first_s - image_s), max(0.0, whole_s - first_s)


def _encode_first(encoded: Encoded, encoder: VisionEncoder) -> list[str]:
    with Image.open(encoded.manifest.frames[0].source) as picture:
        encoder.encode(encoder.preprocess(picture.convert("RGB")))
    return []
