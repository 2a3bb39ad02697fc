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

from seeonce.demo.paint import paint
from seeonce.demo.questions import CHANGE_QUESTION, QUESTIONS, answers, change_answer
from seeonce.demo.scene import sample_scene
from seeonce.demo.screens import FIRST_HELD_OUT_SEED, size_of

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


def evaluate(ask: Ask, seeds: range, swap_images: bool = False) -> dict[str, list[bool]]:
    """Ask every question about the screens of `seeds`; return by question whether each answer is true.

    An answer is true when it is the expected text exactly, surrounding white space apart. With
    `swap_images` each screen is shown as the one after it.
    """
    scenes = [sample_scene(seed, size_of(seed)) for seed in seeds]
    shown = [paint(scene) for scene in scenes]
    if swap_images:
        shown = [*shown[1:], shown[0]]
    verdicts: dict[str, list[bool]] = {name: [] for name in (*QUESTIONS, "change")}
    for index, scene in enumerate(scenes):
        for name, true in answers(scene).items():
            verdicts[name].append(ask([shown[index]], QUESTIONS[name][0]).strip() == true)
        if index:
            said = ask(shown[index - 1 : index + 1], CHANGE_QUESTION[0])
            verdicts["change"].append(said.strip() == change_answer(scenes[index - 1], scene))
    return verdicts


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m seeonce.demo.evaluate", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=FIRST_HELD_OUT_SEED)
    parser.add_argument("--zero-deepstack", action="store_true")
    parser.add_argument("--swap-images", action="store_true")
    arguments = parser.parse_args()
    started = time.monotonic()
    ask = live_decoder(arguments.checkpoint, arguments.zero_deepstack)
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    verdicts = evaluate(ask, seeds, arguments.swap_images)
    for question, true in verdicts.items():
        print(f"{question:12} {sum(true):4} of {len(true):4} true, {mean(true):.1%}")
    print(f"{sum(map(len, verdicts.values()))} answers in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
