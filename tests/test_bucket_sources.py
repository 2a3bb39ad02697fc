"""Recordings that lie in a bucket: what they give is what the same files on a disk give."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from io import BytesIO, TextIOWrapper
from pathlib import Path

import obstore
import pytest
from bucket_samples import Server
from conftest import Run
from s3_stand_in import StandIn, stand_in
from screens import folder_of, noise
from videos import make_video

from cache import objects
from cache.base.errors import InputError
from cache.base.home import Home
from cache.manifest import Manifest
from cache.store import Store
from precompute.cost import _sizes
from precompute.options import reopen
from sources.recording import FrameChoice, Recording
from sources.recordings import open_recording


def manifests(home: Path) -> dict[str, Manifest]:
    """The manifests of a store by the paths of their recordings."""
    store = Store.open(Home(home))
    return {head.recording.path: store.read_manifest(head) for head in store.list_manifests()}


def shown(manifest: Manifest) -> list[object]:
    """What the frames of a manifest show, and when."""
    return [(frame.index, frame.timestamp_s, frame.key) for frame in manifest.frames]


@pytest.fixture
def monday(tmp_path: Path) -> Path:
    """A folder with pictures and what is none."""
    folder = folder_of(tmp_path / "monday", 4)
    (folder / "notes.txt").write_text("no picture")
    (folder / "._0.png").write_bytes(b"hidden")
    (folder / "more").mkdir()
    noise(9).save(folder / "more" / "other.png")
    return folder


def test_a_folder_in_a_bucket_gives_what_a_folder_gives(
    run: Run, home: Path, plain: Path, monday: Path, tmp_path: Path
) -> None:
    address = f"file://{monday}"
    assert run("seeonce encode --model", plain, monday).code == 0
    done = run("seeonce encode --json --model", plain, f"{address}/")
    assert done.code == 0
    assert done.json["left_out"] == ["more/", "notes.txt"]
    assert (done.json["num_hits"], done.json["num_new"]) == (4, 0)
    found = manifests(home)
    assert shown(found[address]) == shown(found[str(monday)])
    assert found[address].frames[0].source.startswith(f"{address}/")
    assert [frame.source for frame in reopen(found[address]).frames()] == [
        frame.source for frame in found[address].frames
    ]
    assert run("verify-cache --level embeddings --sample 1", address).code == 0
    into = run("seeonce encode --json --model", plain, address, "--to", f"file://{tmp_path}/to")
    assert into.json["num_new"] == 4


def test_a_video_in_a_bucket_gives_what_a_video_gives_and_its_copy_goes(
    run: Run, home: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(copies))
    video = make_video(tmp_path / "clip.mp4", [0, 1000, 2000, 3000])
    address = f"file://{video}"
    assert run("seeonce encode --every 1 --model", plain, video).code == 0
    assert run("seeonce encode --every 1 --model", plain, address).code == 0
    found = manifests(home)
    assert len(found[address].frames) > 1
    assert shown(found[address]) == shown(found[str(video)])
    assert found[address].frames[0].source == found[str(video)].frames[0].source.replace(str(video), address)
    assert len(reopen(found[address]).frames()) == len(found[address].frames)
    assert list(copies.iterdir()) == []


def test_paths_and_addresses_come_together_on_standard_input(
    run: Run, home: Path, plain: Path, monday: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuesday = folder_of(tmp_path / "tuesday", 2, first=6)
    names = sorted(path.name for path in monday.glob("[0-9]*.png"))
    listed = [f"file://{tuesday}", str(tuesday), f"file://{monday}/{names[0]}", str(monday / names[1])]
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO("\n".join(listed).encode())))
    done = run("seeonce encode - --model", plain)
    assert done.code == 0
    found = manifests(home)
    assert set(found) == {f"file://{tuesday}", str(tuesday), "-"}
    assert [frame.source for frame in found["-"].frames] == listed[2:]
    assert [frame.source for frame in reopen(found["-"]).frames()] == listed[2:]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[StandIn, Server]]:
    """A server with two pictures, whose clients do not wait."""
    quick = {"max_retries": 1, "retry_timeout": timedelta(seconds=1)}
    monkeypatch.setattr(objects, "_RETRY", quick)
    with stand_in() as (server, place):
        for name, value in place.environ.items():
            monkeypatch.setenv(name, value)
        from_ = objects.Objects.open(f"s3://screens/{server.server_address[1]}").store
        for number in range(2):
            file = BytesIO()
            noise(number).save(file, "png")
            obstore.put(from_, f"{number}.png", file.getvalue())
        yield server, Server(f"s3://screens/{server.server_address[1]}", place.environ)


def opened(place: Server) -> Recording:
    return open_recording(place.address, FrameChoice())


def test_what_a_folder_in_a_bucket_takes_is_told_from_one_picture(served: tuple[StandIn, Server]) -> None:
    server, place = served
    frames = opened(place).frames()
    del server.objects[frames[1].source.partition("screens/")[2]]  # it is not looked at
    assert [(size.width, size.height) for size in _sizes(frames)] == [noise(0).size] * 2


def test_a_picture_that_changes_or_goes_is_one_clear_line(served: tuple[StandIn, Server]) -> None:
    server, place = served
    first, second = opened(place).frames()
    name = first.source.partition("screens/")[2]
    server.objects[name] = server.objects[second.source.partition("screens/")[2]]
    del server.objects[second.source.partition("screens/")[2]]
    with pytest.raises(InputError, match=r"0\.png: was replaced while it was encoded"):
        first.read()
    with pytest.raises(InputError, match=r"1\.png: no such object"):
        second.read()


@pytest.mark.parametrize(
    ("fault", "says"),
    [((403, "AccessDenied"), "no right to do that"), ((404, "NoSuchBucket"), "no such bucket")],
    ids=str,
)
def test_a_bucket_that_cannot_be_read_is_one_clear_line_and_the_rest_goes_on(
    served: tuple[StandIn, Server],
    fault: tuple[int, str],
    says: str,
    run: Run,
    plain: Path,
    monday: Path,
) -> None:
    server, place = served
    server.before = lambda *_: fault
    ended = run("seeonce encode --model", plain, place.address, monday)
    assert ended.code == 3
    assert says in ended.err
    assert "4 of 4 frames" in ended.out


def test_no_credential_is_in_what_a_recording_says(served: tuple[StandIn, Server]) -> None:
    _, place = served
    recording = opened(place)
    said = repr((recording.info, recording.remarks, [frame.source for frame in recording.frames()]))
    assert not [value for name, value in place.environ.items() if "KEY" in name and value in said]


def test_a_folder_without_pictures_and_one_that_is_not_there_say_so(tmp_path: Path) -> None:
    shutil.copy(make_video(tmp_path / "clip.mp4", [0, 1000]), tmp_path / "more.mp4")
    with pytest.raises(InputError, match=r"no images in this folder.*2 videos"):
        open_recording(f"file://{tmp_path}", FrameChoice())
    with pytest.raises(InputError, match="there is no such folder"):
        open_recording(f"file://{tmp_path}/nowhere", FrameChoice())
    with pytest.raises(InputError, match=r"gone\.mp4: no such object"):
        open_recording(f"file://{tmp_path}/gone.mp4", FrameChoice())
