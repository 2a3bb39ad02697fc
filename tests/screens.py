"""Small pictures for recordings: noise, so that each is its own, in shapes and formats that occur."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent


def noise(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    """Draw a picture that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def folder_of(path: Path, num_frames: int = 3, first: int = 0) -> Path:
    """Write a recording of noise and return its folder."""
    path.mkdir(parents=True, exist_ok=True)
    for index in range(num_frames):
        noise(first + index).save(path / f"{index:03}_{index * 10}.0s.png")
    return path


def odd_pictures(folder: Path) -> Path:
    """Write pictures that are easy to get wrong: odd sizes, alpha, a palette, turned by EXIF."""
    folder.mkdir()
    noise(0, 97, 61).save(folder / "odd.png")
    noise(1, 33, 200).save(folder / "tall.png")
    alpha = noise(2, 80, 64).convert("RGBA")
    alpha.putalpha(noise(3, 80, 64).convert("L"))
    alpha.save(folder / "alpha.png")
    noise(4, 70, 50).quantize(32).save(folder / "palette.png", transparency=3)
    turned = Image.Exif()
    turned[0x0112] = 6
    noise(5, 90, 40).save(folder / "turned.jpg", exif=turned)
    noise(6, 20, 30).convert("L").save(folder / "small-grey.webp", lossless=True)
    noise(7, 600, 500).save(folder / "wider-than-the-limit.png")
    return folder


def python(statements: str, *arguments: object, **environ: str) -> subprocess.Popen[str]:
    """Start a Python of its own; the process must not outlive the test."""
    return subprocess.Popen(
        [sys.executable, "-c", statements, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environ, cwd=ROOT,
        preexec_fn=_heed_interrupts,
    )  # fmt: skip


def _heed_interrupts() -> None:
    """Take SIGINT as usual: what a shell starts in the background inherits that it is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


_SLOWLY = """
import time
from seeonce.runs.writer import RunWriter
write = RunWriter.write
RunWriter.write = lambda *given: (write(*given), time.sleep(0.1))
from seeonce.__main__ import main
main()
"""


def stopped(home: Path, num_lines: int, by: signal.Signals, *words: object) -> int:
    """Start a command and stop it when a run has so many results; return how it ended.

    Results come a tenth of a second apart, so that it is stopped in the middle.
    """
    process = python(_SLOWLY, *words, SEEONCE_HOME=str(home))
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        found = [path.read_bytes().count(b"\n") for path in home.glob("runs/*/results.jsonl")]
        if found and max(found) >= num_lines:
            break
        time.sleep(0.005)
    process.send_signal(by)
    process.communicate(timeout=300)
    return process.returncode
