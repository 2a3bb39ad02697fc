"""verify-cache passes on a right store, and objects to every fault that is put into a copy of it."""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from live_mlx_vlm import draw_noise, encode_folder
from tiny_checkpoint import Tiny, write_checkpoint

from cache.base.errors import InputError
from cache.base.home import Home
from cache.base.listener import Listener
from cache.entry import Features, Provenance
from cache.manifest import FrameEntry, Manifest, list_manifests, read_manifest, write_manifest
from cache.store import Durability, Store
from checkpoint.config import Checkpoint
from infer.limits import BatchLimits
from precompute.encoder import VisionEncoder
from precompute.live import LiveFrames
from precompute.patches import value_table
from seeonce.commands.verify_report import terminal_lines
from seeonce.verifier import levels
from seeonce.verifier.levels import VerifyOptions
from seeonce.verifier.reference import LiveReference, Picture
from seeonce.verifier.report import Level, Report
from seeonce.verifier.verify import verify

OTHER = Provenance("0.1", "0.1", "0.1", "gpu", "M9", "other")
CHECKPOINTS = {
    "plain": Tiny(max_pixels=65536),
    "moe": Tiny(max_pixels=65536, moe=True),
    "text4": Tiny(max_pixels=65536, text_bits=4),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Recorded:
    """An encoded recording of three frames of one size and one of another."""

    checkpoint: Path
    images: Path
    home: Path

    def copy(self, place: Path) -> "Recorded":
        """Copy the home, so that a fault does not reach the twin."""
        shutil.copytree(self.home, place)
        return dataclasses.replace(self, home=place)

    def verify(
        self,
        level: Level = Level.outputs,
        sample: str = "all",
        tolerance: float | None = None,
        limits: BatchLimits | None = None,
        logprob_tolerance: float | None = None,
    ) -> Report:
        """Run the verifier over the home."""
        options = VerifyOptions(
            str(self.images), level, sample, str(self.checkpoint), tolerance=tolerance,
            logprob_tolerance=logprob_tolerance, limits=limits or BatchLimits(),
        )  # fmt: skip
        return verify(Home(self.home), options, Listener())

    def manifest(self) -> Manifest:
        """Return the one manifest."""
        return read_manifest(list_manifests(Home(self.home))[0].path)

    def rewrite(
        self, change: Callable[[int, dict[int, Features]], Features], provenance: Provenance | None = None
    ) -> None:
        """Commit other features under the same keys, as a wrong encoder would have."""
        store = Store.open(Home(self.home), durability=Durability.none)
        manifest = self.manifest()
        stored = {frame.index: _read(store, frame) for frame in manifest.frames}
        kept = {frame.index: store.peek(frame.key) for frame in manifest.frames}
        for frame in manifest.frames:
            info = kept[frame.index]
            assert info is not None
            shutil.rmtree(next((self.home / "store" / "frames").rglob(frame.key.hex)))
            features = change(frame.index, stored)
            store.write(frame.pixels, manifest.encoder, features, provenance or info.provenance)


def _read(store: Store, frame: FrameEntry) -> Features:
    features = store.read(frame.key)
    assert features is not None
    return features


def _with(features: Features, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Features:
    return dataclasses.replace(features, array=np.ascontiguousarray(array, dtype=np.float32))


def _encoded(name: str, root: Path) -> Recorded:
    checkpoint = write_checkpoint(root / "checkpoint", CHECKPOINTS[name])
    images = draw_noise(root / "images", 4)
    shutil.copy(images / "000.png", images / "010.png")
    image = np.random.default_rng(9).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    from PIL import Image

    Image.fromarray(image).save(images / "011.png")
    encoded = encode_folder(checkpoint, images, root / "home")
    write_manifest(Home(root / "home"), encoded.manifest)
    return Recorded(checkpoint, images, root / "home")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return _encoded("plain", tmp_path_factory.mktemp("verify"))


@pytest.mark.parametrize(
    "name",
    ["plain", *(pytest.param(name, marks=pytest.mark.campaign) for name in CHECKPOINTS if name != "plain")],
)
def test_a_right_store_passes_and_says_how_much_was_checked(name: str, tmp_path: Path) -> None:
    report = _encoded(name, tmp_path).verify(sample="2")
    assert report.equal
    assert [check.name for check in report.checks] == ["bytes", "embeddings", "outputs"]
    assert [check.num_checked for check in report.checks] == [5, 2, 2]
    assert "2 equal bit for bit" in report.checks[1].words


@pytest.mark.parametrize(
    ("kv_memory_bytes", "in_flight"),
    [
        pytest.param(None, r", up to 8 in flight, ", marks=pytest.mark.campaign),
        (1_000_000, r", up to [1-7] in flight \(8 were allowed\), "),
    ],
)
def test_the_report_says_how_many_answers_were_in_flight(
    recorded: Recorded, kv_memory_bytes: int | None, in_flight: str
) -> None:
    report = recorded.verify(sample="1", limits=BatchLimits(8, kv_memory_bytes=kv_memory_bytes))
    assert report.equal
    assert re.search(in_flight, report.checks[2].words)


def test_a_sample_says_that_it_is_one(recorded: Recorded) -> None:
    report = recorded.verify(Level.embeddings, sample="2")
    assert (report.checks[1].num_checked, report.checks[1].num_total) == (2, 5)
    assert "2 of 5" in report.checks[1].words


def _zero_deepstack(index: int, stored: dict[int, Features]) -> Features:
    array = stored[index].array.copy()
    array[1:] = 0
    return _with(stored[index], array)


def _swap_layers(index: int, stored: dict[int, Features]) -> Features:
    return _with(stored[index], stored[index].array[[0, 2, 1, 3]])


def _swap_frames(index: int, stored: dict[int, Features]) -> Features:
    other = {0: 5, 5: 0}.get(index, index)
    return stored[other]


def _roll_rows(index: int, stored: dict[int, Features]) -> Features:
    return _with(stored[index], np.roll(stored[index].array, 1, axis=1))


def _one_bit(index: int, stored: dict[int, Features]) -> Features:
    bits = stored[index].array.copy().view(np.uint32)
    bits[-1, -1, -1] ^= 1
    return _with(stored[index], bits.view(np.float32))


@pytest.mark.parametrize("fault", [_zero_deepstack, _swap_layers, _swap_frames, _roll_rows, _one_bit])
@pytest.mark.parametrize(
    "provenance", [None, pytest.param(OTHER, marks=pytest.mark.campaign)], ids=["same", "other"]
)
def test_wrong_features_in_sound_entries_are_objected_to(
    recorded: Recorded,
    tmp_path: Path,
    fault: Callable[[int, dict[int, Features]], Features],
    provenance: Provenance | None,
) -> None:
    if fault is _one_bit and provenance is not None:
        pytest.skip("one low bit lies within the tolerance for another version or device")
    copy = recorded.copy(tmp_path / "home")
    copy.rewrite(fault, provenance)
    report = copy.verify(Level.embeddings)
    assert report.checks[0].equal  # the bytes are sound: only live encoding can tell
    assert not report.checks[1].equal


def test_unchanged_features_of_another_device_pass(recorded: Recorded, tmp_path: Path) -> None:
    copy = recorded.copy(tmp_path / "home")
    copy.rewrite(lambda index, stored: stored[index], OTHER)
    assert copy.verify(Level.embeddings).equal


@pytest.mark.parametrize("name", ["c.0.0.0", "zarr.json"])
def test_a_flipped_bit_is_objected_to_by_every_level(recorded: Recorded, tmp_path: Path, name: str) -> None:
    copy = recorded.copy(tmp_path / "home")
    key = copy.manifest().frames[0].key
    path = next((copy.home / "store" / "frames").rglob(f"{key.hex}/{name}"))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert not copy.verify(Level.bytes).equal
    assert key.hex[:12] in copy.verify(Level.bytes).checks[0].problems[0]


def test_a_manifest_that_names_another_frames_entry_is_objected_to(
    recorded: Recorded, tmp_path: Path
) -> None:
    copy = recorded.copy(tmp_path / "home")
    manifest = copy.manifest()
    first, last = manifest.frames[0], manifest.frames[-1]
    swapped = dataclasses.replace(first, pixels=last.pixels, key=last.key, grid_thw=last.grid_thw)
    frames = (dataclasses.replace(swapped, num_tokens=last.num_tokens), *manifest.frames[1:])
    write_manifest(Home(copy.home), dataclasses.replace(manifest, frames=frames))
    report = copy.verify(Level.embeddings)
    assert not report.equal
    assert "frame 0" in report.checks[1].problems[0]


def test_frames_that_are_gone_are_no_verdict(recorded: Recorded, tmp_path: Path) -> None:
    copy = recorded.copy(tmp_path / "home")
    moved = recorded.images.rename(tmp_path / "elsewhere")
    try:
        assert copy.verify(Level.bytes).equal
        report = copy.verify(Level.embeddings)
        assert report.equal
        assert not report.complete
        assert "--level bytes" in report.checks[1].unchecked[0]
    finally:
        moved.rename(recorded.images)


@pytest.mark.parametrize("sample", ["0", "-1", "some", ""])
def test_a_sample_is_a_number_or_all(recorded: Recorded, sample: str) -> None:
    with pytest.raises(InputError, match="--sample"):
        recorded.verify(sample=sample)


def test_another_encoder_in_the_live_side_is_objected_to(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_limits(checkpoint: Checkpoint, manifest: Manifest) -> LiveFrames:
        frames = LiveFrames(checkpoint, manifest)
        encoder = VisionEncoder(checkpoint, manifest.encoder)
        other = dataclasses.replace(manifest.encoder.preprocessing, image_mean=(0.4, 0.5, 0.5))
        encoder._value_table = mx.array(value_table(other))
        frames._loaded[manifest.encoder.encoder_id] = encoder
        return frames

    options = VerifyOptions(str(recorded.images), Level.embeddings, "all", str(recorded.checkpoint))
    monkeypatch.setattr(levels, "LiveFrames", other_limits)
    assert not verify(Home(recorded.home), options, Listener()).equal


def test_a_damaged_entry_is_reported_again_and_stays_where_it_is(recorded: Recorded, tmp_path: Path) -> None:
    copy = recorded.copy(tmp_path / "home")
    path = next((copy.home / "store" / "frames").rglob(f"{copy.manifest().frames[0].key.hex}/c.0.0.0"))
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    before = sorted(copy.home.rglob("*"))
    reports = [copy.verify(Level.embeddings) for _ in range(2)]
    assert [report.checks[0].problems for report in reports] == [reports[0].checks[0].problems] * 2
    assert "crc32c" in reports[1].checks[1].problems[0]
    assert set(copy.home.rglob("*")) - set(before) <= {copy.home / "verify"}


def test_another_place_in_the_recording_is_objected_to(recorded: Recorded, tmp_path: Path) -> None:
    copy = recorded.copy(tmp_path / "home")
    manifest = copy.manifest()
    moved = dataclasses.replace(manifest.frames[1], timestamp_s=manifest.frames[1].timestamp_s + 3)
    frames = (manifest.frames[0], moved, *manifest.frames[2:])
    write_manifest(Home(copy.home), dataclasses.replace(manifest, frames=frames))
    report = copy.verify(Level.embeddings, sample="1")
    assert not report.equal
    assert "4 s" in report.checks[1].problems[0]


def test_entries_of_other_provenance_are_named_in_the_report(recorded: Recorded, tmp_path: Path) -> None:
    copy = recorded.copy(tmp_path / "home")
    copy.rewrite(lambda index, stored: stored[index], dataclasses.replace(OTHER, chip=""))
    report = copy.verify(Level.embeddings)
    found = {difference.field: difference for difference in report.provenance}
    assert set(found) == {"mlx", "mlx_vlm", "seeonce", "device", "chip"}
    assert found["chip"].stored == ""
    assert "5 entries were computed with chip not recorded" in "\n".join(terminal_lines(report))


@pytest.mark.parametrize(("tolerance", "equal"), [(None, False), (1e-3, True)])
def test_a_tolerance_changes_what_counts_as_equal_and_is_printed(
    recorded: Recorded, tmp_path: Path, tolerance: float | None, equal: bool
) -> None:
    copy = recorded.copy(tmp_path / "home")
    copy.rewrite(_one_bit)
    report = copy.verify(Level.embeddings, tolerance=tolerance)
    assert report.equal is equal
    assert ("features within 0.001" in "\n".join(terminal_lines(report))) is equal


def test_one_live_encoding_serves_features_and_answers(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[LiveReference] = []
    right = LiveReference.features

    def seen(self: LiveReference, picture: Picture) -> Features:
        made.append(self)
        return right(self, picture)

    monkeypatch.setattr(LiveReference, "features", seen)
    assert recorded.verify(Level.outputs, sample="2").equal
    assert {reference.encoded.num_encoded for reference in made} == {2}


def test_a_near_duplicate_is_not_held_against_the_picture_of_its_neighbour(
    recorded: Recorded, tmp_path: Path
) -> None:
    copy = recorded.copy(tmp_path / "home")
    manifest = copy.manifest()
    kept, near = manifest.frames[0], manifest.frames[5]
    stands = dataclasses.replace(
        kept, index=near.index, timestamp_s=near.timestamp_s, source=near.source, neighbour=kept.index
    )
    write_manifest(Home(copy.home), dataclasses.replace(manifest, frames=(*manifest.frames[:5], stands)))
    report = copy.verify(Level.embeddings)
    assert report.equal
    assert "1 more frames use a near duplicate's entry" in report.checks[1].words
