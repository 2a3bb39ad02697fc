"""Two columns of answers against each other."""

import pytest
from processor_time import processor_s
from run_samples import answer, line, run_of

from seeonce.runs.compare import Answers, Said, compare, similarity
from seeonce.runs.sheet import make_sheet


def _answers(name: str, *texts: str | None) -> Answers:
    said = {("monday", frame): Said.of(text) for frame, text in enumerate(texts) if text is not None}
    return Answers(name, said)


def test_equal_answers_agree_whatever_their_white_space() -> None:
    found = compare(_answers("A", "one two", "three"), _answers("B", " one\ntwo ", "four"))
    assert (found.num_frames, found.agreement, found.match_rate) == (2, 0.5, 0.5)
    assert [change.frame for change in found.changed_most] == [1]


def test_similarity_is_difflibs_and_the_same_in_both_directions() -> None:
    left, right = "the mail about billing", "a mail about the billing"
    assert similarity(left, right) == similarity(right, left)
    assert similarity("abcd", "bcde") == 0.75


def test_an_answer_with_one_letter_changed_matches_but_does_not_agree() -> None:
    found = compare(_answers("A", "a mail about billing"), _answers("B", "a mail about killing"))
    assert (found.agreement, found.match_rate) == (0, 1)
    assert 0.9 < found.mean_similarity < 1


def test_frames_that_one_side_lacks_are_counted_and_not_compared() -> None:
    found = compare(_answers("A", "one", None, "three"), _answers("B", "one", "two", None))
    assert (found.num_frames, found.num_left_only, found.num_right_only) == (1, 1, 1)


def test_nothing_in_common_is_no_error() -> None:
    found = compare(_answers("A"), _answers("B"))
    assert (found.num_frames, found.agreement, found.changed_most) == (0, 0.0, ())


def test_applications_that_one_side_names_alone_are_counted_by_frames() -> None:
    left = _answers("A", line("x", apps="Mail, chat"), line("x", apps="mail, Chat"))
    right = _answers("B", line("x", apps="mail"), line("x", apps="mail, editor"))
    found = compare(left, right)
    assert [(one.app, one.num_frames) for one in found.apps_left_only] == [("chat", 2)]
    assert [(one.app, one.num_frames) for one in found.apps_right_only] == [("editor", 1)]


def test_a_plain_sentence_is_compared_with_the_description_of_a_line() -> None:
    found = compare(_answers("A", "a mail about billing"), _answers("B", line("a mail about billing")))
    assert found.mean_similarity == 1


@pytest.mark.parametrize(
    "piece", ["word ", *(pytest.param(piece, marks=pytest.mark.campaign) for piece in ("x", "ab"))]
)
def test_a_long_answer_costs_in_proportion_to_its_length(piece: str) -> None:
    def compared_s(length: int) -> float:
        return processor_s(lambda: similarity(piece * length, piece * (length - 1_000) + "y"))

    assert similarity(piece * 50_000, piece * 49_000 + "y") < 1
    assert compared_s(200_000) < 10 * compared_s(50_000)  # in proportion is 4 times, by the square 16


def test_a_sheet_has_a_row_a_frame_and_a_column_for_each_prompt_and_way_of_asking_it() -> None:
    first = run_of([answer(1, "b", "P?"), answer(0, "a", "P?"), answer(0, "c", "Q?")], "20261121-100000-aaaa")
    second = run_of([answer(0, "d", "P?")], "20261121-110000-bbbb")
    sheet = make_sheet([first, second])
    assert [column.label for column in sheet.columns] == ["A1", "A2", "B1"]
    texts = [[cell and cell.text for cell in row.cells] for row in sheet.rows]
    assert texts == [["a", "d", "c"], ["b", None, None]]


def test_runs_that_asked_alike_about_other_recordings_share_their_columns() -> None:
    runs = [
        run_of([answer(0, day, "P?", recording=day)], f"20261121-1{number}0000-aaaa", name=f"x / {day}")
        for number, day in enumerate(["monday", "tuesday"])
    ]
    sheet = make_sheet(runs)
    assert [column.label for column in sheet.columns] == ["A"]
    assert [[cell and cell.text for cell in row.cells] for row in sheet.rows] == [["monday"], ["tuesday"]]


def test_a_variant_is_named_by_what_only_the_names_of_its_runs_have() -> None:
    runs = [
        run_of([answer(0, "a", recording=day)], f"{number}", name=f"x / {day} / {way}", model=way)
        for number, (day, way) in enumerate(
            (day, way) for day in ("monday", "tuesday") for way in ("4b", "8b")
        )
    ]
    assert [variant.name for variant in make_sheet(runs).variants] == ["4b", "8b"]
