"""Other references: transformers in PyTorch, and mlx-vlm as its users call it."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import MAX_PIXELS, MakeCheckpoint, Run
from live_mlx_vlm import draw_noise
from tiny_checkpoint import Tiny

from cache.base.home import Home
from cache.manifest import list_manifests, read_manifest
from cache.store import Durability, Store

CHECKPOINTS = {
    "plain": Tiny(max_pixels=MAX_PIXELS),
    "vision8": Tiny(max_pixels=MAX_PIXELS, vision_bits=8),
    "mlx": Tiny(max_pixels=MAX_PIXELS, layout="mlx"),
    "qwen3_5": Tiny(max_pixels=MAX_PIXELS, family="qwen3_5"),
    "qwen3_5 moe": Tiny(max_pixels=MAX_PIXELS, family="qwen3_5", moe=True),
}


@pytest.mark.campaign
def test_transformers_finds_the_other_gelu_of_mlx_vlms_moe_tower(
    run: Run, tmp_path: Path, checkpoint_of: MakeCheckpoint
) -> None:
    """mlx-vlm 0.7.10 has tanh where transformers has erf and the other way round: it must be seen."""
    pytest.importorskip("torch")
    checkpoint = checkpoint_of(Tiny(max_pixels=MAX_PIXELS, moe=True))
    images = draw_noise(tmp_path / "images", 1)
    run("seeonce encode", images, "--model", checkpoint)
    ended = run(
        "verify-cache --level embeddings --against transformers --json", images, "--model", checkpoint
    )
    check = ended.json["checks"][2]
    assert (ended.code, check["equal"]) == (1, False)
    assert all(1e-5 < layer["relative"] < 1e-3 for layer in check["layers"])


@pytest.mark.parametrize(
    "name",
    ["plain", *(pytest.param(n, marks=pytest.mark.campaign) for n in CHECKPOINTS if n != "plain")],
)
def test_transformers_gives_the_same_features(
    name: str, run: Run, tmp_path: Path, checkpoint_of: MakeCheckpoint
) -> None:
    pytest.importorskip("torch")
    checkpoint, images = checkpoint_of(CHECKPOINTS[name]), draw_noise(tmp_path / "images", 3)
    run("seeonce encode", images, "--model", checkpoint)
    ended = run(
        "verify-cache --level embeddings --against transformers --json", images, "--model", checkpoint
    )
    check = ended.json["checks"][2]
    print(name, [layer["relative"] for layer in check["layers"]])
    assert (ended.code, check["name"], check["equal"], check["num_checked"]) == (0, "transformers", True, 3)
    assert all(layer["relative"] < 1e-5 for layer in check["layers"])


def test_transformers_objects_to_other_features(run: Run, tmp_path: Path, home: Path, plain: Path) -> None:
    pytest.importorskip("torch")
    images = draw_noise(tmp_path / "images", 1)
    run("seeonce encode", images, "--model", plain)
    manifest = read_manifest(list_manifests(Home(home))[0].path)
    store = Store.open(Home(home), durability=Durability.none)
    frame = manifest.frames[0]
    features, info = store.read(frame.key), store.peek(frame.key)
    assert features is not None
    assert info is not None
    shutil.rmtree(store.path / "frames" / frame.key.hex[:2] / frame.key.hex)
    array = np.array(features.array) * np.float32(1.001)
    store.write(frame.pixels, manifest.encoder, replace(features, array=array), info.provenance)
    ended = run("verify-cache --level embeddings --against transformers --json", images, "--model", plain)
    assert [check["equal"] for check in ended.json["checks"]] == [True, False, False]


def test_without_torch_the_line_says_what_to_install(
    run: Run, tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    images = draw_noise(tmp_path / "images", 1)
    run("seeonce encode", images, "--model", plain)
    ended = run("verify-cache --level embeddings --against transformers", images, "--model", plain)
    assert ended.code == 2
    assert "pip install 'seeonce[transformers-reference]'" in ended.out


def test_whole_answers_are_those_of_stream_generate(run: Run, tmp_path: Path, plain: Path) -> None:
    images = draw_noise(tmp_path / "images", 2)
    run("seeonce encode", images, "--model", plain)
    ended = run("verify-cache --against mlx-vlm --json", images, "--model", plain)
    assert (ended.code, ended.json["against"]) == (0, "mlx-vlm")
    assert ended.json["checks"][2]["logprobs"]["num_answers"] == 5


def test_a_reference_that_the_level_does_not_ask_is_refused(run: Run, home: Path) -> None:
    ended = run("verify-cache demo --level embeddings --against mlx-vlm")
    assert (ended.code, "--level outputs" in ended.error) == (2, True)
