"""What changes between two looks never gets another's name: pictures, preprocessing, a run's output."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from live_mlx_vlm import draw_noise
from PIL import Image
from tiny_checkpoint import Tiny, write_checkpoint

from cache.base.errors import CheckpointError, InputError, NotEncodedError
from cache.base.home import Home
from cache.key import pixel_digest
from cache.pixel_index import PixelIndex
from cache.store import Durability, Store
from checkpoint.folder import find_checkpoint
from checkpoint.identity import encoder_spec
from precompute.encoder import VisionEncoder
from precompute.patches import cut_into_patches
from precompute.pipeline import encode_recording
from seeonce import DescribeOptions, EncodeOptions, describe, encode
from seeonce.runs.prompts import Prompt
from sources.folder import open_folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), Tiny(max_pixels=65536))


def test_a_picture_that_changes_while_the_encoder_loads_is_encoded_as_it_was_read(
    checkpoint: Path, tmp_path: Path
) -> None:
    images = draw_noise(tmp_path / "images", 3)
    with Image.open(images / "000.png") as picture:
        before = picture.convert("RGB")
    found, home = find_checkpoint(str(checkpoint), print), Home(tmp_path / "home")
    store = Store.open(home, durability=Durability.none)

    def load() -> VisionEncoder:
        shutil.copy(images / "002.png", images / "000.png")
        return VisionEncoder(found, spec)

    with PixelIndex(home) as index:
        spec = encoder_spec(found, index)
        manifest = encode_recording(open_folder(images), spec, store, index, load).manifest
    first, *_ = manifest.frames
    assert first.pixels == pixel_digest(np.asarray(before))
    encoder = VisionEncoder(found, spec)
    stored = store.read(first.key)
    assert stored is not None
    assert np.array_equal(stored.array, encoder.encode(cut_into_patches(before, spec.preprocessing)).array)


def test_other_preprocessing_is_another_encoder_to_describe(checkpoint: Path, tmp_path: Path) -> None:
    images, home = draw_noise(tmp_path / "images", 1), Home(tmp_path / "home")
    encode(EncodeOptions(str(images), str(checkpoint)), home)
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    settings = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.4] * 3}))
    options = DescribeOptions((Prompt("What?"),), str(images), str(other))
    with pytest.raises(NotEncodedError, match="seeonce encode"):
        describe(options, home)


def test_a_run_that_fails_before_its_first_answer_keeps_earlier_output(
    checkpoint: Path, tmp_path: Path
) -> None:
    images, home = draw_noise(tmp_path / "images", 1), Home(tmp_path / "home")
    model = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    encode(EncodeOptions(str(images), str(model)), home)
    (model / "tokenizer.json").unlink()
    (tmp_path / "answers.jsonl").write_text("earlier\n")
    options = DescribeOptions((Prompt("What?"),), str(images), str(model), tmp_path / "answers.jsonl")
    with pytest.raises(CheckpointError, match="tokenizer"):
        describe(options, home)
    assert (tmp_path / "answers.jsonl").read_text() == "earlier\n"


def test_a_recording_named_by_its_id_keeps_its_limit(checkpoint: Path, tmp_path: Path) -> None:
    images, home = draw_noise(tmp_path / "images", 4), Home(tmp_path / "home")
    first = encode(EncodeOptions(str(images), str(checkpoint), limit=2), home)
    again = encode(EncodeOptions(first.manifest.recording.id, str(checkpoint)), home)
    assert (len(again.manifest.frames), again.progress.num_new) == (2, 0)


def test_an_empty_recording_name_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    images, home = draw_noise(tmp_path / "images", 1), Home(tmp_path / "home")
    encode(EncodeOptions(str(images), str(checkpoint)), home)
    with pytest.raises(InputError, match="RECORDING is empty"):
        describe(DescribeOptions((Prompt("What?"),), "", str(checkpoint)), home)
