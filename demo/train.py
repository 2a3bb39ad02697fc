"""Train the demo checkpoint from scratch on drawn screens.

    python -m demo.train --out demo/checkpoint

needs torch and transformers, which seeonce itself never does. Greedy answers are checked
by teacher forcing: an answer is what greedy decoding gives exactly when every one of its
tokens is the most likely one after the true tokens before it.
"""

import argparse
import copy
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from demo.checkpoint_files import MERGE_SIZE, PATCH_SIZE, TEMPORAL_PATCH_SIZE, train_tokenizer, write_settings
from demo.screens import TRAINING_SEEDS, VALIDATION_SEEDS, size_of
from demo.training_data import (
    CELL_CLASSES,
    FACTOR,
    IGNORED,
    PREFIX_SEGMENT,
    BatchImage,
    Pixels,
    Row,
    RowPacker,
    cell_truths,
    drawn_screens,
    questions_about,
    questions_about_pair,
    resized,
    truth_of_seed,
)

NUM_PAIR_ROWS = 10
CLIP_NORM = 1.0

# While it trains, a linear layer reads from each merged token which window is at its place. Answers
# alone teach the vision tower too little at first: topics stayed at chance for 500 steps.
CELL_WEIGHT = 0.3


@dataclass(frozen=True, slots=True)
class Settings:
    """What one training run is made of."""

    out: Path
    initial: Path | None
    screens_folder: Path
    num_screens: int
    num_steps: int
    limit_s: float
    batch_size: int
    peak_rate: float
    warmup_steps: int
    evaluate_every: int
    seed: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Images and packed rows about them, as tensors."""

    patches: torch.Tensor
    grid_thw: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    attention: torch.Tensor
    visual: torch.Tensor
    labels: torch.Tensor
    segments: torch.Tensor
    cells: torch.Tensor
    names: tuple[tuple[str, ...], ...]


def patches_of(pixels: Pixels, shift: float = 0.0) -> torch.Tensor:
    """Return normalised patches `(num_patches, 3 * 2 * 16 * 16)` in the processor's order."""
    image = torch.from_numpy(pixels.astype(np.float32))
    image = (image + shift) / 127.5 - 1.0
    height, width = image.shape[0] // FACTOR, image.shape[1] // FACTOR
    blocks = image.view(height, MERGE_SIZE, PATCH_SIZE, width, MERGE_SIZE, PATCH_SIZE, 3)
    blocks = blocks.permute(0, 3, 1, 4, 6, 2, 5).unsqueeze(5)
    blocks = blocks.expand(-1, -1, -1, -1, -1, TEMPORAL_PATCH_SIZE, -1, -1)
    return blocks.reshape(height * width * MERGE_SIZE**2, -1)


