"""Answers go back: into Escribano's database, no row but those asked for, and into tables."""

import csv
import io
import json
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest
from conftest import Run
from escribano_samples import PLANNED, VERSIONS, add_frame, add_recording, change, dump, sample
from screens import python
from store_samples import frame, manifest

from cache.base.home import Home
from cache.manifest import write_manifest
from cache.store import Store
from seeonce.runs.export import escribano, escribano_write

PARSED = {"description": "Writing tests", "activity": "coding", "apps": ["Code", "A \"b\" 'ü'"], "topics": []}
NEW = ("Writing tests", "coding", '["Code", "A \\"b\\" \'ü\'"]', "[]", None)
COLUMNS = escribano.COLUMNS

Answered = Callable[..., None]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database of today's version with three visual observations and one of sound."""
    return sample(tmp_path / "user" / ".escribano")


@pytest.fixture
def answered(home: Path, database: Path) -> Answered:
    """Return a function that leaves a manifest of observations and a run that answered about them."""
    Store.open(Home(home))

    def leave(
        *lines: dict[str, Any],
        rows: tuple[str, ...] = ("observation=obs-0", "observation=obs-1", "observation=obs-2"),
        place: str = "recording=rec",
        run: str = "20261121-100000-abcd",
    ) -> None:
        frames = tuple(replace(frame(i), source=f"/tmp/{i}.jpg#{row}") for i, row in enumerate(rows))
        made = manifest(len(rows), "rec-1")
        recording = replace(made.recording, kind="escribano", path=f"{database}#{place}")
        write_manifest(Home(home), replace(made, frames=frames, recording=recording))
        folder = home / "runs" / run
        folder.mkdir(parents=True)
        (folder / "run.json").write_text("{}")
        whole = [
            {
                "recording": "rec-1", "frame": i, "timestamp_s": 10.0 * i, "source": frames[i].source,
                "key": "k", "prompt_id": "p", "prompt": "What?", "text": "text", "finish_reason": "stop",
                "usage": {"prompt_tokens": 5, "completion_tokens": 7}, "parsed": PARSED, "error": None,
            } | line
            for i, line in enumerate(lines)
        ]  # fmt: skip
        (folder / "results.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in whole))

    return leave


def _values(database: Path, id_: str) -> tuple[object, ...]:
    with closing(sqlite3.connect(database)) as connection:
        columns = ", ".join(COLUMNS)
        found = connection.execute(f"SELECT {columns} FROM observations WHERE id = ?", (id_,)).fetchone()
    return tuple(found)


def _changed_lines(before: list[str], after: list[str]) -> list[str]:
    return [line for line in after if line not in before and "observations_fts" not in line]


# --- what is written


def test_the_raw_text_beside_a_description_that_stays_the_same_stays(
    run: Run, answered: Answered, database: Path
) -> None:
    change(database, "UPDATE observations SET vlm_raw_response = 'raw'")
    answered({}, {})
    change(database, "UPDATE observations SET vlm_description = 'Writing tests' WHERE id = 'obs-0'")
    assert run("seeonce export --to escribano --overwrite").code == 0
    assert [_values(database, row) for row in ("obs-0", "obs-1")] == [(*NEW[:4], "raw")] * 2


def test_descriptions_are_written_and_nothing_else_changes(
    run: Run, answered: Answered, database: Path
) -> None:
    answered({}, {"parsed": None, "text": "I see a screen"}, {"error": "no entry"})
    before = dump(database)
    ended = run("seeonce export --to escribano")
    assert ended.code == 3
    assert _values(database, "obs-0") == NEW
    assert _values(database, "obs-1") == (None, None, None, None, "I see a screen")
    assert _values(database, "obs-2") == (None,) * 5
    assert "not written: frame 2: there is no answer (no entry)" in ended.out
    after = dump(database)
    changed = _changed_lines(before, after)
    assert [line.partition("VALUES('")[2][:5] for line in changed] == ["obs-0", "obs-1"]
    assert len(after) - len([line for line in after if "fts" in line]) == len(before) - len(
        [line for line in before if "fts" in line]
    )


def test_what_was_written_is_what_is_recorded(run: Run, answered: Answered) -> None:
    line = "description: Writing tests | activity: coding | apps: [Code] | topics: []"
    answered({"text": line}, {"text": json.dumps(PARSED)})
    assert run("seeonce export --to escribano").code == 0
    (found,) = run("seeonce compare --json latest recorded").json
    assert (found["num_frames"], found["agreement"], found["changed_most"]) == (2, 1, [])


def test_lists_that_escribanos_analyzer_joins_by_commas_are_read(
    run: Run, answered: Answered, database: Path
) -> None:
    apps = ", ".join(PARSED["apps"])
    change(database, "UPDATE observations SET vlm_description = 'Writing tests', activity_type = 'coding'")
    change(database, "UPDATE observations SET apps = ?, topics = '' WHERE id = 'obs-0'", apps)
    change(database, "UPDATE observations SET vlm_description = 'Failed to parse Frame 1' WHERE id = 'obs-1'")
    answered({"text": json.dumps(PARSED)}, {"text": json.dumps(PARSED)})
    (found,) = run("seeonce compare --json latest recorded").json
    assert (found["num_frames"], found["agreement"]) == (1, 1)


def test_the_full_text_index_of_escribano_finds_what_was_written(
    run: Run, answered: Answered, database: Path
) -> None:
    change(database, "UPDATE observations SET vlm_description = 'reading mail' WHERE id = 'obs-0'")
    answered({})
    assert run("seeonce export --to escribano --overwrite").code == 0
    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT rowid FROM observations_fts WHERE observations_fts MATCH ?"
        assert connection.execute(query, ("write",)).fetchall() != []
        assert connection.execute(query, ("mail",)).fetchall() == []
        connection.execute("INSERT INTO observations_fts(observations_fts) VALUES ('integrity-check')")
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_exporting_twice_changes_and_copies_nothing_more(
    run: Run, answered: Answered, database: Path
) -> None:
    answered({}, {"parsed": None})
    assert run("seeonce export --to escribano").code == 0
    before, files = dump(database), sorted(database.parent.iterdir())
    ended = run("seeonce export --to escribano --json")
    assert (ended.code, ended.json["changes"], ended.json["num_same"]) == (0, [], 2)
    assert ended.json["backup"] is None
    assert (dump(database), sorted(database.parent.iterdir())) == (before, files)


def test_a_description_that_is_there_is_kept_unless_it_may_be_overwritten(
    run: Run, answered: Answered, database: Path
) -> None:
    mine = ("mine", "reading", None, None, "raw of mine")
    names = ", ".join(f"{name} = ?" for name in COLUMNS)
    change(database, f"UPDATE observations SET {names} WHERE id = 'obs-0'", *mine)
    answered({}, {})
    ended = run("seeonce export --to escribano")
    assert "1 observation written, 0 say so already, 1 keep another description" in ended.out
    assert (_values(database, "obs-0"), _values(database, "obs-1")) == (mine, NEW)
    assert run("seeonce export --to escribano --overwrite").code == 0
    assert _values(database, "obs-0") == NEW


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_dry_run_says_what_would_change_and_writes_nothing(
    overwrite: bool, run: Run, answered: Answered, database: Path
) -> None:
    change(database, "UPDATE observations SET vlm_description = 'mine' WHERE id = 'obs-0'")
    answered({}, {})
    before, files = dump(database), {path.name for path in database.parent.iterdir()}
    ended = run("seeonce export --to escribano --dry-run", *["--overwrite"] * overwrite)
    assert ended.code == 0
    assert "observation obs-1 (frame 1): vlm_description NULL -> 'Writing tests'; activity_type" in ended.out
    assert ("vlm_description 'mine' -> 'Writing tests'" in ended.out) == overwrite
    assert dump(database) == before
    assert {path.name for path in database.parent.iterdir()} - files <= {
        "escribano.db-wal",
        "escribano.db-shm",
    }


@pytest.mark.parametrize("version", [PLANNED, *VERSIONS])
def test_a_database_of_every_version_takes_the_columns_that_it_has(
    version: int, run: Run, answered: Answered, database: Path
) -> None:
    fresh = sample(database.parent / "older", version)
    for suffix in ("", "-wal", "-shm"):
        database.with_name(f"{database.name}{suffix}").unlink(missing_ok=True)
    fresh.replace(database)
    answered({}, {"parsed": None})
    ended = run("seeonce export --to escribano")
    assert ended.code == 0
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        row = dict(connection.execute("SELECT * FROM observations WHERE id = 'obs-0'").fetchone())
    there = {name: row[name] for name in COLUMNS if name in row}
    assert there == {name: value for name, value in zip(COLUMNS, NEW, strict=True) if name in there}
    assert ("left out" in ended.out) == (len(there) < len(COLUMNS))


DAY = {"rows": ("frame=f0", "frame=f1", "frame=f2"), "place": "day=2026-11-21"}


def _add_frames(database: Path) -> None:
    for number in range(3):
        add_frame(database, f"f{number}", 1_795_262_400.0 + number, f"/tmp/{number}.jpg")
    change(
        database,
        "UPDATE frames SET processing_lock_id = 'left', processing_started_at = '2026-11-21T00:00:00Z'",
    )


def _observed(database: Path) -> list[dict[str, object]]:
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        query = (
            "SELECT o.*, analyzed, processing_lock_id FROM frames "
            "LEFT JOIN observations o ON frame_id = frames.id ORDER BY frames.id"
        )
        return [dict(row) for row in connection.execute(query)]


def test_a_frame_of_the_recorder_gets_the_observation_that_escribano_would_have_made(
    run: Run, answered: Answered, database: Path
) -> None:
    _add_frames(database)
    change(database, "UPDATE observations SET recording_id = NULL, frame_id = 'f0' WHERE id = 'obs-2'")
    answered({}, {}, {"parsed": None, "text": "I see"}, **DAY)
    ended = run("seeonce export --to escribano")
    assert ended.code == 3
    assert "2 observations written (1 of them new)" in ended.out
    assert "not written: frame 2: the answer is no description line" in ended.out
    assert "2 observations of these the recorder segments by itself" in ended.out
    there, made, left = _observed(database)
    assert _values(database, "obs-2") == NEW
    assert [made[name] for name in COLUMNS] == list(NEW)
    assert (made["type"], made["recording_id"], made["tb_id"], made["text"]) == ("visual", None, None, None)
    assert (made["frame_id"], made["timestamp"], made["image_path"]) == ("f1", 1_795_262_401.0, "/tmp/1.jpg")
    assert [(row["analyzed"], row["processing_lock_id"]) for row in (there, made, left)] == [
        (1, None), (1, None), (0, "left"),
    ]  # fmt: skip
    stats = json.loads(str(made["vlm_stats"]))
    assert (stats["prompt_tokens"], stats["generation_tokens"], stats["batch_size"]) == (5, 7, 1)
    before = dump(database)
    assert "0 observations written, 2 say so already" in run("seeonce export --to escribano").out
    assert dump(database) == before


@pytest.mark.parametrize("zone", [UTC, None])
def test_a_frame_that_escribano_describes_right_now_is_left_to_it(
    zone: tzinfo | None, run: Run, answered: Answered, database: Path
) -> None:
    _add_frames(database)
    now = datetime.now(UTC).replace(tzinfo=zone).isoformat()
    change(database, "UPDATE frames SET processing_started_at = ? WHERE id = 'f1'", now)
    answered({}, {}, {}, **DAY)
    ended = run("seeonce export --to escribano --json")
    assert "Escribano describes frame f1 right now" in ended.json["problems"][0]
    assert [row["analyzed"] for row in _observed(database)] == [1, 0, 1]


@pytest.mark.parametrize("said", ["Failed to parse Frame 2", "No description", "Parse error: x"])
def test_what_escribano_writes_for_no_answer_is_replaced_with_its_raw_text(
    said: str, run: Run, answered: Answered, database: Path
) -> None:
    change(
        database, "UPDATE observations SET vlm_description = ?, vlm_raw_response = 'raw', apps = '[]'", said
    )
    answered({}, {})
    ended = run("seeonce export --to escribano")
    assert ended.code == 0
    assert [_values(database, row) for row in ("obs-0", "obs-1")] == [NEW, NEW]
    assert _values(database, "obs-2")[0] == said


def test_the_steps_that_are_to_run_again_are_named_and_activities_that_are_none(
    run: Run, answered: Answered, database: Path
) -> None:
    _add_frames(database)
    change(
        database, "INSERT INTO topic_blocks (id, recording_id) VALUES ('b1', '__recorder__'), ('b2', 'rec')"
    )
    answered({"parsed": PARSED | {"activity": "Writing tests"}})
    ended = run("seeonce export --to escribano")
    assert "DELETE FROM topic_blocks WHERE recording_id = " in ended.out
    assert "processing_step = " in ended.out
    assert "npx escribano --file VIDEO" in ended.out
    assert "Not among Escribano's activities, so each makes segments of its own: Writing tests;" in ended.out
    change(database, "UPDATE observations SET frame_id = 'f0', tb_id = 'b1' WHERE id = 'obs-2'")
    answered({}, run="20261121-100001-abcd", **DAY)
    (step,) = run("seeonce export --to escribano --json").json["later_steps"]
    assert "Topic blocks made of what is replaced: 1." in step
    assert "DELETE FROM topic_blocks WHERE id IN ('\"'\"'b1'\"'\"')" in step


def test_three_copies_are_kept_and_how_to_remove_them_is_said(
    run: Run, answered: Answered, database: Path
) -> None:
    mine = database.with_name("escribano.db.before-seeonce-mine")
    mine.touch()
    answered({})
    for number in range(5):
        change(database, "UPDATE observations SET vlm_description = NULL, activity_type = ?", str(number))
        ended = run("seeonce export --to escribano")
    copies = sorted(database.parent.glob("*.before-seeonce-2*"))
    assert len(copies) == 3
    assert mine.exists()
    assert f"rm {database}.before-seeonce-[0-9]*" in ended.out
    with closing(sqlite3.connect(copies[0])) as connection:
        assert connection.execute("SELECT MIN(activity_type) FROM observations").fetchone()[0] >= "2"


def test_an_export_that_fails_or_is_killed_leaves_no_copy(
    run: Run, answered: Answered, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered({})
    before = sorted(database.parent.iterdir())
    with monkeypatch.context() as killed:
        killed.setattr(os, "fsync", Mock(side_effect=KeyboardInterrupt))
        run("seeonce export --to escribano")
    assert len(list(database.parent.glob(".*.part"))) == 1
    change(database, "CREATE TRIGGER no BEFORE UPDATE ON observations BEGIN SELECT RAISE(ABORT, 'no'); END")
    assert "nothing was written" in run("seeonce export --to escribano").error
    assert sorted(database.parent.iterdir()) == before
    change(database, "DROP TRIGGER no")
    assert run("seeonce export --to escribano").code == 0


def test_rows_that_are_gone_or_now_of_another_recording_are_told_and_the_rest_is_written(
    run: Run, answered: Answered, database: Path
) -> None:
    add_recording(database, "other")
    answered({}, {}, {}, {}, rows=("observation=obs-0", "observation=obs-1", "observation=obs-2", "pts=5"))
    change(database, "DELETE FROM observations WHERE id = 'obs-0'")
    change(database, "UPDATE observations SET recording_id = 'other' WHERE id = 'obs-1'")
    ended = run("seeonce export --to escribano --json")
    assert ended.code == 3
    assert [change["observation"] for change in ended.json["changes"]] == ["obs-2"]
    problems = ended.json["problems"]
    assert ["obs-0: it is no longer there" in problems[0], "obs-1" in problems[1]] == [True, True]
    assert "names no row" in problems[2]
    assert _values(database, "obs-1") == (None,) * 5


def test_sound_is_never_written_to(run: Run, answered: Answered, database: Path) -> None:
    answered({}, rows=("observation=heard",))
    assert run("seeonce export --to escribano").code == 3
    assert _values(database, "heard") == (None,) * 5


def test_ids_and_texts_with_quotes_and_half_characters_are_values_not_sql(
    run: Run, answered: Answered, database: Path
) -> None:
    odd = "'; DROP TABLE observations; -- ü#&="
    change(database, "UPDATE observations SET id = ? WHERE id = 'obs-0'", odd)
    quoted = "observation=%27%3B%20DROP%20TABLE%20observations%3B%20--%20%C3%BC%23%26%3D"
    answered({"parsed": PARSED | {"description": "'); DELETE \ud800 \0"}}, rows=(quoted,))
    assert run("seeonce export --to escribano").code == 0
    assert _values(database, odd)[0] == "'); DELETE ? \0"


def test_what_was_encoded_and_described_by_the_commands_comes_back(
    run: Run, home: Path, database: Path, plain: Path
) -> None:
    add_recording(database, "newer", "2026-11-21")  # without frames: not the latest
    (database.parent / "frame_2.jpg").unlink()
    assert run("seeonce encode --model", plain).code == 3
    assert run("seeonce describe --max-tokens 3 --model", plain).code == 0
    before = dump(database)
    ended = run("seeonce export --to escribano --json")
    assert ended.code == 0
    lines = (next((home / "runs").iterdir()) / "results.jsonl").read_text(encoding="utf-8").splitlines()
    texts = {line["frame"]: line["text"] for line in map(json.loads, lines)}
    assert [_values(database, f"obs-{i}")[4] for i in range(3)] == [texts[0], texts[1], None]
    assert len(_changed_lines(before, dump(database))) == 2


# --- all or nothing, beside others


def test_the_copy_is_the_database_as_it_was_with_what_only_the_wal_held(
    run: Run, answered: Answered, database: Path
) -> None:
    answered({})
    with closing(sqlite3.connect(database)) as other:
        other.execute("PRAGMA wal_autocheckpoint = 0")
        other.execute("UPDATE recordings SET status = 'processed' WHERE id = 'rec'")
        other.commit()
        before = dump(database)
        backup = Path(run("seeonce export --to escribano --json").json["backup"])
    assert backup.parent == database.parent
    assert backup.stat().st_mode & 0o777 == 0o600
    assert dump(backup) == before
    assert not backup.with_name(f"{backup.name}-wal").exists()


def test_a_write_lock_of_another_process_is_waited_for_and_then_said(
    run: Run, answered: Answered, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(escribano_write, "WRITE_TIMEOUT_S", 0.2)
    answered({})
    before, files = dump(database), sorted(database.parent.iterdir())
    holder = python(
        "import sqlite3, sys, time\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('BEGIN IMMEDIATE'); print('held', flush=True); time.sleep(60)\n",
        database,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        ended = run("seeonce export --to escribano")
    finally:
        holder.kill()
        holder.communicate()
    assert "locked by another program for more than 0.2 s" in ended.error
    assert "nothing was written" in ended.error
    assert (dump(database), sorted(database.parent.iterdir())) == (before, files)
    assert run("seeonce export --to escribano").code == 0


def test_rows_that_another_process_writes_meanwhile_all_stay(
    run: Run, answered: Answered, database: Path
) -> None:
    answered({}, {}, {})
    writer = python(
        "import sqlite3, sys, itertools, time\n"
        "c = sqlite3.connect(sys.argv[1], timeout=30)\n"
        "c.execute('PRAGMA synchronous = OFF')\n"
        "for n in itertools.count():\n"
        "    time.sleep(0.005)\n"
        "    with c: c.execute('INSERT INTO observations (id, recording_id, type, timestamp, '\n"
        '        \'vlm_description) VALUES (?, "rec", "visual", 1, "theirs")\', (str(n),))\n'
        "    print(n, flush=True)\n",
        database,
    )
    try:
        assert writer.stdout is not None
        for _ in range(2):
            writer.stdout.readline()
            assert run("seeonce export --to escribano --overwrite").code == 0
        last = int(writer.stdout.readline())
    finally:
        writer.kill()
        writer.communicate()
    assert _values(database, "obs-2") == NEW
    with closing(sqlite3.connect(database)) as connection:
        theirs = connection.execute("SELECT COUNT(*) FROM observations WHERE vlm_description = 'theirs'")
        assert theirs.fetchone()[0] >= last + 1


@pytest.mark.parametrize("fault", ["copy", "row"])
def test_a_failure_in_the_middle_leaves_every_row_as_it_was(
    fault: str, run: Run, answered: Answered, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered({}, {}, {})
    if fault == "row":
        change(
            database,
            "CREATE TRIGGER refuses BEFORE UPDATE ON observations WHEN OLD.id = 'obs-2' "
            "BEGIN SELECT RAISE(ABORT, 'no more'); END",
        )
    else:
        monkeypatch.setattr(
            "os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
    before = dump(database)
    ended = run("seeonce export --to escribano")
    assert "nothing was written" in ended.error
    assert dump(database) == before
    assert not list(database.parent.glob("*.part")) + list(database.parent.glob(".*.part"))


# --- which run, which prompt, which database


def test_of_several_prompts_the_one_that_describes_is_taken_else_it_must_be_named(
    run: Run, answered: Answered, database: Path
) -> None:
    lines = [{"frame": 0, "prompt": text, "parsed": parsed} for text, parsed in (("Q?", None), ("D", PARSED))]
    answered(*lines, {"frame": 1, "prompt": "Q?", "parsed": None}, rows=("observation=obs-0",) * 3)
    assert run("seeonce export --to escribano --json").json["changes"][0]["columns"]["apps"] == NEW[2]
    ended = run("seeonce export latest:Q --to escribano --dry-run --json --overwrite")
    assert {tuple(change["columns"]) for change in ended.json["changes"]} == {("vlm_raw_response",)}
    both = [{"frame": 0, "prompt": text} for text in "AB"]
    answered(*both, run="20261121-100001-abcd", rows=("observation=obs-0",) * 2)
    said = run("seeonce export --to escribano").error
    assert "the run has 2 prompts: name 20261121-100001-abcd:1 'A', 20261121-100001-abcd:2 'B'" in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("seeonce export 2025", "No run '2025'; the newest are 20261121-100001-abcd"),
        ("seeonce export 20261121", "fits 20261121-100001-abcd, 20261121-100000-abcd"),
        ("seeonce export --to escribano --output x.csv", "--output is for csv and parquet"),
        ("seeonce export --dry-run", "--dry-run and --overwrite are for --to escribano"),
        ("seeonce export --output /nowhere/x.csv", "/nowhere/x.csv cannot be written"),
        ("seeonce export --to parquet --output -", "--output - is for csv: parquet is no text, name a file"),
        ("seeonce export --to escribano --output -", "--output is for csv and parquet"),
        ("seeonce export --json --output -", "--json and --output - both write to standard output"),
    ],
)
def test_what_an_export_refuses(line: str, said: str, run: Run, answered: Answered) -> None:
    answered({})
    answered({}, run="20261121-100001-abcd")
    assert said in run(line).error


def test_a_recording_that_is_not_escribanos_names_the_other_formats(run: Run, answered: Answered) -> None:
    answered({"recording": "gone"})
    assert "is not encoded any more" in run("seeonce export --to escribano").error


def test_a_database_that_is_gone_or_none_is_said_in_one_line(
    run: Run, answered: Answered, database: Path
) -> None:
    answered({})
    for suffix in ("", "-wal", "-shm"):
        database.with_name(f"{database.name}{suffix}").unlink(missing_ok=True)
    assert "no such database" in run("seeonce export --to escribano").error
    assert not database.exists()
    database.write_bytes(b"no database at all, but long enough to be looked at" * 40)
    for words in ("", " --dry-run"):
        assert "not a SQLite database" in run(f"seeonce export --to escribano{words}").error


def test_without_runs_the_command_that_makes_one_is_named(run: Run, home: Path) -> None:
    assert "run seeonce describe first" in run("seeonce export").error


# --- tables


ODD = '=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", " \t=1", 'a,b\n"c" ü', "1-2"


def test_a_csv_holds_every_answer_and_no_formula(run: Run, answered: Answered, tmp_path: Path) -> None:
    answered(*({"text": text, "parsed": None} for text in ODD), {}, rows=("observation=x",) * 8)
    assert run("seeonce export --output", tmp_path / "a.csv").code == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text(encoding="utf-8"), newline="")))
    assert [row["text"] for row in rows[:7]] == [f"'{text}" for text in ODD[:5]] + list(ODD[5:])
    assert json.loads(rows[7]["apps"]) == PARSED["apps"]
    assert (rows[7]["frame"], rows[7]["description"], rows[0]["description"]) == ("7", "Writing tests", "")
    assert (tmp_path / "a.csv").stat().st_mode & 0o777 == 0o600


def test_a_csv_goes_to_standard_output_and_nothing_else_does(
    run: Run, answered: Answered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answered({"text": ODD[5]}, {})
    printed = run("seeonce export --output -")
    assert run("seeonce export --output a.csv").code == 0
    assert printed.out == (tmp_path / "a.csv").read_bytes().decode()
    assert not (tmp_path / "-").exists()


def test_a_pipe_that_an_export_is_given_stays_one(run: Run, answered: Answered, tmp_path: Path) -> None:
    answered({})
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert run("seeonce export --output", pipe).code == 0
    assert os.read(reader, 9) == b"recording"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_parquet_file_holds_every_answer_as_it_is(run: Run, answered: Answered, home: Path) -> None:
    answered({"text": ODD[0]}, {"parsed": None, "error": "no \ud800"})
    assert "2 answers in" in run("seeonce export latest --to parquet").out
    rows = pq.read_table(home / "runs" / "20261121-100000-abcd" / "results.parquet").to_pylist()
    assert (rows[0]["text"], rows[0]["apps"], rows[0]["topics"]) == (ODD[0], PARSED["apps"], [])
    assert (rows[1]["apps"], rows[1]["error"], rows[1]["timestamp_s"]) == (None, "no ?", 10.0)


def test_without_pyarrow_parquet_says_what_to_install(
    run: Run, answered: Answered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    answered({})
    assert "pip install 'seeonce[parquet]'" in run("seeonce export --to parquet").error


def test_lines_that_are_no_results_are_told_and_the_rest_is_exported(
    run: Run, answered: Answered, home: Path
) -> None:
    answered({}, {"timestamp_s": float("nan")}, {"frame": "one"})
    with (home / "runs" / "20261121-100000-abcd" / "results.jsonl").open("a") as file:
        file.write('{"recording": "cut of')
    ended = run("seeonce export --json")
    assert ended.json["num_answers"] == 1
    assert [line.split(",")[1].split(":")[0] for line in ended.err.splitlines()] == [
        " line 2",
        " line 3",
        " line 4",
    ]
