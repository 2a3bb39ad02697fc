"""The whole way with Escribano's own code: its migrations, adapter, parser, segmentation. Needs a checkout.

SEEONCE_ESCRIBANO names one with node_modules: its own dependencies and tsx, by npm install.
"""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from escribano_samples import change, parsed
from screens import noise, python

from cache.base.home import Home
from infer.canary import Verdict, combination, remember
from seeonce.runs.presets import ACTIVITIES

CHECKOUT = os.environ.get("SEEONCE_ESCRIBANO", "")

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(not CHECKOUT, reason="SEEONCE_ESCRIBANO names no checkout of Escribano"),
]

Escribano = Callable[..., Any]


@pytest.fixture
def escribano(home: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Escribano:
    """Return a function that runs a task of the driver, with seeonce's launcher as Escribano's Python."""
    user = home.parent / "user"
    user.mkdir(parents=True)
    Home(home).prepare()
    remember(Home(home), combination(), Verdict.batched)
    launcher = home / "escribano-python"
    assert run("seeonce bridge --install --python", sys.executable).code == 0
    environ = {
        "HOME": str(user),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "HF_HUB_OFFLINE": "1",
        "ESCRIBANO_PYTHON_PATH": str(launcher),
        "ESCRIBANO_MLX_SOCKET_PATH": str(home.parent / "e.sock"),
        "ESCRIBANO_VLM_MODEL": "demo",
    }
    monkeypatch.setenv("ESCRIBANO_DB", str(user / ".escribano" / "escribano.db"))

    def drive(task: str, argument: object = None) -> Any:
        program = [f"{CHECKOUT}/node_modules/.bin/tsx", str(Path(__file__).parent / "escribano_driver.mts")]
        done = subprocess.run(
            [*program, CHECKOUT, task, json.dumps(argument or {})],
            capture_output=True, text=True, env=environ, timeout=900, cwd=CHECKOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        drive.said = done.stderr  # type: ignore[attr-defined]
        return json.loads(done.stdout.rstrip("\n").rpartition("\n")[2])

    return drive


@pytest.fixture
def database(escribano: Escribano) -> Path:
    """A database that Escribano made by all its migrations."""
    assert "observations" in escribano("migrate")
    path = Path(os.environ["ESCRIBANO_DB"])
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] >= 24
    return path


def _images(folder: Path, number: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index}.jpg" for index in range(number)]
    for index, path in enumerate(paths):
        noise(index).save(path)
    return paths


def _add_frames(database: Path, images: list[Path]) -> None:
    noon_s = datetime.now().replace(hour=12, minute=0, second=0).timestamp()
    for number, image in enumerate(images):
        change(
            database,
            "INSERT OR IGNORE INTO frames (id, display_id, captured_at, timestamp, image_path) "
            "VALUES (?,'1','',?,?)",
            f"f{number}", noon_s + 10 * number, str(image),
        )  # fmt: skip


def _observations(database: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        query = "SELECT * FROM observations WHERE type = 'visual' ORDER BY timestamp"
        return [dict(row) for row in connection.execute(query)]


def _entries(home: Path) -> dict[str, int]:
    return {
        path.parent.name: path.stat().st_mtime_ns for path in (home / "store" / "frames").glob("??/*/c.0.0.0")
    }


def test_its_adapter_reads_what_the_bridge_answers_and_no_picture_is_encoded_twice(
    escribano: Escribano, home: Path, tmp_path: Path
) -> None:
    images = [
        {"imagePath": str(path), "timestamp": 10 * number}
        for number, path in enumerate(_images(tmp_path / "escribano" / "rec" / "frames", 3))
    ]
    first, again = escribano("text", images)  # with unload_vlm between
    assert len(_entries(home)) == 3
    assert [one["description"] for one in first] == [one["description"] for one in again]
    for one in first:
        assert not one["description"].startswith("Failed to parse")
        assert one["activity"] in ACTIVITIES
        assert not any("]" in item or "[" in item for item in (*one["apps"], *one["topics"]))
        assert one["vlm_stats"]["prompt_tokens"] > 0
    assert escribano("normalize", list(ACTIVITIES)) == list(ACTIVITIES)


def test_our_transcription_of_its_parser_reads_as_it_does(escribano: Escribano) -> None:
    lists = ("[]", "", "[a, b]", "a, b", ",", "[Frame 2: x]")
    lines = [
        f"Frame {number}: description: A b{number} | activity: coding | apps: {apps} | topics: {topics}"
        for number, (apps, topics) in enumerate(((apps, topics) for apps in lists for topics in lists), 1)
    ]
    for joined in ("\n", "", "\n\n"):
        for text in ["no line at all", *(joined.join(lines[start : start + 2]) for start in range(35))]:
            count = max([1, *map(int, re.findall(r"^Frame (\d+)", text, re.M))])
            theirs = escribano("parse", {"text": text, "num_frames": count}) if count < 4 else None
            if theirs is not None:
                ours = parsed(text, count)
                assert [one["description"] for one in ours] == [one["description"] for one in theirs]
                for mine, their in zip(ours, theirs, strict=True):
                    assert (mine.get("apps", []), mine.get("topics", [])) == (their["apps"], their["topics"])


def test_frames_recorded_and_not_analysed_are_described_exported_and_segmented(
    escribano: Escribano, database: Path, run: Run, tmp_path: Path
) -> None:
    images = _images(tmp_path / "frames", 8)
    program = "from seeonce.__main__ import main; main()"
    process = python(program, "encode", "--watch", "--on-battery", "--json", "--model", "demo")
    for number in range(8):
        _add_frames(database, images[: number + 1])
        time.sleep(1)
    time.sleep(30)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    watched = json.loads(out.splitlines()[-1])
    assert (process.returncode, watched["num_encoded"], watched["num_new"]) == (0, 8, 8), err
    assert run("seeonce describe latest --preset escribano --model demo").code == 0
    ended = run("seeonce export --to escribano --json")
    assert (ended.code, len(ended.json["changes"]), ended.json["odd_activities"]) == (0, 8, [])
    made = _observations(database)
    assert {row["activity_type"] for row in made} <= set(ACTIVITIES)
    segments = escribano("segment")
    assert {one["activityType"] for one in segments} <= set(ACTIVITIES)
    assert sorted(id_ for one in segments for id_ in one["observationIds"]) == sorted(
        row["id"] for row in made
    )
    apps = {app for row in made for app in json.loads(row["apps"]) if 2 <= len(app.strip()) <= 50}
    assert {app for one in segments for app in one["apps"]} <= {app.strip() for app in apps}
    assert escribano("analyze") == {"processed": 0, "failed": 0}  # nothing is left for its own model


def test_its_analyzer_of_frames_works_through_the_bridge(
    escribano: Escribano, database: Path, run: Run, home: Path, tmp_path: Path
) -> None:
    _add_frames(database, _images(tmp_path / "frames", 3))
    assert run("seeonce encode latest --model demo").code == 0
    entries = _entries(home)
    assert escribano("analyze") == {"processed": 3, "failed": 0}
    assert _entries(home) == entries  # the store knew them: no vision
    assert {row["activity_type"] for row in _observations(database)} <= set(ACTIVITIES)
    assert len(run("seeonce describe latest --preset escribano --model demo").out) > 0
    (compared,) = run("seeonce compare latest recorded --json").json
    assert compared["num_frames"] == 3  # its analyzer joins lists by commas, and they are read


def test_a_recording_that_it_processed_is_described_anew_and_segmented_again_by_the_printed_steps(
    escribano: Escribano, database: Path, run: Run, tmp_path: Path
) -> None:
    images = _images(tmp_path / "escribano" / "rec" / "frames", 6)
    change(
        database,
        "INSERT INTO recordings (id, video_path, duration, captured_at, source_type) "
        "VALUES ('rec', '/tmp/rec.mp4', 60, '2026-11-21T12:00:00Z', 'raw')",
    )
    frames = [{"imagePath": str(path), "timestamp": 10 * number} for number, path in enumerate(images)]
    recording, blocks = escribano("process", {"id": "rec", "duration": 60, "frames": frames})
    assert recording["status"] == "processed"
    assert blocks
    change(
        database,
        "UPDATE observations SET vlm_description = 'Failed to parse Frame 1', activity_type = 'unknown', "
        "vlm_raw_response = 'raw' WHERE timestamp = 10",
    )
    assert run("seeonce encode rec --model demo").code == 0
    assert run("seeonce describe rec --preset escribano --model demo").code == 0
    assert len(run("seeonce export --to escribano --json").json["changes"]) == 1
    ended = run("seeonce export --to escribano --overwrite --json")
    again = next(step for step in ended.json["later_steps"] if "sqlite3" in step)
    statements = re.search(r"sqlite3 \S+ (.*) && npx", again)
    assert statements is not None
    (sql,) = subprocess.run(
        ["sh", "-c", f"printf %s {statements[1]}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(sql)
    made = _observations(database)
    recording, blocks = escribano("process", {"id": "rec", "duration": 60})
    assert recording["status"] == "processed"
    assert _observations(database) == made
    kept = [json.loads(block["classification"]) for block in blocks]
    assert {one["activity_type"] for one in kept} <= set(ACTIVITIES)
    assert {one["key_description"] for one in kept} <= {row["vlm_description"] for row in made}
