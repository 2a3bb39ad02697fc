"""Pass one: the features are those of the live vision tower, and nothing is done twice."""

import dataclasses
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoint_edits import as_transformers_5, copy_of
from conftest import MAX_PIXELS, MakeCheckpoint
from mlx_vlm import load
from mlx_vlm.utils import load_image
from PIL import Image
from screens import folder_of, noise, odd_pictures
from store_samples import new_store
from tiny_checkpoint import Tiny

from cache import pixel_index
from cache.base.errors import CheckpointError, StoreError
from cache.base.home import Home
from cache.base.listener import Listener
from cache.commit import stage_entry
from cache.manifest import Manifest, list_manifests
from cache.pixel_index import PixelIndex
from cache.store import Durability, Store
from checkpoint.folder import find_checkpoint
from checkpoint.identity import encoder_spec
from precompute.cost import not_encoded
from precompute.encoder import VisionEncoder
from precompute.options import EncodeOptions
from precompute.pass_one import encode
from precompute.pipeline import EncodeResult, encode_recording
from precompute.writer import EntryWriter
from seeonce.verifier.differences import as_float32
from sources import pixels
from sources.folder import open_folder


class Lines(Listener):
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.nums_done: list[int] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def show(self, what: str, unit: str, num_done: int, num_all: int, note: str = "") -> None:
        self.nums_done.append(num_done)


