"""Which seeds are whose, and folders of drawn screens with their truth for outside judges.

    python -m seeonce.demo.screens OUT --count 200 --seed 1000000

writes 200 screens that training never saw, named like the frames of a recording, and
`truth.csv` beside them, as `seeonce score` reads it.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from seeonce.demo.paint import paint
from seeonce.demo.questions import QUESTIONS, answers
from seeonce.demo.scene import Scene, sample_scene

SIZES = ((1280, 800), (1024, 768))

# Which seeds are whose. Training and validation never leave their ranges.
TRAINING_SEEDS = range(100_000)
VALIDATION_SEEDS = range(500_000, 501_000)
RECORDING_SEED = 700_000
FIRST_HELD_OUT_SEED = 1_000_000


def size_of(seed: int) -> tuple[int, int]:
    """Return the size used for `seed` in training and in folders: every third couple is 4:3."""
    return SIZES[1] if seed // 2 % 3 == 2 else SIZES[0]


def write_folder(folder: Path, count: int, seed: int, interval_s: float = 10.0) -> None:
    """Write the screens of `seed` and the `count - 1` seeds after it, with truth.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [frame_name(index, index * interval_s) for index in range(count)]
    scenes = [sample_scene(number, size_of(number)) for number in range(seed, seed + count)]
    for name, scene in zip(names, scenes, strict=True):
        paint(scene).save(folder / name)
    write_truth(folder, names, scenes)


def frame_name(index: int, time_s: float) -> str:
    """Return a frame's file name: index and time in seconds."""
    return f"{index:04d}_{time_s:.1f}s.png"


def write_truth(folder: Path, names: Sequence[str], scenes: Sequence[Scene]) -> None:
    """Write `truth.csv` into `folder`: a row a frame and text of a question, with the true answer.

    Rows whose answer names applications or topics have them in columns of their own, too.
    """
    with (folder / "truth.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("frame", "prompt", "text", "apps", "topics"))
        for name, scene in zip(names, scenes, strict=True):
            said = answers(scene)
            for question, texts in QUESTIONS.items():
                apps = said["apps"] if question in ("description", "apps") else ""
                topics = said["topics"] if question in ("description", "topics") else ""
                writer.writerows((name, text, said[question], apps, topics) for text in texts)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m seeonce.demo.screens", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="where to write the pictures and truth.csv")
    parser.add_argument("--count", type=int, default=200, help="how many screens (default 200)")
    parser.add_argument(
        "--seed",
        type=int,
        default=FIRST_HELD_OUT_SEED,
        help=f"seed of the first screen; training never used {FIRST_HELD_OUT_SEED} and above (the default)",
    )
    arguments = parser.parse_args()
    write_folder(arguments.folder, arguments.count, arguments.seed)
    print(f"wrote {arguments.count} screens and truth.csv to {arguments.folder}")


if __name__ == "__main__":
    main()
