"""Upstream's faults, each with the stock path as the control that fails.

mlx-vlm 0.7.10 carries DeepStack as a list beside the batch, and loses or swaps it. When one of these
controls begins to pass, upstream has mended it: then the adapter may become simpler.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_mlx_vlm import Encoded, Live, draw_noise, encode_folder
from mlx_vlm.generate import batch_generate, stream_generate
from mlx_vlm.generate.ar import BatchGenerator
from mlx_vlm.utils import prepare_inputs
from tiny_checkpoint import Tiny, write_checkpoint

from infer.limits import BatchLimits
from infer.sampling import Sampling

PROMPTS = ("Describe.", "What apps are open on this screen now?", "Topics?", "Describe it in detail please")
MAX_TOKENS = 8


class Case:
    """Four requests, each about a picture of its own, and the answers of mlx-vlm live, one at a time."""

    def __init__(self, root: Path) -> None:
        checkpoint = write_checkpoint(root / "checkpoint", Tiny(max_pixels=65536))
        self.encoded: Encoded = encode_folder(checkpoint, draw_noise(root / "images", 4), root / "home")
        self.images = [Path(frame.source) for frame in self.encoded.manifest.frames]
        self.live = Live(checkpoint)
        self.want = [
            self.live.tokens(prompt, image, MAX_TOKENS)
            for prompt, image in zip(PROMPTS, self.images, strict=True)
        ]

    def ours(self, limits: BatchLimits) -> list[tuple[int, ...]]:
        """Answer from the store."""
        asked = self.encoded.requests(PROMPTS, Sampling(max_tokens=MAX_TOKENS))
        own = [request for request in asked if request.id // len(PROMPTS) == request.id % len(PROMPTS)]
        got = self.encoded.answers(own, limits)
        return [got[request.id].tokens for request in own]

    def stock(self, prefill_batch_size: int, prefill_step_size: int) -> list[tuple[int, ...]]:
        """Answer with mlx-vlm's own batching and its own embeddings."""
        model, processor = self.live.model, self.live.processor
        generator = BatchGenerator(
            model.language_model,
            processor,
            prefill_batch_size=prefill_batch_size,
            completion_batch_size=8,
            prefill_step_size=prefill_step_size,
        )
        ids, kwargs = zip(*self._rows(), strict=True)
        uids = generator.insert(list(ids), MAX_TOKENS, prompt_kwargs=list(kwargs))
        tokens: dict[int, list[int]] = {uid: [] for uid in uids}
        while generator.has_work:
            for response in generator.next()[1]:
                if not processor.tokenizer.stopping_criteria(response.token):
                    tokens[response.uid].append(int(response.token))
        generator.close()
        return [tuple(tokens[uid]) for uid in uids]

    def _rows(self) -> Iterator[tuple[list[int], dict[str, Any]]]:
        model, processor = self.live.model, self.live.processor
        for prompt, image in zip(PROMPTS, self.images, strict=True):
            inputs = prepare_inputs(
                processor,
                images=[str(image)],
                prompts=self.live.formatted(prompt),
                add_special_tokens=False,
                image_token_index=model.config.image_token_index,
            )
            features = model.get_input_embeddings(
                inputs["input_ids"],
                inputs["pixel_values"],
                mask=inputs["attention_mask"],
                image_grid_thw=inputs["image_grid_thw"],
            )
            known = {name: value for name, value in features.to_dict().items() if value is not None}
            yield inputs["input_ids"].tolist()[0], known


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("upstream"))


def test_stock_batching_is_right_when_prefilled_one_by_one(case: Case) -> None:
    assert case.stock(1, 2048) == case.want


def test_four_prefilled_at_once(case: Case) -> None:
    assert case.ours(BatchLimits(8, 4, 2048)) == case.want
    assert case.stock(4, 2048) != case.want


def test_prompts_longer_than_a_prefill_chunk(case: Case) -> None:
    assert case.ours(BatchLimits(8, 1, 8)) == case.want
    assert case.stock(1, 8) != case.want


def test_prompts_of_different_length_keep_their_pictures(case: Case) -> None:
    got = case.ours(BatchLimits(4, 4, 2048))
    texts = batch_generate(
        case.live.model,
        case.live.processor,
        images=[str(image) for image in case.images],
        prompts=list(PROMPTS),
        max_tokens=MAX_TOKENS,
        verbose=False,
    ).texts
    decode = case.live.processor.tokenizer.decode
    assert got == case.want
    assert texts != [decode(list(tokens)) for tokens in case.want]


def test_stored_features_keep_deepstack_where_cached_image_features_drop_it(case: Case) -> None:
    model, processor = case.live.model, case.live.processor
    inputs = prepare_inputs(
        processor,
        images=[str(case.images[0])],
        prompts=case.live.formatted(PROMPTS[0]),
        add_special_tokens=False,
        image_token_index=model.config.image_token_index,
    )
    features, _ = model.vision_tower(inputs["pixel_values"], inputs["image_grid_thw"])
    responses = stream_generate(
        model,
        processor,
        case.live.formatted(PROMPTS[0]),
        [str(case.images[0])],
        max_tokens=MAX_TOKENS,
        temperature=0.0,
        cached_image_features=features,
    )
    cached = tuple(int(response.token) for response in responses)[:MAX_TOKENS]
    assert case.ours(BatchLimits(1, 1, 2048))[0] == case.want[0]
    assert cached[: len(case.want[0])] != case.want[0]
