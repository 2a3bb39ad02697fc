"""The preset that asks what Escribano asks, and the way from its frames into its observations."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Run
from escribano_samples import add_frame, new_database
from screens import noise

from cache.base.home import Home
from infer.canary import Verdict, combination, remember
from seeonce.runs.presets import ACTIVITIES, ESCRIBANO, PRESETS

NOON_S = 1_795_262_400.0  # 2026-11-21 12:00 UTC


@pytest.fixture
def day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database with a day of three frames that the recorder took and nobody has described."""
    database = new_database(tmp_path / "user" / ".escribano" / "escribano.db")
    monkeypatch.setenv("ESCRIBANO_DB", str(database))
    for number in range(3):
        image = database.parent / f"{number}.jpg"
        noise(number).save(image)
        add_frame(database, f"f{number}", NOON_S + 10 * number, str(image))
    return database


def test_frames_that_are_recorded_and_not_described_become_observations(
    run: Run, day: Path, home: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Home(home).prepare()
    remember(Home(home), combination(), Verdict.batched)  # test_canary runs the trial
    short = ESCRIBANO.schema.replace("240", "24").replace('"maxItems": 5', '"maxItems": 1')
    monkeypatch.setitem(PRESETS, "escribano", replace(ESCRIBANO, schema=short))  # a random model fills it
    assert run("seeonce encode latest --model", plain).code == 0
    described = run("seeonce describe latest --preset escribano --json --model", plain)
    assert described.code == 0, described.err
    assert described.json["totals"]["num_parsed"] == 3
    ended = run("seeonce export --to escribano --json")
    assert (ended.code, len(ended.json["changes"]), ended.json["odd_activities"]) == (0, 3, [])
    with closing(sqlite3.connect(day)) as database:
        query = "SELECT activity_type, apps, topics, vlm_description FROM observations ORDER BY timestamp"
        found = database.execute(query).fetchall()
        assert database.execute("SELECT SUM(analyzed) FROM frames").fetchone() == (3,)
    assert {row[0] for row in found} <= set(ACTIVITIES)
    assert all(isinstance(json.loads(text), list) for row in found for text in row[1:3])
    assert all(row[3].strip() for row in found)


def test_an_answer_of_the_longest_kind_fits_in_the_tokens_of_the_preset() -> None:
    properties = json.loads(ESCRIBANO.schema)["properties"]
    apps = properties["apps"]
    longest = {
        "description": "x" * properties["description"]["maxLength"],
        "activity": max(ACTIVITIES, key=len),
        **{name: ["x" * apps["items"]["maxLength"]] * apps["maxItems"] for name in ("apps", "topics")},
    }
    assert len(json.dumps(longest)) < ESCRIBANO.max_tokens


@pytest.mark.parametrize("given", ["--prompt Q", "--schema description", "--frames-per-prompt 2"])
def test_a_preset_and_what_it_says_itself_exclude_each_other(given: str, run: Run) -> None:
    said = run(f"seeonce describe demo --preset escribano {given}").error
    assert f"leave out {given.split()[0]}." in said
