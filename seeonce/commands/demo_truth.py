"""The truth about the demo recording, for the commands that know it."""

from collections.abc import Sequence
from pathlib import Path

from checkpoint.folder import DEMO
from seeonce.runs.compare import Place
from seeonce.runs.run import Result
from seeonce.runs.score import Expected, expected_answer, file_name
from seeonce.runs.sheet import Column, Row


def judge(recording_id: str, results: Sequence[Result]) -> list[str]:
    """Say how many answers about the demo recording are true; of others the truth is not known."""
    if recording_id != DEMO:
        return []
    from seeonce.demo import score as demo

    asked = [demo.Result((Path(result.source).name,), result.prompt, result.text) for result in results]
    scores = demo.score(asked, demo.read_truth(Path(demo.__file__).with_name("recording") / "truth.json"))
    return [f"{score.num_true} of {score.num_asked} answers ({score.question}) are true." for score in scores]


def known_truth(column: Column, rows: tuple[Row, ...]) -> dict[Place, Expected]:
    """Return the true answers about the demo's frames; of other recordings the truth is not known."""
    from seeonce.demo import score as demo

    truth = demo.read_truth(Path(demo.__file__).with_name("recording") / "truth.json")
    found: dict[Place, Expected] = {}
    for row in rows if any(row.recording == DEMO for row in rows) else ():
        answer = truth.answer((file_name(row.source),), column.prompt) if row.recording == DEMO else None
        if answer is not None:
            found[row.recording, row.frame] = expected_answer(answer, demo.question_of(column.prompt) or "")
    return found
