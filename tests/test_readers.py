"""What docs/readers.md shows works: entries by zarr, and in place of pictures in transformers."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bucket_samples import Place, new_place
from conftest import Run
from live_mlx_vlm import draw_noise
from PIL import Image
from store_samples import features

from cache.base.home import Home
from cache.bucket import BucketStore
from cache.manifest import list_manifests, read_manifest
from checkpoint.folder import find_checkpoint
from checkpoint.identity import image_processor

PAGE = (Path(__file__).parents[1] / "docs" / "readers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def page(*numbers: int) -> dict[str, Any]:
    """Run blocks of the page; return the names that they define."""
    names: dict[str, Any] = {}
    for number in numbers:
        exec(BLOCKS[number], names)
    return names


def test_the_page_reads_an_entry_of_a_bucket_by_zarr(tmp_path: Path) -> None:
    place = new_place("file", tmp_path)
    assert isinstance(place.store, BucketStore)
    stored = features(1)
    stored.array[:] = stored.array & 0x3FFF  # no NaN, which equals nothing
    key = Place(place.store).write(1, stored)
    about, read = page(0)["read_entry"](place.store.objects.address, key.hex)
    assert about["key"] == key.hex
    assert np.array_equal(read, (stored.array.astype(np.uint32) << 16).view(np.float32))


@pytest.mark.campaign
def test_transformers_gives_the_same_logits_with_an_entry_as_with_the_picture(
    plain: Path, home: Path, run: Run, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import Qwen3VLForConditionalGeneration

    images = draw_noise(tmp_path / "images", 2)
    assert run("seeonce encode", images, "--model", plain).code == 0
    model = Qwen3VLForConditionalGeneration.from_pretrained(plain, dtype=torch.float32).eval()
    processor = image_processor(find_checkpoint(str(plain), print))
    manifest = read_manifest(list_manifests(Home(home))[0].path)
    names = page(0, 1)
    ids = json.loads((plain / "config.json").read_text())
    for row, picture in zip(manifest.frames, sorted(images.iterdir()), strict=True):
        about, read = names["read_entry"](f"file://{home}/store", row.key.hex)
        words = [5, 6, ids["vision_start_token_id"], *[ids["image_token_id"]] * row.num_tokens, 7, 8, 9]
        tokens = torch.tensor([words])
        live = processor(images=[Image.open(picture).convert("RGB")])
        with torch.no_grad():
            ours = names["logits_of"](model, tokens, about, read)
            theirs = model(
                input_ids=tokens,
                pixel_values=torch.from_numpy(np.asarray(live["pixel_values"])),
                image_grid_thw=torch.tensor(np.asarray(live["image_grid_thw"])),
                mm_token_type_ids=(tokens == ids["image_token_id"]).int(),
            ).logits
            without = names["logits_of"](
                model, tokens, about, read * (np.arange(len(read)) == 0)[:, None, None]
            )
        print(float((ours - theirs).abs().max()), float((without - theirs).abs().max()))
        assert float((ours - theirs).abs().max()) < 1e-3
        assert float((without - theirs).abs().max()) > 0.1