@pytest.fixture
def store(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store that remembers files at once, however new they are."""
    monkeypatch.setattr(pixel_index, "RACY_NS", 0)
    made = new_store(tmp_path)
    assert made.home.path == home
    return made


def _encode(
    images: Path,
    checkpoint: Path,
    home: Path,
    lines: Lines | None = None,
    max_pixels: int | None = None,
    durability: Durability = Durability.none,
) -> EncodeResult:
    options = EncodeOptions(str(images), str(checkpoint), max_pixels, durability=durability)
    return encode(Home(home), options, lines or Lines())


def _live(model: Any, processor: Any, image: Path) -> np.ndarray[Any, Any]:
    """Return what mlx-vlm's own processor and vision tower make of a file: merged, DeepStack."""
    inputs = processor.image_processor(images=[load_image(str(image))])
    values = mx.array(inputs["pixel_values"]).astype(model.vision_tower.patch_embed.proj.weight.dtype)
    merged, deepstack = model.vision_tower(values, mx.array(inputs["image_grid_thw"]))
    return np.array(mx.stack([merged, *deepstack]).astype(mx.float32))


def _assert_live(
    manifest: Manifest, store: Store, checkpoint: Path, dtype: str, max_pixels: int | None = None
) -> None:
    model, processor = load(str(checkpoint), lazy=True)
    model.set_dtype(getattr(mx, dtype))
    if max_pixels is not None:
        processor.image_processor.max_pixels = max_pixels
    for frame in manifest.frames:
        stored = store.read(frame.key)
        assert stored is not None
        live = _live(model, processor, Path(frame.source))
        assert as_float32(stored.array.reshape(live.shape)).tobytes() == live.tobytes(), frame.source


# --- the features


@pytest.mark.parametrize(
    "name", ["plain", pytest.param("moe", marks=pytest.mark.campaign), "vision_4bit", "mlx_layout"]
)
def test_features_are_the_live_towers_bit_for_bit(
    name: str, store: Store, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    checkpoint: Path = request.getfixturevalue(name)
    result = _encode(odd_pictures(tmp_path / "odd"), checkpoint, store.home.path)
    assert result.progress.num_new == 7
    _assert_live(result.manifest, store, checkpoint, "float32")


def test_features_in_bfloat16_are_the_live_towers_bit_for_bit(
    bfloat16: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEONCE_DTYPE", "bfloat16")
    result = _encode(odd_pictures(tmp_path / "odd"), bfloat16, store.home.path)
    assert {store.peek(frame.key).dtype for frame in result.manifest.frames} == {"bfloat16"}  # type: ignore[union-attr]
    _assert_live(result.manifest, store, bfloat16, "bfloat16")


def test_a_pixel_limit_gives_what_the_live_processor_gives_under_it(
    plain: Path, store: Store, tmp_path: Path
) -> None:
    result = _encode(odd_pictures(tmp_path / "odd"), plain, store.home.path, max_pixels=8192)
    assert max(frame.num_tokens for frame in result.manifest.frames) <= 8
    _assert_live(result.manifest, store, plain, "float32", max_pixels=8192)


def test_a_checkpoint_as_transformers_5_writes_it_shares_entries(
    plain: Path, store: Store, tmp_path: Path
) -> None:
    images = folder_of(tmp_path / "images")
    first = _encode(images, plain, store.home.path)
    five = as_transformers_5(copy_of(plain, tmp_path / "five"))
    second = _encode(images, five, store.home.path)
    assert (second.progress.num_new, second.manifest.encoder) == (0, first.manifest.encoder)


# --- nothing twice


def test_a_second_run_encodes_and_decodes_nothing_and_says_so(
    plain: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = folder_of(tmp_path / "images")
    first = _encode(images, plain, store.home.path)
    monkeypatch.setattr(pixels, "read_image", lambda path: pytest.fail(f"decoded {path}"))
    monkeypatch.setattr("precompute.encoder.VisionEncoder", lambda *_: pytest.fail("loaded the encoder"))
    second = _encode(images, plain, store.home.path, lines := Lines())
    assert (second.progress.num_hits, second.progress.num_new) == (3, 0)
    assert second.manifest.frames == first.manifest.frames
    assert "all 3 frames are encoded already; nothing to do" in "\n".join(lines.lines)
    _encode(next(images.glob("*.png")), plain, store.home.path, lines := Lines())
    assert "the frame is encoded already; nothing to do" in "\n".join(lines.lines)


def test_repeated_pictures_and_other_formats_of_one_are_one_entry(
    plain: Path, store: Store, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "b.png", "c.webp"):
        noise(1).save(images / name, lossless=True)
    noise(2).save(images / "d.png")
    result = _encode(images, plain, store.home.path)
    assert (result.progress.num_new, result.progress.num_hits, len(list(store.keys()))) == (2, 2, 2)
    assert len({frame.key for frame in result.manifest.frames[:3]}) == 1


def test_the_same_pixels_in_another_shape_are_another_entry(
    plain: Path, store: Store, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    wide = noise(1, 128, 64)
    wide.save(images / "wide.png")
    Image.frombytes("RGB", (64, 128), wide.tobytes()).save(images / "tall.png")
    assert _encode(images, plain, store.home.path).progress.num_new == 2


@pytest.mark.parametrize("name", ["text_4bit", "mlx_layout"])
def test_checkpoints_with_the_same_vision_tower_share_entries(
    name: str, plain: Path, store: Store, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    images = folder_of(tmp_path / "images")
    _encode(images, plain, store.home.path)
    again = _encode(images, request.getfixturevalue(name), store.home.path)
    assert (again.progress.num_new, again.progress.num_hits) == (0, 3)


def test_another_encoder_has_entries_of_its_own(
    plain: Path, checkpoint_of: MakeCheckpoint, store: Store, tmp_path: Path
) -> None:
    images = folder_of(tmp_path / "images")
    _encode(images, plain, store.home.path)
    other = checkpoint_of(Tiny(max_pixels=MAX_PIXELS, seed=1))
    assert _encode(images, other, store.home.path).progress.num_new == 3
    assert _encode(images, plain, store.home.path, max_pixels=4096).progress.num_new == 3
    assert len(list(store.keys())) == 9


def test_a_changed_file_is_encoded_again_and_an_added_one_alone(
    plain: Path, store: Store, tmp_path: Path
) -> None:
    images = folder_of(tmp_path / "images")
    _encode(images, plain, store.home.path)
    noise(50).save(images / "001_10.0s.png")
    noise(51).save(images / "003_30.0s.png")
    result = _encode(images, plain, store.home.path)
    assert (result.progress.num_new, result.progress.num_hits, len(result.manifest.frames)) == (2, 2, 4)


def test_a_damaged_entry_is_encoded_again(plain: Path, store: Store, tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images")
    first = _encode(images, plain, store.home.path)
    key = first.manifest.frames[1].key
    (store.path / "frames" / key.hex[:2] / key.hex / "zarr.json").write_text("{}")
    assert _encode(images, plain, store.home.path).progress.num_new == 1
    assert store.check(key) is None


def test_two_encodes_at_once_leave_one_whole_store(plain: Path, store: Store, tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", 4)
    checkpoint = find_checkpoint(str(plain), print)
    with PixelIndex(store.home) as index:
        spec = encoder_spec(checkpoint, index)

        def once(_: int) -> EncodeResult:
            return encode_recording(
                open_folder(images), spec, store, index, lambda: VisionEncoder(checkpoint, spec)
            )

        once(0)
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(once, range(2)))
    assert results[0].manifest.frames == results[1].manifest.frames
    assert all(store.check(key) is None for key in list(store.keys()))


# --- what goes wrong


def _with_bad_ones(images: Path) -> Path:
    """Put a truncated, an absurd, an empty and a far too large picture among three good ones."""
    folder_of(images)
    whole = (images / "000_0.0s.png").read_bytes()
    (images / "004_40.0s.png").write_bytes(whole[: len(whole) // 2])
    noise(9, 2001, 4).save(images / "005_50.0s.png")
    (images / "006_60.0s.png").write_bytes(b"")
    bomb = bytearray(whole)
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    (images / "007_70.0s.png").write_bytes(bomb)
    (images / "008_80.0s.png").write_text("no picture at all")
    return images


def test_bad_pictures_are_skipped_by_name_and_the_others_done(
    plain: Path, store: Store, tmp_path: Path
) -> None:
    result = _encode(_with_bad_ones(tmp_path / "images"), plain, store.home.path)
    assert [frame.index for frame in result.manifest.frames] == [0, 1, 2]
    assert [frame.index for frame in result.manifest.skipped] == [3, 4, 5, 6, 7]
    assert all(frame.source in frame.reason for frame in result.manifest.skipped)
    assert all("\n" not in frame.reason for frame in result.manifest.skipped)
    assert result.manifest.complete


def test_a_picture_that_became_readable_is_done_in_the_next_run(
    plain: Path, store: Store, tmp_path: Path
) -> None:
    images = folder_of(tmp_path / "images")
    (images / "001_10.0s.png").write_bytes(b"half")
    assert len(_encode(images, plain, store.home.path).manifest.skipped) == 1
    noise(1).save(images / "001_10.0s.png")
    result = _encode(images, plain, store.home.path)
    assert (result.progress.num_new, result.manifest.skipped) == (1, ())


def test_too_small_a_disk_is_refused_before_anything_is_written(
    plain: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "free_bytes", lambda _: 1000)
    with pytest.raises(
        StoreError, match=r"Encoding needs up to .* are free .* lower --max-pixels or --limit"
    ):
        _encode(folder_of(tmp_path / "images"), plain, store.home.path)
    assert not list(store.keys())
    assert not list((store.path / "recordings").iterdir())


def test_a_recording_that_was_moved_needs_no_space(
    plain: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = folder_of(tmp_path / "images")
    _encode(images, plain, store.home.path)
    moved = folder_of(tmp_path / "moved")
    monkeypatch.setattr(Store, "free_bytes", lambda _: 1000)
    assert _encode(moved, plain, store.home.path).progress.num_hits == 3
    noise(77).save(moved / "003_30.0s.png")
    with pytest.raises(StoreError, match=r"Encoding needs up to 6\.1 kB"):
        _encode(moved, plain, store.home.path)


def test_a_disk_that_fills_up_keeps_what_was_committed(
    plain: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [2]

    def filling_up(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return stage_entry(*arguments)

    monkeypatch.setattr("cache.commit.stage_entry", filling_up)
    images = folder_of(tmp_path / "images", 6)
    with pytest.raises(StoreError, match=r"No space left on device; .* free some space"):
        _encode(images, plain, store.home.path)
    monkeypatch.undo()
    assert len(list(store.keys())) == 2
    assert not list((store.path / "tmp").iterdir())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert _encode(images, plain, store.home.path).progress.num_hits == 2


def test_an_encoder_that_does_not_load_ends_the_run_without_hanging(
    plain: Path, store: Store, tmp_path: Path
) -> None:
    checkpoint = find_checkpoint(str(plain), print)

    def broken() -> VisionEncoder:
        raise CheckpointError("no such luck")

    with PixelIndex(store.home) as index:
        spec = encoder_spec(checkpoint, index)
        with pytest.raises(CheckpointError, match="no such luck"):
            encode_recording(open_folder(folder_of(tmp_path / "images", 20)), spec, store, index, broken)


def test_ctrl_c_keeps_the_frames_that_are_done_and_the_next_run_goes_on(
    plain: Path, store: Store, tmp_path: Path
) -> None:
    images = folder_of(tmp_path / "images", 6)

    class Stops(Lines):
        def show(self, what: str, unit: str, num_done: int, num_all: int, note: str = "") -> None:
            super().show(what, unit, num_done, num_all, note)
            if len(self.nums_done) == 3:
                raise KeyboardInterrupt

    first = _encode(images, plain, store.home.path, Stops())
    assert first.interrupted
    assert not first.manifest.complete
    assert len(first.manifest.frames) == len(list(store.keys())) == 3
    second = _encode(images, plain, store.home.path)
    assert (second.progress.num_hits, second.progress.num_new, second.manifest.complete) == (3, 3, True)


def test_a_manifest_never_names_an_entry_that_is_not_acknowledged(
    plain: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C twice: the second one comes while the writer still works."""
    finish = EntryWriter.__exit__

    def stopped_before_the_last(self: EntryWriter, *_: Any) -> None:
        finish(self, None)
        last = list(self.acknowledged())[:-1]
        monkeypatch.setattr(self, "acknowledged", lambda: iter(last))
        raise KeyboardInterrupt

    monkeypatch.setattr(EntryWriter, "__exit__", stopped_before_the_last)
    durable = _encode(folder_of(tmp_path / "images", 5), plain, store.home.path)
    assert durable.interrupted
    assert [frame.index for frame in durable.manifest.frames] == [0, 1, 2, 3]
    assert durable.progress.num_done == 4


def test_a_hit_that_another_process_just_wrote_is_made_durable_before_it_is_named(
    plain: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = folder_of(tmp_path / "images")
    _encode(images, plain, store.home.path, durability=Durability.none)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    _encode(images, plain, store.home.path, durability=Durability.batch)
    entries = [store.path / "frames" / key.hex[:2] / key.hex for key in store.keys()]  # noqa: SIM118
    needed = {path.stat().st_ino for entry in entries for path in (entry.parent, entry, *entry.iterdir())}
    assert needed <= set(synced)


def test_an_interrupted_run_does_not_replace_a_manifest_that_has_more(
    plain: Path, store: Store, tmp_path: Path
) -> None:
    images = folder_of(tmp_path / "images", 4)
    _encode(images, plain, store.home.path)

    class Stops(Lines):
        def show(self, what: str, unit: str, num_done: int, num_all: int, note: str = "") -> None:
            raise KeyboardInterrupt

    assert _encode(images, plain, store.home.path, Stops()).interrupted
    assert [ref.num_frames for ref in list_manifests(store.home)] == [4]


# --- what is told


def test_the_cost_is_told_before_it_starts(plain: Path, store: Store, tmp_path: Path) -> None:
    result = _encode(folder_of(tmp_path / "images"), plain, store.home.path, lines := Lines())
    assert "3 frames to look at, about 6 tokens and 6.1 kB each; writes at most" in "\n".join(lines.lines)
    assert result.progress.num_bytes == 3 * 6 * 4 * 64 * 4
    assert lines.nums_done[-1] == 3


def test_a_coarse_vision_tower_is_warned_about(vision_4bit: Path, store: Store, tmp_path: Path) -> None:
    _encode(folder_of(tmp_path / "images"), vision_4bit, store.home.path, lines := Lines())
    assert any("quantised to 4 bits, which destroys small text" in line for line in lines.lines)


def test_a_plan_tells_known_frames_from_others_without_decoding(
    plain: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = folder_of(tmp_path / "images")
    spec = _encode(images, plain, store.home.path).manifest.encoder
    noise(99).save(images / "003_30.0s.png")
    monkeypatch.setattr(pixels, "read_image", lambda path: pytest.fail(f"decoded {path}"))
    with PixelIndex(store.home) as index:
        first = not_encoded(open_folder(images).frames(), spec, store, index)
        other = not_encoded(open_folder(images).frames(), replace(spec, epoch=spec.epoch + 1), store, index)
    assert [frame.index for frame in first] == [3]
    assert len(other) == 4


def test_a_manifest_tells_all_that_pass_two_needs(plain: Path, store: Store, tmp_path: Path) -> None:
    manifest = _encode(folder_of(tmp_path / "images"), plain, store.home.path).manifest
    assert [(f.index, f.timestamp_s, f.width, f.height) for f in manifest.frames] == [
        (0, 0.0, 96, 64), (1, 10.0, 96, 64), (2, 20.0, 96, 64)
    ]  # fmt: skip
    assert all(f.grid_thw == (1, 4, 6) and f.num_tokens == 6 for f in manifest.frames)
    assert dataclasses.replace(manifest, frames=()).problems() == []
