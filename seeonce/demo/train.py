"""Train the demo checkpoint from scratch on drawn screens.

    python -m seeonce.demo.train --out demo/checkpoint

needs torch and transformers, which seeonce itself never does. Greedy answers are checked
by teacher forcing: an answer is what greedy decoding gives exactly when every one of its
tokens is the most likely one after the true tokens before it.
"""

import argparse
import copy
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from seeonce.demo.checkpoint_files import train_tokenizer, write_settings
from seeonce.demo.screens import TRAINING_SEEDS, VALIDATION_SEEDS
from seeonce.demo.training_data import CELL_CLASSES, IGNORED, Batch, BatchMaker, drawn_screens

CLIP_NORM = 1.0
NUM_VALIDATION_SCREENS = 192

# While it trains, a linear layer reads from each merged token which window is at its place. Answers
# alone teach the vision tower too little at first: topics stayed at chance for 500 steps.
CELL_WEIGHT = 0.3


def outputs_of(
    model: Qwen3VLForConditionalGeneration, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the model on a batch, each image through the vision tower once.

    Returns the logits where something is to be predicted, the tokens that are true there, and the
    sum of merged tokens and DeepStack, `(num_tokens, hidden)`.
    """
    patches, grid_thw = torch.from_numpy(batch.patches), torch.from_numpy(batch.grid_thw)
    features = model.model.visual(patches, grid_thw=grid_thw)
    visual, labels = torch.from_numpy(batch.visual), torch.from_numpy(batch.labels)[:, 1:]
    mask = visual >= 0
    order = visual[mask]
    embeds = model.get_input_embeddings()(torch.from_numpy(batch.ids))
    merged = features.pooler_output[order].to(embeds.dtype)
    hidden = model.model.language_model(
        inputs_embeds=embeds.masked_scatter(mask[..., None], merged),
        attention_mask=torch.from_numpy(batch.attention),
        position_ids=torch.from_numpy(batch.positions),
        visual_pos_masks=mask,
        deepstack_visual_embeds=[layer[order] for layer in features.deepstack_features],
        use_cache=False,
    ).last_hidden_state
    before = (labels != IGNORED).nonzero(as_tuple=True)
    summed = features.pooler_output + torch.stack(features.deepstack_features).sum(0)
    return model.lm_head(hidden[:, :-1][before]), labels[before], summed


def accuracy(model: Qwen3VLForConditionalGeneration, batches: Sequence[Batch]) -> dict[str, float]:
    """Return the share of exactly true greedy answers per question, weights rounded to bfloat16."""
    rounded = copy.deepcopy(model).to(torch.bfloat16).float().eval()
    counts: dict[str, list[bool]] = {}
    for batch in batches:
        with torch.no_grad():
            logits, true_tokens, _ = outputs_of(rounded, batch)
        hits = (logits.argmax(-1) == true_tokens).numpy()
        rows, columns = (batch.labels[:, 1:] != IGNORED).nonzero()
        numbers = batch.segments[:, 1:][rows, columns]
        for row, names in enumerate(batch.names):
            for number, name in enumerate(names, start=1):
                answer = hits[(rows == row) & (numbers == number)]
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


class Trainer:
    """A model, the linear layer that reads cells, and their optimizer."""

    def __init__(self, model: Qwen3VLForConditionalGeneration, peak_rate: float) -> None:
        self._model, self._peak_rate = model, peak_rate
        self._cell_head = torch.nn.Linear(model.config.vision_config.out_hidden_size, sum(CELL_CLASSES))
        weights = [*model.parameters(), *self._cell_head.parameters()]
        self._optimizer = torch.optim.AdamW(weights, lr=peak_rate, betas=(0.9, 0.95), weight_decay=0.01)

    def step(self, batch: Batch, rate: float, cell_weight: float) -> list[float]:
        """Take one step at `rate` times the peak rate.

        Returns the loss of the answers, then that of each column of `cell_truths`.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = self._peak_rate * rate
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, true_tokens, visual = outputs_of(self._model, batch)
            cell_logits = self._cell_head(visual).float().split(CELL_CLASSES, dim=-1)
        cell_truths = torch.from_numpy(batch.cells)
        answers = torch.nn.functional.cross_entropy(logits.float(), true_tokens)
        cells = torch.stack(
            [
                torch.nn.functional.cross_entropy(of_column, cell_truths[:, column])
                for column, of_column in enumerate(cell_logits)
            ]
        )
        self._optimizer.zero_grad(set_to_none=True)
        (answers + cell_weight * cells.sum()).backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP_NORM)
        self._optimizer.step()
        return [float(answers.detach()), *cells.detach().tolist()]


def train(options: argparse.Namespace) -> None:
    """Train as the options of ``main`` say, evaluate and save; print one JSON line for each evaluation."""
    torch.manual_seed(options.seed)
    tokenizer, model = _start(options)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} weights", flush=True)
    validation = _batch_maker(VALIDATION_SEEDS[:NUM_VALIDATION_SCREENS], options, tokenizer)
    validation_batches = [
        validation.batch(range(start, start + 32), 16, None) for start in range(0, NUM_VALIDATION_SCREENS, 32)
    ]
    maker = _batch_maker(TRAINING_SEEDS[: options.screens], options, tokenizer)
    batches = maker.training_batches(options.batch // 2, random.Random(options.seed))
    trainer = Trainer(model, options.peak_rate)
    started, losses = time.monotonic(), list[list[float]]()
    for step in range(1, options.steps + 1):
        # whichever ends first, so that a slow machine ends with a rate of zero too
        progress = max((step - 1) / options.steps, (time.monotonic() - started) / (60 * options.minutes))
        rate = max(0.0, min(step / options.warmup_steps, 1 - progress))
        losses.append(trainer.step(next(batches), rate, CELL_WEIGHT * (1 - progress)))
        last = step == options.steps or rate == 0.0
        if last or step % options.evaluate_every == 0:
            save(model, options.out)
            shares = accuracy(model, validation_batches)
            print(json.dumps(_report(step, time.monotonic() - started, losses, shares)), flush=True)
            losses.clear()
        if last:
            break


def _start(options: argparse.Namespace) -> tuple[Tokenizer, Qwen3VLForConditionalGeneration]:
    """Write the settings files and return the tokenizer and the model to train."""
    if options.initial:
        tokenizer = Tokenizer.from_file(str(options.initial / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer()
    write_settings(options.out, tokenizer)
    config: dict[str, Any] = json.loads((options.out / "config.json").read_text())
    config["vision_config"].pop("model_type")
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config)).float().train()
    if options.initial:
        model.load_state_dict(load_file(options.initial / "model.safetensors"), strict=False)
    return tokenizer, model


def _batch_maker(seeds: range, options: argparse.Namespace, tokenizer: Tokenizer) -> BatchMaker:
    return BatchMaker(seeds, drawn_screens(seeds, options.screens_folder), tokenizer)


def _report(
    step: int, elapsed_s: float, losses: list[list[float]], shares: dict[str, float]
) -> dict[str, Any]:
    """Return the line of the log: mean losses since the line before, accuracy now."""
    answers, *cells = np.mean(losses, axis=0)
    return {
        "step": step,
        "elapsed_s": round(elapsed_s),
        "loss": round(float(answers), 4),
        "cell_losses": [round(float(mean), 3) for mean in cells],
        "accuracy": {name: round(share, 3) for name, share in shares.items()},
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m seeonce.demo.train", description=__doc__.splitlines()[0])
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
    parser.add_argument("--warmup-steps", type=int, default=100)
    parser.add_argument("--evaluate-every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options)


if __name__ == "__main__":
    main()
