"""Databases as Escribano's versions have made them, step after step, and realistic rows for them.

The tables and columns are those of its public migrations; the SQL is ours. ``PLANNED`` is the shape of
an early plan, whose image column has another name.
"""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

from screens import noise

_OBSERVED = "id TEXT PRIMARY KEY, recording_id TEXT {null} REFERENCES recordings(id) ON DELETE CASCADE"
_VISUAL = "type TEXT NOT NULL, timestamp REAL NOT NULL, end_timestamp REAL, image_path TEXT, ocr_text TEXT"
_AUDIO = "text TEXT, audio_source TEXT, audio_type TEXT, embedding BLOB, created_at TEXT DEFAULT 'then'"
_NEW = "vlm_description TEXT, vlm_raw_response TEXT, activity_type TEXT, apps TEXT, topics TEXT"
_CARRIED = "id, recording_id, type, timestamp, image_path, vlm_description, vlm_raw_response, activity_type"

STEPS = {
    1: f"""
        CREATE TABLE recordings (id TEXT PRIMARY KEY, video_path TEXT, audio_mic_path TEXT,
            duration REAL NOT NULL, captured_at TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'raw',
            processing_step TEXT, source_type TEXT NOT NULL, source_metadata TEXT,
            updated_at TEXT DEFAULT 'then');
        CREATE TABLE observations ({_OBSERVED.format(null="NOT NULL")}, {_VISUAL}, vlm_description TEXT,
            {_AUDIO});
        CREATE INDEX of_recording ON observations(recording_id, type);
        CREATE TABLE topic_blocks (id TEXT PRIMARY KEY, recording_id TEXT NOT NULL, duration REAL);
        CREATE TABLE _schema_version (version INTEGER PRIMARY KEY);""",
    3: """
        ALTER TABLE observations ADD COLUMN activity_type TEXT;
        ALTER TABLE observations ADD COLUMN apps TEXT;
        ALTER TABLE observations ADD COLUMN topics TEXT;""",
    6: "ALTER TABLE observations ADD COLUMN vlm_raw_response TEXT;",
    14: """
        CREATE TABLE frames (id TEXT PRIMARY KEY, display_id TEXT NOT NULL, captured_at TEXT NOT NULL,
            timestamp REAL NOT NULL, image_path TEXT NOT NULL, phash TEXT, width INTEGER, height INTEGER,
            analyzed INTEGER DEFAULT 0, processing_lock_id TEXT, processing_started_at TEXT,
            retry_count INTEGER DEFAULT 0, failed_at TEXT);
        CREATE INDEX frames_by_time ON frames(timestamp);""",
    15: f"""
        CREATE TABLE fresh ({_OBSERVED.format(null="")}, frame_id TEXT REFERENCES frames(id), {_VISUAL},
            {_NEW}, {_AUDIO});
        INSERT INTO fresh ({_CARRIED}) SELECT {_CARRIED} FROM observations;
        DROP TABLE observations;
        ALTER TABLE fresh RENAME TO observations;
        CREATE INDEX of_recording ON observations(recording_id, type);
        CREATE INDEX of_frame ON observations(frame_id);""",
    16: "ALTER TABLE observations ADD COLUMN vlm_stats TEXT;",
    17: """
        ALTER TABLE observations ADD COLUMN tb_id TEXT REFERENCES topic_blocks(id);
        INSERT INTO recordings (id, duration, captured_at, status, source_type)
            VALUES ('__recorder__', 0, '2026-11-01 08:00:00', 'processed', 'raw');""",
    22: """
        CREATE VIRTUAL TABLE observations_fts USING fts5(vlm_description, content='observations',
            content_rowid='rowid', tokenize='porter unicode61');
        INSERT INTO observations_fts(observations_fts) VALUES ('rebuild');
        CREATE TRIGGER fts_insert AFTER INSERT ON observations WHEN NEW.vlm_description IS NOT NULL BEGIN
            INSERT INTO observations_fts(rowid, vlm_description) VALUES (NEW.rowid, NEW.vlm_description); END;
        CREATE TRIGGER fts_forget AFTER UPDATE OF vlm_description ON observations
            WHEN OLD.vlm_description IS NOT NULL BEGIN
            INSERT INTO observations_fts(observations_fts, rowid, vlm_description)
                VALUES ('delete', OLD.rowid, OLD.vlm_description); END;
        CREATE TRIGGER fts_learn AFTER UPDATE OF vlm_description ON observations
            WHEN NEW.vlm_description IS NOT NULL BEGIN
            INSERT INTO observations_fts(rowid, vlm_description)
                VALUES (NEW.rowid, NEW.vlm_description); END;""",
    24: "CREATE INDEX frames_to_do ON frames(analyzed, timestamp); PRAGMA user_version = 24;",
}  # fmt: skip
VERSIONS = tuple(STEPS)
LATEST = VERSIONS[-1]
PLANNED = 0


