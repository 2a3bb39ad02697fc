"""Manifests: sealed, replaced at once, listed newest first."""

import errno
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from processor_time import processor_s
from store_samples import SPEC, flip_bit, frame, manifest, new_store, other_spec, pixels

from cache.base.errors import StoreError
from cache.key import entry_key
from cache.manifest import SkippedFrame, list_manifests, manifest_path, read_manifest, write_manifest


def test_a_manifest_survives_the_disk(tmp_path: Path) -> None:
    home = new_store(tmp_path).home
    skipped = (SkippedFrame(3, 30.0, "broken \udcff.png", "cannot be decoded"),)
    recording = replace(manifest().recording, every_s=2.5, limit=7)
    written = replace(manifest(), skipped=skipped, recording=recording, complete=False)
    assert read_manifest(write_manifest(home, written)) == written


def test_a_manifest_lies_under_its_recording_and_encoder(tmp_path: Path) -> None:
    home = new_store(tmp_path).home
    path = write_manifest(home, manifest(recording_id="réunion 1"))
    expected = home.store / "recordings" / "réunion 1" / SPEC.encoder_id.hex / "manifest.json"
    assert path == expected == manifest_path(home, "réunion 1", SPEC.encoder_id)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_writing_again_replaces_the_manifest_and_leaves_no_other_file(tmp_path: Path) -> None:
    home = new_store(tmp_path).home
    write_manifest(home, manifest(3))
    path = write_manifest(home, manifest(5))
    assert len(read_manifest(path).frames) == 5
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "recording_id", ["", ".", "..", "a/b", "a/../b", "a..b", ".hidden", "a\\b", "a\nb", "x" * 201]
)
def test_an_id_that_could_leave_the_store_is_refused(tmp_path: Path, recording_id: str) -> None:
    home = new_store(tmp_path).home
    with pytest.raises(StoreError, match="recording id"):
        write_manifest(home, manifest(recording_id=recording_id))


def test_a_recording_that_is_a_symlink_is_not_written_through(tmp_path: Path) -> None:
    home = new_store(tmp_path).home
    (tmp_path / "outside").mkdir()
    (home.store / "recordings" / "a-recording").symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match="cannot write"):
        write_manifest(home, manifest())
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_key_that_is_not_that_of_its_pixels_is_a_problem_and_not_written(tmp_path: Path) -> None:
    wrong = replace(frame(1), key=entry_key(pixels(2), SPEC.encoder_id))
    bad = replace(manifest(), frames=(frame(0), wrong))
    assert len(bad.problems()) == 1
    with pytest.raises(ValueError, match="frame 1: key"):
        write_manifest(new_store(tmp_path).home, bad)


@pytest.mark.parametrize(
    ("frames", "problem"),
    [
        ((frame(1), frame(0)), "comes after"),
        ((frame(0), frame(0)), "comes after"),
        ((replace(frame(0), num_tokens=7),), "makes 6 tokens"),
        ((replace(frame(0), grid_thw=(1, 3, 4)),), "not divisible"),
    ],
)
def test_frames_that_do_not_fit_together_are_problems(frames: tuple[object, ...], problem: str) -> None:
    assert problem in replace(manifest(), frames=frames).problems()[0]  # type: ignore[arg-type]


def test_a_sound_manifest_has_no_problems() -> None:
    assert manifest().problems() == []


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = write_manifest(new_store(tmp_path).home, manifest(1))
    for position in range(0, 8 * path.stat().st_size, 13):
        flip_bit(path, position)
        with pytest.raises(StoreError, match="run seeonce encode again"):
            read_manifest(path)
        flip_bit(path, position)
    assert read_manifest(path) == manifest(1)


def test_a_missing_manifest_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="run seeonce encode again"):
        read_manifest(tmp_path / "manifest.json")


def test_manifests_are_listed_newest_first(tmp_path: Path) -> None:
    home = new_store(tmp_path).home
    for name, created_at in [("b", "2026-01-02T"), ("a", "2026-01-03T"), ("c", "2026-01-01T")]:
        write_manifest(home, manifest(2, name, created_at))
    write_manifest(home, replace(manifest(0, "a", "2026-01-04T"), encoder=other_spec(epoch=2)))
    refs = list_manifests(home)
    assert [(ref.recording.id, ref.num_frames) for ref in refs] == [("a", 0), ("a", 2), ("b", 2), ("c", 2)]
    assert refs[0].encoder_id == other_spec(epoch=2).encoder_id


def test_a_corrupt_manifest_is_reported_and_the_others_are_listed(tmp_path: Path) -> None:
    home = new_store(tmp_path).home
    write_manifest(home, manifest(1, "good"))
    flip_bit(write_manifest(home, manifest(1, "bad")), 99)
    problems: list[str] = []
    assert [ref.recording.id for ref in list_manifests(home, problems.append)] == ["good"]
    assert len(problems) == 1
    assert "bad" in problems[0]


def test_a_manifest_that_was_moved_to_another_recording_is_reported(tmp_path: Path) -> None:
    home = new_store(tmp_path).home
    path = write_manifest(home, manifest(1, "one"))
    path.parent.parent.rename(path.parent.parent.with_name("two"))
    problems: list[str] = []
    assert list_manifests(home, problems.append) == []
    assert "is that of recording one" in problems[0]


def test_a_folder_that_may_not_be_listed_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    store = new_store(tmp_path)
    write_manifest(store.home, manifest(1))
    monkeypatch.setattr("cache.manifest.names_in", forbidden)
    with pytest.raises(StoreError, match="cannot list"):
        list_manifests(store.home)


def test_without_a_store_there_are_no_manifests(tmp_path: Path) -> None:
    assert list_manifests(new_store(tmp_path).home) == []


def test_a_manifest_is_read_in_proportion_to_its_frames(tmp_path: Path) -> None:
    def read_s(num_frames: int) -> float:
        path = write_manifest(new_store(tmp_path / str(num_frames)).home, manifest(num_frames))
        assert len(read_manifest(path).frames) == num_frames
        return processor_s(lambda: read_manifest(path))

    assert read_s(4_000) < 10 * read_s(1_000)  # in proportion is 4 times, by the square 16