class BatchMaker:
    """Builds batches from drawn screens of consecutive seeds."""

    def __init__(self, seeds: range, screens: Pixels, tokenizer: Tokenizer) -> None:
        self._seeds, self._screens, self._packer = seeds, screens, RowPacker(tokenizer)

    def training_batches(self, num_couples: int, rng: random.Random) -> Iterator[Batch]:
        """Yield shuffled batches for ever; a couple is an even seed and the odd one after it."""
        while True:
            couples = list(range(0, len(self._seeds), 2))
            rng.shuffle(couples)
            for start in range(0, len(couples) - num_couples + 1, num_couples):
                chosen = couples[start : start + num_couples]
                yield self.batch(
                    [index for couple in chosen for index in (couple, couple + 1)], NUM_PAIR_ROWS, rng
                )

    def batch(self, indices: Sequence[int], num_pairs: int, rng: random.Random | None) -> Batch:
        """Return the batch of the screens at `indices`; without `rng`, only fixed texts."""
        images, patches, grids, start = [], [], [], 0
        for index in indices:
            width, height = resized(size_of(self._seeds[index]))
            image = BatchImage(start, height // FACTOR, width // FACTOR)
            images.append(image)
            patches.append(patches_of(self._screens[index, :, :width], rng.uniform(-5, 5) if rng else 0.0))
            grids.append([1, height // PATCH_SIZE, width // PATCH_SIZE])
            start += image.height * image.width
        truths = [truth_of_seed(self._seeds[index]) for index in indices]
        rows = [
            self._packer.single(image, questions_about(truth, rng), rng)
            for image, truth in zip(images, truths, strict=True)
        ]
        for before, after in self._pairs(len(indices), num_pairs, rng):
            questions = questions_about_pair(truths[before], truths[after], rng)
            rows.append(self._packer.pair(images[before], images[after], questions, rng))
        cells = torch.from_numpy(np.concatenate([cell_truths(truth) for truth in truths]))
        return _stack(rows, torch.cat(patches), torch.tensor(grids), cells)

    def _pairs(self, count: int, num_pairs: int, rng: random.Random | None) -> list[tuple[int, int]]:
        """Return pairs of positions: neighbours in time, two of any, seldom twice the same."""
        if rng is None:
            return [(2 * index, 2 * index + 1) for index in range(num_pairs)]
        pairs = []
        for _ in range(num_pairs):
            first = rng.randrange(count)
            kind = rng.random()
            pairs.append((first, first ^ 1 if kind < 0.6 else first if kind < 0.65 else rng.randrange(count)))
        return pairs


def _stack(rows: list[Row], patches: torch.Tensor, grid_thw: torch.Tensor, cells: torch.Tensor) -> Batch:
    """Pad rows to one length and build the attention mask of packed questions."""
    length = max(len(row.ids) for row in rows)

    def padded(field: str, value: int) -> torch.Tensor:
        arrays = [getattr(row, field) for row in rows]
        widths = [[(0, 0)] * (array.ndim - 1) + [(0, length - array.shape[-1])] for array in arrays]
        filled = [
            np.pad(array, width, constant_values=value) for array, width in zip(arrays, widths, strict=True)
        ]
        return torch.from_numpy(np.stack(filled))

    segments = padded("segments", -1)
    shared = (segments == PREFIX_SEGMENT)[:, None, :]
    own = segments[:, :, None] == segments[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return Batch(
        patches,
        grid_thw,
        padded("ids", 0),
        padded("positions", 0).permute(1, 0, 2).contiguous(),
        ((shared | own) & causal)[:, None],
        padded("visual", -1),
        padded("labels", IGNORED),
        segments,
        cells,
        tuple(row.names for row in rows),
    )


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one pass gives.

    `logits` are where something is to be predicted, `true` the tokens that are true there;
    `visual` is the sum of merged tokens and DeepStack, `(num_tokens, hidden)`.
    """

    logits: torch.Tensor
    true: torch.Tensor
    visual: torch.Tensor


def outputs_of(model: Qwen3VLForConditionalGeneration, batch: Batch) -> Outputs:
    """Run the model on a batch, each image through the vision tower once."""
    features = model.model.visual(batch.patches, grid_thw=batch.grid_thw)
    mask = batch.visual >= 0
    order = batch.visual[mask]
    embeds = model.get_input_embeddings()(batch.ids)
    merged = features.pooler_output[order].to(embeds.dtype)
    embeds = embeds.masked_scatter(mask[..., None], merged)
    hidden = model.model.language_model(
        inputs_embeds=embeds,
        attention_mask=batch.attention,
        position_ids=batch.positions,
        visual_pos_masks=mask,
        deepstack_visual_embeds=[layer[order] for layer in features.deepstack_features],
        use_cache=False,
    ).last_hidden_state
    before = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    visual = features.pooler_output + torch.stack(features.deepstack_features).sum(0)
    return Outputs(model.lm_head(hidden[:, :-1][before]), batch.labels[:, 1:][before], visual)


def accuracy(model: Qwen3VLForConditionalGeneration, batches: Sequence[Batch]) -> dict[str, float]:
    """Return the share of exactly true greedy answers per question, weights rounded to bfloat16."""
    rounded = copy.deepcopy(model).to(torch.bfloat16).float().eval()
    counts: dict[str, list[bool]] = {}
    for batch in batches:
        with torch.no_grad():
            outputs = outputs_of(rounded, batch)
        right = outputs.logits.argmax(-1) == outputs.true
        rows, columns = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        numbers = batch.segments[:, 1:][rows, columns]
        for row, names in enumerate(batch.names):
            for number, name in enumerate(names, start=1):
                answer = right[(rows == row) & (numbers == number)]
                counts.setdefault(name, []).append(bool(answer.all()))
    return {name: sum(values) / len(values) for name, values in counts.items()}


def save(model: Qwen3VLForConditionalGeneration, folder: Path) -> None:
    """Write the weights in bfloat16; the tied output layer is not written twice."""
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    path = folder / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes it readable for its owner alone


def train(settings: Settings) -> None:
    """Train, evaluate and save, printing one JSON line for each evaluation."""
    torch.manual_seed(settings.seed)
    seeds = TRAINING_SEEDS[: settings.num_screens]
    if settings.initial:
        tokenizer = Tokenizer.from_file(str(settings.initial / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer()
    write_settings(settings.out, tokenizer)
    config: dict[str, Any] = json.loads((settings.out / "config.json").read_text())
    config["vision_config"].pop("model_type")
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config)).float().train()
    if settings.initial:
        model.load_state_dict(load_file(settings.initial / "model.safetensors"), strict=False)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} weights", flush=True)
    validation_seeds = VALIDATION_SEEDS[:192]
    validation = BatchMaker(
        validation_seeds, drawn_screens(validation_seeds, settings.screens_folder), tokenizer
    )
    validation_batches = [validation.batch(range(start, start + 32), 16, None) for start in range(0, 192, 32)]
    maker = BatchMaker(seeds, drawn_screens(seeds, settings.screens_folder), tokenizer)
    batches = maker.training_batches(settings.batch_size // 2, random.Random(settings.seed))
    cell_head = torch.nn.Linear(config["vision_config"]["out_hidden_size"], sum(CELL_CLASSES))
    weights = [*model.parameters(), *cell_head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=settings.peak_rate, betas=(0.9, 0.95), weight_decay=0.01)
    started = time.monotonic()
    losses: list[tuple[float, list[float]]] = []
    for step in range(1, settings.num_steps + 1):
        # whichever ends first, so that a slow machine ends with a rate of zero too
        progress = max((step - 1) / settings.num_steps, (time.monotonic() - started) / settings.limit_s)
        rate = max(0.0, min(step / settings.warmup_steps, 1 - progress))
        for group in optimizer.param_groups:
            group["lr"] = settings.peak_rate * rate
        losses.append(_step(model, cell_head, optimizer, next(batches), CELL_WEIGHT * (1 - progress)))
        last = step == settings.num_steps or rate == 0.0
        if last or step % settings.evaluate_every == 0:
            save(model, settings.out)
            report = {
                "step": step,
                "elapsed_s": round(time.monotonic() - started),
                "loss": round(sum(loss for loss, _ in losses) / len(losses), 4),
                "cell_losses": [
                    round(sum(column) / len(column), 3)
                    for column in zip(*(cells for _, cells in losses), strict=True)
                ],
                "accuracy": {
                    name: round(share, 3) for name, share in accuracy(model, validation_batches).items()
                },
            }
            print(json.dumps(report), flush=True)
            losses.clear()
        if last:
            break


def _step(
    model: Qwen3VLForConditionalGeneration,
    cell_head: torch.nn.Linear,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    cell_weight: float,
) -> tuple[float, list[float]]:
    """Take one step and return the loss of the answers and of the cells."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = outputs_of(model, batch)
        cell_logits = cell_head(outputs.visual).float().split(CELL_CLASSES, dim=-1)
    answer_loss = torch.nn.functional.cross_entropy(outputs.logits.float(), outputs.true)
    cell_losses = [
        torch.nn.functional.cross_entropy(logits, batch.cells[:, column])
        for column, logits in enumerate(cell_logits)
    ]
    cell_loss = torch.stack(cell_losses).sum()
    optimizer.zero_grad(set_to_none=True)
    (answer_loss + cell_weight * cell_loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
    optimizer.step()
    return float(answer_loss.detach()), [float(loss.detach()) for loss in cell_losses]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.train", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--initial", type=Path, help="checkpoint whose weights and tokenizer to go on from")
    parser.add_argument(
        "--screens-folder", type=Path, default=Path("build/demo-screens"), help="drawn screens, kept"
    )
    parser.add_argument("--screens", type=int, default=12_000, help="how many screens to train on")
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--minutes", type=float, default=170.0, help="end the schedule by then at the latest")
    parser.add_argument("--batch", type=int, default=32, help="screens a step, even")
    parser.add_argument("--peak-rate", type=float, default=1.5e-3)
    parser.add_argument("--warmup-steps", type=int, default=200)
    parser.add_argument("--evaluate-every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(
        Settings(
            out=arguments.out,
            initial=arguments.initial,
            screens_folder=arguments.screens_folder,
            num_screens=arguments.screens,
            num_steps=arguments.steps,
            limit_s=60 * arguments.minutes,
            batch_size=arguments.batch,
            peak_rate=arguments.peak_rate,
            warmup_steps=arguments.warmup_steps,
            evaluate_every=arguments.evaluate_every,
            seed=arguments.seed,
        )
    )


if __name__ == "__main__":
    main()
