"""How many answers of the demo checkpoint are true, decoded by mlx-vlm live, one at a time.

    python -m seeonce.demo.evaluate --count 200
    python -m seeonce.demo.evaluate --count 60 --zero-deepstack
    python -m seeonce.demo.evaluate --count 60 --swap-images

Greedy, in float32 from the stored bfloat16 weights, on screens that training never used.
The last two are controls: accuracy must fall. Imports MLX only when it runs.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from PIL import Image

from seeonce.demo.questions import CHANGE_QUESTION, QUESTIONS
from seeonce.demo.score import Expected, Result, read_truth, score
from seeonce.demo.screens import FIRST_HELD_OUT_SEED, write_folder

MAX_TOKENS = 120
CHECKPOINT = Path(__file__).parent / "checkpoint"

Ask = Callable[[list[Image.Image], str], str]


def live_decoder(checkpoint: Path, zero_deepstack: bool = False) -> Ask:
    """Return a function that asks the checkpoint one question about some images.

    With `zero_deepstack` the last linear layers of the DeepStack mergers are zero, so the
    DeepStack features are zero and nothing else changes.
    """
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlx_vlm import generate, load
    from mlx_vlm.prompt_utils import apply_chat_template

    model: Any
    model, processor = load(str(checkpoint))
    model.update(tree_map(lambda weight: weight.astype(mx.float32), model.parameters()))
    if zero_deepstack:
        for merger in model.vision_tower.deepstack_merger_list:
            merger.linear_fc2.update(tree_map(mx.zeros_like, merger.linear_fc2.parameters()))

    def ask(images: list[Image.Image], question: str) -> str:
        prompt = apply_chat_template(processor, model.config, question, num_images=len(images))
        answer = generate(
            model, processor, prompt, images, max_tokens=MAX_TOKENS, temperature=0.0, verbose=False
        )
        return str(answer.text)

    return ask


def evaluate(ask: Ask, folder: Path, swap_images: bool = False) -> tuple[list[Result], Expected]:
    """Return the answers to every question on the screens of `folder`, and what is true.

    With `swap_images` each frame is shown as the one after it.
    """
    names = sorted(path.name for path in folder.glob("*.png"))
    shift = 1 if swap_images else 0
    shown = {name: names[(index + shift) % len(names)] for index, name in enumerate(names)}
    results = []
    for index, name in enumerate(names):
        asked: list[tuple[tuple[str, ...], str]] = [((name,), texts[0]) for texts in QUESTIONS.values()]
        if index:
            asked.append(((names[index - 1], name), CHANGE_QUESTION[0]))
        for frames, question in asked:
            images = [Image.open(folder / shown[frame]).convert("RGB") for frame in frames]
            results.append(Result(frames, question, ask(images, question)))
    return results, read_truth(folder / "truth.csv")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m seeonce.demo.evaluate", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument(
        "--folder", type=Path, default=Path("build/demo-held-out"), help="screens, drawn if empty"
    )
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=FIRST_HELD_OUT_SEED)
    parser.add_argument("--zero-deepstack", action="store_true")
    parser.add_argument("--swap-images", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.folder / f"{arguments.seed}_{arguments.count}"
    if not (folder / "truth.csv").exists():
        write_folder(folder, arguments.count, arguments.seed)
    started = time.monotonic()
    ask = live_decoder(arguments.checkpoint, arguments.zero_deepstack)
    results, expected = evaluate(ask, folder, arguments.swap_images)
    for question, true in score(results, expected).items():
        print(f"{question:12} {sum(true):4} of {len(true):4} true, {mean(true):.1%}")
    print(f"{len(results)} answers in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
