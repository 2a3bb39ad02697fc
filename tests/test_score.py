"""Answers against the truth: exact, by lists, and whether one frame got another's."""

from pathlib import Path

import pytest
from run_samples import answer, line, run_of

from cache.base.errors import InputError
from seeonce.runs.score import Expected, PromptScore, file_name, read_truth, score_column, truth_for
from seeonce.runs.sheet import make_sheet

CSV = """frame,description,activity,apps,topics
0,mail full screen,reading,mail,billing
1,editor on the left,writing code,editor; terminal,login
2.png,browser in front,searching,"browser, notes",travel
"""
TRUE = (
    line("mail full screen", "reading", "mail", "billing"),
    line("editor on the left", "writing code", "editor, Terminal", "login"),
    line("browser in front", "searching", "notes, browser", "travel"),
)


def _score(tmp_path: Path, csv: str, *texts: str) -> PromptScore:
    (tmp_path / "truth.csv").write_text(csv, encoding="utf-8")
    results = [answer(frame, text, source=f"/frames/{frame}.png") for frame, text in enumerate(texts)]
    sheet = make_sheet([run_of(results)])
    rows = read_truth(tmp_path / "truth.csv")
    return score_column(sheet, 0, truth_for(rows, sheet.columns[0], sheet.rows))


def test_true_answers_are_exact_whatever_the_order_of_their_lists(tmp_path: Path) -> None:
    score = _score(tmp_path, CSV, *TRUE)
    assert (score.num_scored, score.num_exact, score.mix_ups) == (3, 3, ())
    assert score.apps is not None
    assert (score.apps.precision, score.apps.recall) == (1, 1)


def test_precision_and_recall_tell_wrong_items_from_missing_ones(tmp_path: Path) -> None:
    wrong = line("editor on the left", "writing code", "editor, chat, music", "login")
    score = _score(tmp_path, CSV, TRUE[0], wrong, TRUE[2])
    assert score.num_exact == 2
    assert score.apps is not None
    assert (score.apps.precision, score.apps.recall) == (4 / 6, 4 / 5)


def test_a_frame_that_got_another_frames_description_is_named(tmp_path: Path) -> None:
    score = _score(tmp_path, CSV, TRUE[0], TRUE[2], TRUE[2])
    assert [(mix_up.frame, mix_up.like_frame, mix_up.other_score) for mix_up in score.mix_ups] == [
        (1, 2, 1.0)
    ]


def test_two_frames_that_changed_places_are_both_named(tmp_path: Path) -> None:
    score = _score(tmp_path, CSV, TRUE[1], TRUE[0], TRUE[2])
    assert [(mix_up.frame, mix_up.like_frame) for mix_up in score.mix_ups] == [(0, 1), (1, 0)]


def test_an_answer_that_is_merely_wrong_is_no_mix_up(tmp_path: Path) -> None:
    score = _score(tmp_path, CSV, line("a cat", "sleeping", "none", "cats"), "no idea", TRUE[2])
    assert (score.num_exact, score.mix_ups) == (1, ())


def test_frames_that_look_the_same_are_not_mixed_up(tmp_path: Path) -> None:
    csv = "frame,text\n0,mail\n1,mail\n2,chat\n"
    assert _score(tmp_path, csv, "mail", "mail", "chat").mix_ups == ()
    mixed = _score(tmp_path, csv, "chat", "mail", "chat").mix_ups
    assert [(mix_up.frame, mix_up.like_frame) for mix_up in mixed] == [(0, 2)]


def test_an_error_is_a_wrong_answer(tmp_path: Path) -> None:
    sheet = make_sheet([run_of([answer(0, "mail", error="full")])])
    score = score_column(sheet, 0, {("monday", 0): Expected(text="mail")})
    assert (score.num_scored, score.num_exact) == (1, 0)


def test_a_row_about_one_prompt_says_nothing_about_others(tmp_path: Path) -> None:
    assert _score(tmp_path, "frame,prompt,text\n0,Another?,mail\n", "mail").num_scored == 0
    assert _score(tmp_path, "frame,prompt,text\n0,What is it?,mail\n", "mail").num_exact == 1


@pytest.mark.parametrize(
    ("csv", "said"),
    [
        ("frame,aps\n0,mail\n", "unknown column 'aps'; did you mean 'apps'"),
        ("text\nmail\n", "expected a column 'frame'"),
        ("frame\n0\n", "at least one of"),
        ("", "an empty file"),
        ("frame,text\n0,mail\n1,a\n0,chat\n", "line 4 is about the frame and prompt that line 2 is about"),
        ("frame,prompt,text\n0,P?,mail\n00,P?,mail\n", "line 3 is about .* that line 2"),
        ("frame,apps\n0,mail, chat\n", "line 2 has more fields than the heading: quote"),
        ("frame;apps\n0;mail; chat\n", "line 2 has more fields than the heading: quote"),
        ("frame,text\n0,mail\n,chat\n", "line 3 names no frame"),
    ],
)
def test_a_truth_that_cannot_be_used_is_refused(csv: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        _score(tmp_path, csv, "mail")


def test_an_answer_without_fields_is_the_list_that_alone_is_known(tmp_path: Path) -> None:
    score = _score(tmp_path, 'frame,apps\n0,"mail, chat"\n1,notes\n', "Chat, mail", "notes, mail")
    assert score.num_exact == 1
    assert score.apps is not None
    assert (score.apps.num_right, score.apps.num_wrong, score.apps.num_missed) == (3, 1, 0)


def test_a_row_about_one_recording_says_nothing_about_others(tmp_path: Path) -> None:
    assert _score(tmp_path, "recording,frame,text\ntuesday,0,mail\n", "mail").num_scored == 0
    assert _score(tmp_path, "recording,frame,text\nmonday,0,mail\n,1,chat\n", "mail", "chat").num_exact == 2


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_truth_is_read_whatever_separates_its_columns(separator: str, tmp_path: Path) -> None:
    lines = ["frame", "apps", "topics"], ["0", '"mail; chat"', ""], ["", "", ""], ["", "", ""]
    csv = "\n".join(separator.join(fields) for fields in lines)
    assert _score(tmp_path, csv, "chat, mail").num_exact == 1


def test_a_row_about_one_prompt_goes_before_one_about_all_wherever_it_stands(tmp_path: Path) -> None:
    assert _score(tmp_path, "frame,prompt,text\n0,What is it?,mail\n0,,chat\n", "mail").num_exact == 1


def test_a_backslash_is_part_of_a_frames_name() -> None:
    assert file_name("/frames/\\x1b[31mred.png") == "\\x1b[31mred.png"