def new_database(path: Path, version: int = LATEST) -> Path:
    """Make a database by every step up to a version, in WAL mode as Escribano opens it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = [STEPS[number] for number in VERSIONS if number <= max(version, 1)]
    if version == PLANNED:
        steps = [step.replace("image_path", "source_path") for step in steps]
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA journal_mode = WAL")
        for step in steps:
            database.executescript(step)
        database.commit()
    return path


def change(path: Path, statement: str, *values: object) -> None:
    """Run one statement and commit it, as another program would."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute(statement, values)
        database.commit()


def add_recording(
    path: Path, id_: str = "rec", captured_at: str = "2026-11-20T09:00:00Z", duration: object = 600.0,
    video: str | None = None,
) -> None:  # fmt: skip
    """Write a row of ``recordings``."""
    change(
        path,
        "INSERT INTO recordings (id, video_path, duration, captured_at, source_type) VALUES (?,?,?,?,'cap')",
        id_, video, duration, captured_at,
    )  # fmt: skip


def add_observation(path: Path, id_: str, timestamp: object, image: object, recording: str = "rec") -> None:
    """Write a visual observation, with the image column by the name that the database has."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA synchronous = OFF")
        columns = {row[1] for row in database.execute("PRAGMA table_info(observations)")}
        name = "image_path" if "image_path" in columns else "source_path"
        database.execute(
            f"INSERT INTO observations (id, recording_id, type, timestamp, {name}) VALUES (?,?,'visual',?,?)",
            (id_, recording, timestamp, image),
        )
        database.commit()


def add_frame(path: Path, id_: str, timestamp: object, image: object, phash: object = None) -> None:
    """Write a frame of the always-on recorder."""
    change(
        path,
        "INSERT INTO frames (id, display_id, captured_at, timestamp, image_path, phash) "
        "VALUES (?,'1','',?,?,?)",
        id_, timestamp, image, phash,
    )  # fmt: skip


def sample(folder: Path, version: int = LATEST, num_frames: int = 3) -> Path:
    """Make a database with one recording whose images lie beside it, and an audio observation."""
    path = new_database(folder / "escribano.db", version)
    add_recording(path)
    for index in range(num_frames):
        image = folder / f"frame_{index}.jpg"
        noise(index).save(image)
        add_observation(path, f"obs-{index}", 10.0 * index, str(image))
    change(
        path,
        "INSERT INTO observations (id, recording_id, type, timestamp, text) "
        "VALUES ('heard', 'rec', 'audio', 5, 'words')",
    )
    return path


def dump(path: Path) -> list[str]:
    """Return every row and every table of a database as SQL."""
    with closing(sqlite3.connect(path)) as database:
        return list(database.iterdump())


def parsed(text: str, num_frames: int) -> list[dict[str, object]]:
    """Read an answer by the rules that Escribano's parser is seen to follow; the code is ours.

    A frame's part ends before the next "Frame N:" or at the end of the text. ``apps`` and ``topics`` lose a
    bracket at the very beginning and the very end of what was found, and are split at commas.
    """
    found: list[dict[str, object]] = []
    for number in range(1, num_frames + 1):
        match = re.search(
            rf"Frame {number}:\s*description:\s*(?P<description>.+?)\s*\|\s*activity:\s*(?P<activity>.+?)\s*"
            r"\|\s*apps:\s*(?P<apps>\[.+?\]|[^|]+)\s*\|\s*topics:\s*(?P<topics>.+?)(?=Frame \d+:|\Z)",
            text,
            re.IGNORECASE | re.DOTALL,
        )
        if match is None:
            found.append({"description": f"Failed to parse Frame {number}", "activity": "unknown"})
            continue
        lists = {name: re.sub(r"\A\[|\]\Z", "", match[name]).split(",") for name in ("apps", "topics")}
        kept = {name: [item.strip() for item in items if item.strip()] for name, items in lists.items()}
        found.append({name: match[name].strip() for name in ("description", "activity")} | dict(kept))
    return found
