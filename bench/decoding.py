"""Workload: pass two against mlx-vlm, answers compared in the same run.

    python -m bench.decoding --frames 4 --size 640x400 --repetitions 3

Owns two tables: many questions a frame, and tokens a second by the number of sequences in flight. Weights are
loaded, and frames encoded, before the clock runs; reading the store is timed.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from bench.dims import Dims, write_checkpoint
from bench.measure import Contestant, Measured, alternate
from bench.peers import LiveModel
from bench.stage import QUESTIONS, Encoded, Model, draw_frames, encode_frames
from bench.table import Cell, Table
from cache.home import Home
from infer.batching import answer_all
from infer.limits import BatchLimits
from infer.mlx_vlm_adapter import LanguageHalf
from infer.request import Request
from infer.stored import StoredFeatures
from infer.tokenizer import ChatTokenizer

IN_FLIGHT = (1, 4, 8, 16)
Tokens = list[tuple[int, ...]]


class Ours:
    """Pass two over a store, the model loaded."""

    def __init__(self, encoded: Encoded) -> None:
        """Load the language half."""
        model = encoded.model
        self._encoded = encoded
        self.tokenizer = ChatTokenizer(model.folder, model.config)
        self._half = LanguageHalf(model.folder, model.config, model.spec.compute_dtype)

    def answers(self, requests: Sequence[Request], limits: BatchLimits, stop_ids: frozenset[int]) -> Tokens:
        """Answer requests; return tokens in the order of the requests."""
        source = StoredFeatures(self._encoded.store, self._encoded.manifest.recording.id)
        answers = {a.request.id: a for a in answer_all(requests, self._half, source, stop_ids, limits)}
        assert all(answer.error is None for answer in answers.values())
        return [answers[request.id].tokens for request in requests]


class StockBatches(LiveModel):
    """mlx-vlm's BatchGenerator, given embeddings that were made before the clock runs."""

    def rows(self, asked: Sequence[tuple[Path, str]]) -> list[tuple[list[int], dict[str, Any]]]:
        """Return ids and prompt kwargs of each request, evaluated."""
        return list(self._rows(asked))

    def answers(
        self, rows: Sequence[tuple[list[int], dict[str, Any]]], max_tokens: int, limits: BatchLimits
    ) -> Tokens:
        """Decode ``max_tokens`` of each row, no token stopping it."""
        from mlx_vlm.generate.ar import BatchGenerator

        generator = BatchGenerator(
            self._model.language_model,
            _NeverStops(),
            completion_batch_size=limits.max_num_seqs,
            prefill_batch_size=min(limits.prefill_batch_size, limits.max_num_seqs),
            prefill_step_size=limits.prefill_step_size,
            compute_logprobs=False,
        )
        kwargs = [dict(kwargs) for _, kwargs in rows]
        uids = generator.insert([list(ids) for ids, _ in rows], max_tokens, prompt_kwargs=kwargs)
        tokens: dict[int, list[int]] = {uid: [] for uid in uids}
        while generator.has_work:
            for response in generator.next()[1]:
                tokens[response.uid].append(int(response.token))
        generator.close()
        return [tuple(tokens[uid]) for uid in uids]

    def _rows(self, asked: Sequence[tuple[Path, str]]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        from mlx_vlm.utils import prepare_inputs

        for image, question in asked:
            inputs = prepare_inputs(
                self._processor,
                images=[str(image)],
                prompts=self._formatted(question),
                add_special_tokens=False,
                image_token_index=self._model.config.image_token_index,
            )
            embedded = self._model.get_input_embeddings(
                inputs["input_ids"],
                inputs["pixel_values"],
                mask=inputs["attention_mask"],
                image_grid_thw=inputs["image_grid_thw"],
            )
            known = {name: value for name, value in embedded.to_dict().items() if value is not None}
            mx.eval(known)
            yield inputs["input_ids"].tolist()[0], known


class _NeverStops:
    """What ``BatchGenerator`` asks of a tokenizer."""

    class _Never:
        def add_eos_token_ids(self, ids: object = None) -> None:
            """Take none."""

        def __call__(self, token: int) -> bool:  # noqa: ARG002
            return False

    stopping_criteria = _Never()


def many_questions(encoded: Encoded, max_tokens: int, num_repetitions: int, limits: BatchLimits) -> Table:
    """Ask eight questions of every frame, four ways."""
    requests = encoded.requests(QUESTIONS, max_tokens)
    asked = [(Path(frame.source), text) for frame in encoded.manifest.frames for text in QUESTIONS]
    live, ours = LiveModel(encoded.model), Ours(encoded)
    alone = replace(limits, share_prefixes=False)

    def texts(chosen: BatchLimits) -> list[str]:
        tokens = ours.answers(requests, chosen, ours.tokenizer.stop_ids)
        return [ours.tokenizer.decode(each) for each in tokens]

    measured = alternate(
        [
            Contestant("mlx-vlm live, one at a time", lambda: live.one_by_one(asked, max_tokens)),
            Contestant(
                "mlx-vlm batch_generate", lambda: live.batched(asked, max_tokens, limits.max_num_seqs)
            ),
            Contestant("seeonce, not sharing", lambda: texts(alone)),
            Contestant("seeonce", lambda: texts(limits)),
        ],
        num_repetitions,
    )
    first = measured[0]
    rows = [_row(each, first, len(requests)) for each in measured]
    header = ("path", "answers", "seconds", "spread", "answers/s", "times as fast", "wrong answers")
    title = (
        f"Eight questions for each of {len(encoded.manifest.frames)} frames, {limits.max_num_seqs} in flight"
    )
    remark = "An answer is wrong when its text is not that of mlx-vlm live, one at a time."
    return Table("questions", title, header, tuple(rows), (remark,))


def _row(each: Measured[list[str]], first: Measured[list[str]], num_answers: int) -> tuple[Cell, ...]:
    took = each.timing.median_s
    pairs = zip(each.outcome, first.outcome, strict=True)
    num_wrong = sum(mine.strip() != theirs.strip() for mine, theirs in pairs)
    return (
        each.name, num_answers, took, f"{each.timing.spread:.0%}", num_answers / took,
        first.timing.median_s / took, num_wrong,
    )  # fmt: skip


def tokens_per_second(encoded: Encoded, max_tokens: int, num_repetitions: int, limits: BatchLimits) -> Table:
    """Decode the same requests with mlx-vlm's BatchGenerator and with ours, so many in flight."""
    questions = QUESTIONS[:4]
    requests = encoded.requests(questions, max_tokens)
    stock, ours, never = StockBatches(encoded.model), Ours(encoded), frozenset[int]()
    embedded = stock.rows([(Path(f.source), text) for f in encoded.manifest.frames for text in questions])
    right = stock.answers(embedded, max_tokens, BatchLimits(1, 1, 2**30))
    rows: list[tuple[Cell, ...]] = []
    for in_flight in IN_FLIGHT:
        chosen = replace(limits, max_num_seqs=in_flight, share_prefixes=False)
        shared = replace(chosen, share_prefixes=True)
        measured = alternate(
            [
                Contestant("stock", partial(stock.answers, embedded, max_tokens, chosen)),
                Contestant("ours", partial(ours.answers, requests, chosen, never)),
                Contestant("shared", partial(ours.answers, requests, shared, never)),
            ],
            num_repetitions,
        )
        rates = [sum(map(len, each.outcome)) / each.timing.median_s for each in measured]
        wrong = [sum(a != b for a, b in zip(each.outcome, right, strict=True)) for each in measured]
        rows.append((in_flight, *rates, rates[1] / rates[0], rates[2] / rates[0], *wrong))
    header = (
        "in flight", "BatchGenerator, tokens/s", "seeonce, not sharing", "seeonce",
        "not sharing / BatchGenerator", "seeonce / BatchGenerator",
        "wrong: BatchGenerator", "wrong: not sharing", "wrong: seeonce",
    )  # fmt: skip
    title = f"Tokens a second, {len(requests)} requests of {max_tokens} tokens, prefill included"
    remark = (
        "Embeddings were made before BatchGenerator's clock ran; seeonce reads its store. Wrong: of "
        f"{len(requests)} answers, those that are not BatchGenerator's own, one by one and unchunked."
    )
    return Table("tokens", title, header, tuple(rows), (remark,))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a checkpoint; by default one of random weights is made")
    parser.add_argument("--dims", default=Dims.small, type=Dims, choices=list(Dims))
    parser.add_argument("--frames", default=4, type=int)
    parser.add_argument("--size", default="640x400", help="width x height of the frames")
    parser.add_argument("--max-tokens", default=32, type=int)
    parser.add_argument("--repetitions", default=3, type=int)
    parser.add_argument("--in-flight", default=8, type=int, help="in the first table")
    given = parser.parse_args()
    width, height = (int(side) for side in given.size.split("x"))
    limits = BatchLimits(max_num_seqs=given.in_flight)
    with tempfile.TemporaryDirectory(prefix="seeonce-bench-") as name:
        root = Path(name)
        checkpoint = given.model or str(write_checkpoint(root / "checkpoint", given.dims))
        home = Home(root / "home")
        home.prepare()
        images = draw_frames(root / "frames", given.frames, (width, height))
        encoded = encode_frames(Model.open(checkpoint, home), images, home)
        print(tokens_per_second(encoded, given.max_tokens, given.repetitions, limits).as_markdown())
        print(many_questions(encoded, given.max_tokens, given.repetitions, limits).as_markdown())


if __name__ == "__main__":
    main()
