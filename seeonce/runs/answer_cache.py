"""Answers by content: the same question to the same model about the same pictures is not decoded again.

A corrupt file is replaced by an empty one; one that cannot be written is not used, silently.
Errors are never kept.
"""

import sqlite3
import time
from dataclasses import asdict

from cache.base.canonical_json import JsonValue, canonical, parse
from cache.base.errors import StoreError
from cache.base.files import PRIVATE_FOLDER
from cache.base.home import Home
from cache.base.sqlite import DisposableDatabase
from cache.key import FieldHasher
from infer.request import Answer, Usage
from seeonce.runs.results import logprobs_of

MAX_ANSWERS = 500_000
MAX_BYTES = 1 << 30
_CHECK = "seeonce 2026-11 answer row, format 1"
_KEPT_OF_FULL = 0.8
_PRUNE_EVERY = 500
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    ask TEXT PRIMARY KEY, recording TEXT NOT NULL, reply TEXT NOT NULL, used_at INTEGER NOT NULL,
    row_digest BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answers_by_use ON answers (used_at);
CREATE INDEX IF NOT EXISTS answers_by_recording ON answers (recording);
"""


class AnswerCache(DisposableDatabase):
    """The answers of one home; threads and processes may share it. ``close`` it, or use ``with``."""

    def __init__(self, home: Home, max_answers: int = MAX_ANSWERS, max_bytes: int = MAX_BYTES) -> None:
        self._home, self._max_answers, self._max_bytes = home, max_answers, max_bytes
        super().__init__(home.path / "answers" / "answers-1.sqlite", _SCHEMA)
        self._num_kept = 0

    def find(self, digest: str) -> Answer | None:
        """Return the answer that was kept for a request; a row that was changed is ignored."""

        def work(connection: sqlite3.Connection) -> Answer | None:
            query = "SELECT recording, reply, row_digest FROM answers WHERE ask = ?"
            row = connection.execute(query, (digest,)).fetchone()
            if row is None or row[2] != _row_digest(digest, row[0], row[1]):
                return None
            with connection:
                connection.execute("UPDATE answers SET used_at = ? WHERE ask = ?", (_now(), digest))
            return answer_from_json(row[1])

        return self.work(work)

    def keep(self, digest: str, answer: Answer, recording: str) -> None:
        """Keep an answer that was decoded for a recording; one with an error is not kept."""
        if answer.error is not None:
            return
        text = answer_to_json(answer)

        def work(connection: sqlite3.Connection) -> None:
            with connection:
                row = (digest, recording, text, _now(), _row_digest(digest, recording, text))
                connection.execute("INSERT OR REPLACE INTO answers VALUES (?,?,?,?,?)", row)
            if self._num_kept % _PRUNE_EVERY == 0:
                self._prune(connection)
            self._num_kept += 1

        self.work(work)

    def remove_recording(self, recording: str) -> int:
        """Remove the answers that were decoded for a recording; return how many there were."""

        def work(connection: sqlite3.Connection) -> int:
            return connection.execute("DELETE FROM answers WHERE recording = ?", (recording,)).rowcount

        return self.erase(work) or 0

    def _prune(self, connection: sqlite3.Connection) -> None:
        """When there is more than the bound, keep four fifths of it: those that were used last."""
        num_answers, num_bytes = connection.execute(
            "SELECT count(*), coalesce(sum(length(reply)), 0) FROM answers"
        ).fetchone()
        share = max(num_answers / self._max_answers, num_bytes / self._max_bytes)
        if share <= 1:
            return
        surplus = num_answers - int(num_answers / share * _KEPT_OF_FULL)
        with connection:
            connection.execute(
                "DELETE FROM answers WHERE ask IN (SELECT ask FROM answers ORDER BY used_at LIMIT ?)",
                (surplus,),
            )

    def prepare_folder(self) -> None:
        """Make the folder of the answers."""
        self.path.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)


def _row_digest(digest: str, recording: str, answer: str) -> bytes:
    """Bind an answer to its request: SQLite does not notice a flipped bit, nor two rows exchanged."""
    hasher = FieldHasher(_CHECK)
    hasher.add((digest, recording, answer))
    return hasher.digest()


def answer_to_json(answer: Answer) -> str:
    """Return an answer without an error as JSON; its tokens are not kept."""
    document: JsonValue = {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "usage": asdict(answer.usage),
        "logprobs": None if answer.logprobs is None else [asdict(one) for one in answer.logprobs],
        **({"reasoning": answer.reasoning} if answer.reasoning else {}),
    }
    return canonical(document).decode("ascii")


def answer_from_json(text: str) -> Answer | None:
    """Read a kept answer; ``None`` when it is of another version.

    An empty text is no answer either: earlier versions kept reasoning that never ended as one.
    """
    try:
        found = parse(text.encode(), "a kept answer")
        answer = Answer(
            found.text("text"),
            found.text("finish_reason"),
            found.child("usage").record(Usage),
            logprobs_of(found),
            reasoning=found.text("reasoning") if found.has("reasoning") else "",
        )
    except StoreError:
        return None
    return answer if answer.text else None


def _now() -> int:
    return int(time.time())
