"""Runs laid side by side, where frames were shown together: tokens once a request, and what was cut."""

from dataclasses import replace

from run_samples import answer, run_of

from seeonce.runs.run import Result, one_per_request
from seeonce.runs.sheet import make_sheet


def _together(*answers: Result) -> tuple[Result, ...]:
    """Let answers come from one request of 20 tokens that was cut."""
    group = tuple(one.frame for one in answers)
    return tuple(
        replace(one, group=group, finish_reason="length", usage=replace(one.usage, completion_tokens=20))
        for one in answers
    )


def test_the_tokens_of_a_request_count_once_however_many_frames_it_showed() -> None:
    answers = [*_together(answer(0, "a"), answer(1, "b")), *_together(answer(1, "c"), answer(2, "d"))]
    assert [one.text for one in one_per_request(answers)] == ["a", "c"]
    (column,) = make_sheet([run_of(answers)]).columns
    assert column.answer_tokens == 40


def test_lines_without_a_group_are_a_request_each() -> None:
    answers = [answer(0, "a b"), answer(1, "c"), answer(1, "d e f", "Else?")]
    columns = make_sheet([run_of(answers)]).columns
    assert [column.answer_tokens for column in columns] == [3, 3]


def test_of_frames_shown_together_the_last_that_is_spoken_of_was_cut() -> None:
    answers = _together(answer(0, "a"), answer(1, "b"), answer(2, "", error="left out"))
    cells = list(make_sheet([run_of(answers)]).cells(0))
    assert [cell.was_cut for cell in cells] == [False, True, False]
