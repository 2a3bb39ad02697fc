"""A recording is encoded while it grows: every picture once, whatever is done to its files."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
from conftest import Run
from escribano_samples import add_frame, new_database
from screens import noise
from test_cap import _studio
from videos import make_video

from cache.base.errors import InputError
from cache.base.home import Home
from cache.base.listener import Listener
from cache.leases import held_lease
from cache.manifest import list_manifests, read_manifest, write_manifest
from cache.store import Store
from precompute import growing, watch
from precompute.growing import Gate
from precompute.options import EncodeOptions
from precompute.watch import Watch, WatchedPlace, places_of
from sources.recordings import open_recording


class Said(Listener):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(autouse=True)
def _on_mains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "runs_on_battery", lambda: False)


def _png(number: int) -> bytes:
    buffer = io.BytesIO()
    noise(number).save(buffer, "PNG")
    return buffer.getvalue()


def grow(folder: Path, num_frames: int, step_s: float, seed: int = 0, spared: int = 12) -> Iterator[str]:
    """Record into a folder, a picture a step: at once, slowly, under another name first, moved, removed.

    Yields what was done. The newest ``spared`` are left alone: what is removed before anybody saw it is lost.
    """
    rng = random.Random(seed)
    for number in range(num_frames):
        path, content = folder / f"shot-{number:04}.png", _png(number)
        how = rng.choice(["whole", "whole", "slowly", "part", "moved", "removed", "again"])
        started_s = time.monotonic()
        if how == "slowly":
            with path.open("wb") as file:
                for start in range(0, len(content), len(content) // 4):
                    file.write(content[start : start + len(content) // 4])
                    file.flush()
                    time.sleep(step_s / 8)
        elif how == "part":
            part = path.with_name(f".{path.name}.part")
            part.write_bytes(content)
            part.rename(path)
        else:
            path.write_bytes(content)
        earlier = sorted(folder.glob("shot-*.png"))[:-spared]
        if how == "moved" and earlier:
            chosen = rng.choice(earlier)
            chosen.rename(chosen.with_name(f"{chosen.stem}-moved.png"))
        elif how == "removed" and earlier:
            rng.choice(earlier).unlink()
        elif how == "again" and earlier:
            chosen = rng.choice(earlier)
            chosen.write_bytes(chosen.read_bytes())
        time.sleep(max(0.0, step_s - (time.monotonic() - started_s)))
        yield how


def _watch(
    home: Path, plain: Path, place: WatchedPlace, work: Callable[[], object]
) -> tuple[Watch, list[str]]:
    """Watch a place while something works on it, and until nothing is left to do."""
    said = Said()
    watched = Watch(Home(home), EncodeOptions(model=str(plain), thumbnails=False), said)
    worker = threading.Thread(target=work)
    worker.start()
    quiet = iter(range(6))
    watched.run([place], lambda: not worker.is_alive() and next(quiet, None) is None)
    worker.join()
    return watched, said.lines


@pytest.fixture
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "QUIET_S", 0.05)
    monkeypatch.setattr(watch, "_WAKE_MS", 50)


@pytest.mark.usefixtures("_quickly")
def test_a_folder_that_grows_is_encoded_every_picture_once(
    home: Path, plain: Path, tmp_path: Path, times_encoded: Counter[bytes]
) -> None:
    folder = tmp_path / "shots"
    folder.mkdir()
    shots = WatchedPlace(folder, "folder")
    (watched, _) = _watch(home, plain, shots, lambda: list(grow(folder, 24, 0.06, seed=3)))
    (ref,) = list_manifests(Home(home))
    found = read_manifest(ref.path)
    assert [Path(frame.source) for frame in found.frames] == sorted(folder.glob("shot-*.png"))
    assert (found.skipped, found.complete, set(times_encoded.values())) == ((), True, {1})
    assert len(times_encoded) <= 24
    (result,) = watched.results.values()
    assert result.progress.num_new == len(times_encoded)
    times_encoded.clear()
    _watch(home, plain, WatchedPlace(folder, "folder"), lambda: None)
    assert (read_manifest(ref.path).frames, sum(times_encoded.values())) == (found.frames, 0)


@pytest.mark.usefixtures("_quickly")
def test_two_watches_of_one_folder_encode_every_picture_once(
    home: Path, plain: Path, tmp_path: Path, times_encoded: Counter[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "ASK_S", 0.05)
    place = WatchedPlace(tmp_path / "shots", "folder")
    place.path.mkdir()
    both = lambda: _watch(home, plain, place, lambda: list(grow(place.path, 12, 0.06)))  # noqa: E731
    _watch(home, plain, place, both)
    (ref,) = list_manifests(Home(home))
    found = read_manifest(ref.path)
    assert [Path(frame.source) for frame in found.frames] == sorted(place.path.glob("shot-*.png"))
    assert (found.complete, set(times_encoded.values())) == (True, {1})


@pytest.mark.usefixtures("_quickly")
def test_what_is_there_from_the_start_has_a_manifest_though_nothing_more_comes(
    home: Path, plain: Path, tmp_path: Path
) -> None:
    noise(0).save(tmp_path / "0.png")
    _watch(home, plain, WatchedPlace(tmp_path, "folder"), lambda: None)
    (ref,) = list_manifests(Home(home))
    assert (ref.num_frames, ref.complete) == (1, True)


@pytest.mark.usefixtures("_quickly")
def test_a_folder_that_is_not_there_yet_or_made_again_is_watched_all_the_same(
    home: Path, plain: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "shots"

    def work() -> None:
        for number in range(2):
            time.sleep(0.3)
            folder.mkdir()
            noise(number).save(folder / f"{number}.png")
            while not any(ref.num_frames for ref in list_manifests(Home(home))):
                time.sleep(0.05)
            if not number:
                shutil.rmtree(folder)

    _, said = _watch(home, plain, WatchedPlace(folder, "folder"), work)
    (ref,) = list_manifests(Home(home))
    assert [Path(frame.source).name for frame in read_manifest(ref.path).frames] == ["1.png"]
    assert [line.partition(":")[0] for line in said].count("Nothing to encode yet") <= 3


def test_wherever_ctrl_c_comes_what_was_encoded_has_a_manifest(
    home: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise(0).save(tmp_path / "0.png")
    os.utime(tmp_path / "0.png", (1, 1))
    monkeypatch.setattr(growing, "QUIET_S", 0)
    cut = iter([True])

    def cut_once(*given: Any) -> None:
        if next(cut, False):
            raise KeyboardInterrupt
        write_manifest(*given)

    monkeypatch.setattr(growing, "write_manifest", cut_once)
    watched = Watch(Home(home), EncodeOptions(model=str(plain), thumbnails=False), Said())
    with pytest.raises(KeyboardInterrupt):
        watched.run([WatchedPlace(tmp_path, "folder")])
    (ref,) = list_manifests(Home(home))
    (result,) = watched.results.values()
    assert (ref.num_frames, ref.complete, result.interrupted) == (1, True, False)


@pytest.mark.parametrize(("rest_s", "num_looks"), [(0.0, 4), (60.0, 1)])
def test_looks_at_many_frames_are_rare(
    rest_s: float, num_looks: int, home: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise(0).save(tmp_path / "0.png")
    looks = Mock(side_effect=open_recording)
    monkeypatch.setattr(watch, "open_recording", looks)
    monkeypatch.setattr(watch, "_REST_S", rest_s)
    monkeypatch.setattr(watch, "_changes", lambda _: iter([True] * 3))
    Watch(Home(home), EncodeOptions(model=str(plain), thumbnails=False), Said()).run(
        [WatchedPlace(tmp_path, "folder")]
    )
    assert looks.call_count == num_looks


@pytest.mark.usefixtures("_quickly")
def test_a_half_written_picture_is_waited_for_and_one_that_stays_so_is_named(
    home: Path, plain: Path, tmp_path: Path, times_encoded: Counter[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "GIVEN_UP_S", 0.8)
    folder = tmp_path / "shots"
    folder.mkdir()

    def work() -> None:
        (folder / "0.png").touch()
        (folder / "1.png").write_bytes(_png(1)[:2000])
        (folder / "2.png").write_bytes(_png(2)[:2000])
        time.sleep(0.3)
        (folder / "0.png").write_bytes(_png(0))
        (folder / "1.png").write_bytes(_png(1))
        time.sleep(1)
        (folder / "3.png").write_bytes(_png(3))

    _watch(home, plain, WatchedPlace(folder, "folder"), work)
    (ref,) = list_manifests(Home(home))
    found = read_manifest(ref.path)
    assert [Path(frame.source).name for frame in found.frames] == ["0.png", "1.png", "3.png"]
    assert [Path(frame.source).name for frame in found.skipped] == ["2.png"]
    assert sum(times_encoded.values()) == 3


@pytest.mark.usefixtures("_quickly")
def test_the_day_of_escribanos_recorder_keeps_what_was_encoded_when_its_images_go(
    home: Path, plain: Path, tmp_path: Path, times_encoded: Counter[bytes]
) -> None:
    database = new_database(tmp_path / "user" / ".escribano" / "escribano.db")
    images = [database.parent / f"{number}.jpg" for number in range(3)]
    noon_s = datetime.now().replace(hour=12, minute=0).timestamp()
    for number, image in enumerate(images):
        noise(number).save(image)

    def work() -> None:
        for number, image in enumerate(images):
            add_frame(database, f"f{number}", noon_s + number, str(image))
            time.sleep(0.2)
        time.sleep(1.5)
        images[0].unlink()

    place = WatchedPlace(database, "escribano")
    _watch(home, plain, place, work)
    _watch(home, plain, place, lambda: None)  # after a restart, too
    (ref,) = list_manifests(Home(home))
    found = read_manifest(ref.path)
    assert [frame.source.rpartition("#")[2] for frame in found.frames] == ["frame=f0", "frame=f1", "frame=f2"]
    assert (found.recording.kind, set(times_encoded.values()), len(times_encoded)) == ("escribano", {1}, 3)


@pytest.mark.usefixtures("_quickly")
def test_a_bundle_of_cap_is_encoded_once_it_is_finished(home: Path, plain: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "caps" / "a.cap"
    (bundle / "content").mkdir(parents=True)
    meta = _studio("content/display.mp4")
    (bundle / "recording-meta.json").write_text(json.dumps(meta | {"status": {"status": "InProgress"}}))

    def work() -> None:
        time.sleep(0.2)
        make_video(bundle / "content" / "display.mp4", range(0, 2000, 100))
        (bundle / "recording-meta.json").write_text(json.dumps(meta))

    (place,) = places_of(str(tmp_path / "caps"))
    watched, _ = _watch(home, plain, place, work)
    (result,) = watched.results.values()
    assert (result.manifest.recording.kind, result.progress.num_new) == ("cap", 1)


def test_it_waits_on_battery_and_while_a_describe_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, said = Store.open(Home(home)), Said()
    gate = Gate(store.path, said)
    power = iter([True, True, False, False, False])
    monkeypatch.setattr(growing, "ASK_S", 0.0)
    monkeypatch.setattr(growing, "runs_on_battery", lambda: next(power))
    gate.wait()
    with held_lease(store, "encode other"):
        gate.wait()
    lease = held_lease(store, "describe monday")
    lease.__enter__()
    answers = iter([False, False, True])  # by the third time it is asked the describe is over
    monkeypatch.setattr(
        growing, "runs_on_battery", lambda: next(answers) and lease.__exit__(None, None, None)
    )
    gate.wait()
    assert [line.split(" (")[0] for line in said.lines] == [
        "Waiting: on battery",
        "Waiting: describe monday runs.",
    ]
    monkeypatch.setattr(growing, "runs_on_battery", lambda: True)
    Gate(store.path, said, on_battery=True).wait()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("encode --watch /nowhere", "no recording"),
        ("encode --watch --limit 3", "--watch takes all that comes"),
        ("encode --on-battery", "--on-battery is for --watch"),
        ("encode --watch", "neither Escribano nor Cap records here"),
    ],
)
def test_what_a_watch_refuses(line: str, said: str, run: Run, home: Path, tmp_path: Path) -> None:
    assert said in run(f"seeonce {line}").error


def test_a_file_does_not_grow(home: Path, tmp_path: Path) -> None:
    noise(0).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="does not grow"):
        places_of(str(tmp_path / "a.png"))


@pytest.mark.campaign
def test_ten_minutes_at_a_frame_a_second_and_what_waiting_costs(
    home: Path, plain: Path, tmp_path: Path
) -> None:
    """Prints what one second of recording and one of waiting cost, in seconds of one core."""
    num_frames = int(os.environ.get("SEEONCE_WATCH_FRAMES", "600"))
    folder = tmp_path / "shots"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "seeonce", "encode", "--watch", folder, "--on-battery", "--json", "--model",
         plain],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        watching = psutil.Process(process.pid)

        def core_s() -> float:
            times = watching.cpu_times()
            return float(times.user + times.system)

        noise(num_frames).save(folder / "shot-first.png")
        while not list_manifests(Home(home)):  # until all is loaded
            time.sleep(1)
        before_s, started_s = core_s(), time.monotonic()
        done = Counter(grow(folder, num_frames, 1.0, spared=60))
        time.sleep(30)
        recorded = (core_s() - before_s) / (time.monotonic() - started_s)
        before_s, started_s = core_s(), time.monotonic()
        time.sleep(60)
        idle = (core_s() - before_s) / (time.monotonic() - started_s)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    summary = json.loads(out.splitlines()[-1])
    (ref,) = list_manifests(Home(home))
    found = read_manifest(ref.path)
    print(f"{dict(done)}: {summary['num_new']} encoded; {recorded:.1%} of a core, {idle:.3%} when idle")
    assert [Path(frame.source) for frame in found.frames] == sorted(folder.glob("shot-*.png"))
    assert (process.returncode, found.complete, found.skipped) == (0, True, ())
    assert summary["num_new"] == num_frames + 1
    assert idle < 0.01
