"""runs, report, compare and score as typed, over runs that were written by hand or torn by a kill."""

import base64
import io
import json
import re
import shutil
import stat
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from conftest import MAX_PIXELS, MakeCheckpoint, Run
from escribano_samples import change, sample
from PIL import Image
from run_samples import answer, line
from screens import noise
from tiny_checkpoint import Tiny

from cache.base.canonical_json import JsonValue
from seeonce.runs.lock import RunLock
from seeonce.runs.run import Result

FIRST, SECOND = "20261121-100000-aaaa", "20261121-110000-bbbb"


def write_run(home: Path, run_id: str, answers: list[Result], **info: object) -> Path:
    """Write a run as pass two does."""
    folder = home / "runs" / run_id
    folder.mkdir(parents=True)
    fields = {"id": run_id, "recording": "monday", "model": "m", "status": "done", "prompts": ["What is it?"]}
    (folder / "run.json").write_text(json.dumps(fields | {"started_at": "2026-11-21T10:00:00Z"} | info))
    lines = [json.dumps(asdict(one) | {"a_newer_field": [1]}) + "\n" for one in answers]
    (folder / "results.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def two_runs(home: Path) -> Path:
    write_run(home, FIRST, [answer(0, line("a mail")), answer(1, line("an editor"))], name="baseline")
    write_run(home, SECOND, [answer(0, line("a mail")), answer(1, line("a browser", apps="browser"))])
    return home


def test_runs_are_listed_newest_first(run: Run, two_runs: Path) -> None:
    listed = run("seeonce runs --json").json
    assert [(one["id"], one["name"], one["num_frames"], one["num_parsed"]) for one in listed] == [
        (SECOND, "", 2, 2),
        (FIRST, "baseline", 2, 2),
    ]
    lines = run("seeonce runs").out.splitlines()
    assert [text.split()[0] for text in lines if text[0] != " "] == ["id", SECOND, FIRST]
    assert lines[-1] == "  baseline · monday · m · What is it?"


def test_no_runs_is_no_error(run: Run, home: Path) -> None:
    ended = run("seeonce runs")
    assert (ended.code, ended.out) == (0, "No runs yet: run seeonce describe first.\n")


def test_a_run_that_was_killed_is_listed_with_what_it_had(run: Run, two_runs: Path) -> None:
    file = two_runs / "runs" / SECOND / "results.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    (two_runs / "runs" / FIRST / "run.json").unlink()
    listed = run("seeonce runs --json").json
    assert [(one["num_answers"], one["state"]) for one in listed] == [(1, "done"), (2, "unknown")]


def test_a_run_says_running_only_while_a_process_writes_it(run: Run, home: Path) -> None:
    folder = write_run(home, FIRST, [answer(0, "a")], status="running")
    assert run("seeonce runs --json").json[0]["state"] == "interrupted"
    with RunLock(folder):
        assert run("seeonce runs --json").json[0]["state"] == "running"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"prompts": 3, "totals": [], "status": null}', "null"])
def test_a_broken_run_json_hides_no_answers(content: str, run: Run, two_runs: Path) -> None:
    (two_runs / "runs" / SECOND / "run.json").write_text(content)
    assert run("seeonce runs --json").json[0]["num_answers"] == 2


@pytest.mark.parametrize(
    ("parsed", "num_parsed"),
    [({}, 1), ({"more": 1}, 1), ({"topics": [1]}, 0), ({"activity": None}, 0)],
)
def test_a_json_answer_with_the_fields_of_a_description_is_one(
    parsed: dict[str, JsonValue], num_parsed: int, run: Run, home: Path
) -> None:
    whole: dict[str, JsonValue] = {"description": "d", "activity": "a", "apps": [], "topics": ["t"]} | parsed
    write_run(home, FIRST, [replace(answer(0, json.dumps(whole)), parsed=whole)])
    assert run("seeonce runs --json").json[0]["num_parsed"] == num_parsed


def test_answers_of_before_frames_were_grouped_are_read(run: Run, two_runs: Path) -> None:
    file = two_runs / "runs" / SECOND / "results.jsonl"
    file.write_text(file.read_text().replace('"group": [], "logprobs": null, ', ""))
    assert "group" not in file.read_text()
    assert run("seeonce runs --json").json[0]["num_answers"] == 2


@pytest.mark.parametrize("selector", ["latest", SECOND, "20261121-11"])
def test_a_run_is_found_by_latest_by_its_id_and_by_the_start_of_it(
    selector: str, run: Run, two_runs: Path
) -> None:
    assert run(f"seeonce compare --json baseline {selector}").json[0]["num_frames"] == 2


def test_a_run_that_is_not_there_is_one_line_that_names_what_is(run: Run, two_runs: Path) -> None:
    assert (
        f"No run 'nothing'; the newest are {SECOND}, {FIRST}" in run("seeonce compare latest nothing").error
    )
    assert "fits" in run("seeonce compare latest 2026").error


def test_two_runs_are_compared_in_words_and_as_json(run: Run, two_runs: Path) -> None:
    ended = run("seeonce compare baseline latest")
    assert "agreement    50 % equal" in ended.out
    assert "in A alone: mail (1); in B alone: browser (1)" in ended.out
    assert "frame 1, similarity 0." in ended.out
    (found,) = run("seeonce compare --json baseline latest").json
    assert (found["agreement"], [one["frame"] for one in found["changed_most"]]) == (0.5, [1])


def test_two_prompts_of_one_run_are_compared(run: Run, home: Path) -> None:
    write_run(home, FIRST, [answer(0, "mail", "First?"), answer(0, "mails", "Second?")])
    (found,) = run("seeonce compare --json latest:1 latest:Second").json
    assert 0.8 < found["mean_similarity"] < 1
    assert "has 2 prompts and '3' fits 0" in run("seeonce compare latest:1 latest:3").error


def test_a_run_is_compared_with_what_escribano_said(
    run: Run, home: Path, checkpoint_of: MakeCheckpoint, tmp_path: Path
) -> None:
    plain = checkpoint_of(Tiny(max_pixels=MAX_PIXELS))  # it says the same of all three frames
    database = sample(tmp_path)
    change(database, "UPDATE observations SET vlm_description = 'a mail', apps = '[\"mail\", \"chat\"]'")
    assert run("seeonce encode --model", plain, f"{database}#recording=rec").code == 0
    assert run("seeonce describe latest --max-tokens 2 --model", plain).code == 0
    (found,) = run("seeonce compare --json latest recorded").json
    assert (found["num_frames"], found["right"]) == (3, "recorded")
    assert run("seeonce report latest recorded -o", tmp_path / "r.html").code == 0
    page = (tmp_path / "r.html").read_text()
    assert page.count('data-part="description"') == 1  # the three frames are one stretch
    (tmp_path / "truth.csv").write_text("frame,description\n0,a mail\n")
    assert (
        run("seeonce report latest recorded --truth", tmp_path / "truth.csv", "-o", tmp_path / "t.html").code
        == 0
    )
    assert (tmp_path / "t.html").read_text().count("✓ true") == 1  # what was recorded
    assert '<option value="prompt 1" selected>B recorded</option>' in page
    shutil.rmtree(home / "runs")
    write_run(home, FIRST, [answer(0, "x")])
    assert "not encoded any more" in run("seeonce compare latest recorded").error


def test_what_escribano_said_of_another_recording_is_asked_for_in_vain(
    run: Run, home: Path, plain: Path, tmp_path: Path
) -> None:
    noise(1).save(tmp_path / "a.png")
    assert run("seeonce encode", tmp_path, "--model", plain).code == 0
    assert run("seeonce describe latest --max-tokens 2 --model", plain).code == 0
    for command in ("compare", "report"):
        said = run(f"seeonce {command} latest recorded").error
        assert "no recording of Escribano's (it is a folder): name another run instead of recorded" in said
    assert "(it is a folder): use --to csv or --to parquet" in run("seeonce export --to escribano").error


def test_runs_without_a_frame_in_common_are_not_compared(run: Run, two_runs: Path) -> None:
    for number, answers in enumerate(
        ([answer(0, "a", recording="tuesday")], [answer(7, "a")], [answer(0, "", error="no memory")], [])
    ):
        write_run(two_runs, f"20261121-12000{number}-cccc", answers, name=f"run-{number}")
    for name, said in (
        ("run-0", "baseline is about monday and run-0 about tuesday: they have no frame in common"),
        ("run-1", "baseline and run-1 have no frame of monday in common"),
        ("run-2", "run-2 has no answers but errors"),
        ("run-3", "run-3 has no answers: see"),
    ):
        for command in ("compare", "compare --json"):
            ended = run(f"seeonce {command} baseline {name}")
            assert (ended.code, ended.out) == (1, "")
            assert said in ended.error


def test_scores_are_told_with_the_frames_that_were_mixed_up(run: Run, home: Path, tmp_path: Path) -> None:
    write_run(home, FIRST, [answer(0, "chat"), answer(1, "mail"), answer(2, "notes")])
    (tmp_path / "truth.csv").write_text("frame,text\n0,mail\n1,chat\n0002.png,notes\n")
    ended = run("seeonce score latest --truth", tmp_path / "truth.csv")
    assert "exact        1 of 3 (33 %)" in ended.out
    assert "frame 0 got frame 1's answer" in ended.out
    (score,) = run("seeonce score --json latest --truth", tmp_path / "truth.csv").json
    assert [(one["frame"], one["like_frame"]) for one in score["mix_ups"]] == [(0, 1), (1, 0)]


def test_the_demo_is_scored_without_a_file(run: Run, home: Path) -> None:
    asked = "Which applications are open?"
    answers = [
        answer(0, "mail", asked, recording="demo", source="x/0000_0.0s.png"),
        answer(1, "nothing", asked, recording="demo", source="x/0001_10.0s.png"),
    ]
    write_run(home, FIRST, answers)
    (score,) = run("seeonce score --json").json
    assert (score["num_exact"], score["num_scored"], score["apps"]["num_missed"]) == (1, 2, 1)
    write_run(home, SECOND, [answer(0, "mail", "Which?", recording="demo")])
    assert "no row about the prompt 'Which?': its rows are about" in run("seeonce score").error


def test_a_truth_is_asked_for_where_none_is_known(run: Run, two_runs: Path, tmp_path: Path) -> None:
    assert "give a CSV file with --truth" in run("seeonce score").error
    (tmp_path / "truth.csv").write_text("frame,text\n77,mail\n")
    assert "names no frame of monday" in run("seeonce score --truth", tmp_path / "truth.csv").error


@pytest.mark.parametrize(
    ("csv", "said"),
    [
        (
            "frame,prompt,text\n0,Q?,mail\n0,R?,mail\n",
            "no row about the prompt 'P?': its rows are about 'Q?', 'R?'",
        ),
        (
            "frame,recording,text\n0,tuesday,a\n",
            "no row about the recording 'monday': its rows are about 'tuesday'",
        ),
        ("frame,prompt,text\n9,P?,mail\n", "names no frame of monday"),
        ("frame,text\n", "names no frame of monday"),
    ],
)
def test_a_truth_about_nothing_that_was_asked_says_what_it_is_about(
    csv: str, said: str, run: Run, home: Path, tmp_path: Path
) -> None:
    write_run(home, FIRST, [answer(0, "a", "P?"), answer(0, "b", "Q2?")], prompts=["P?", "Q2?"])
    truth = tmp_path / "truth.csv"
    truth.write_text(csv)
    assert said in run("seeonce score latest:1 --truth", truth).error
    ended = run("seeonce report latest:1 --truth", truth, "-o", tmp_path / "r.html")
    assert (ended.code, said in ended.err) == (0, True)


def test_a_report_is_one_private_file(run: Run, two_runs: Path, tmp_path: Path) -> None:
    ended = run("seeonce report baseline latest -o", tmp_path / "report.html")
    assert "2 frames, 1 prompt," in ended.out
    assert "contains pictures of screens" in ended.out
    page = (tmp_path / "report.html").read_text()
    assert "This file contains pictures of screens." in page
    assert "2 of 2 frames have no thumbnail" in page
    assert stat.S_IMODE((tmp_path / "report.html").stat().st_mode) == 0o600
    assert not list(tmp_path.glob(".report*"))


def test_a_report_that_cannot_be_written_is_refused(run: Run, two_runs: Path, tmp_path: Path) -> None:
    assert "cannot be written" in run("seeonce report latest -o", tmp_path / "no" / "report.html").error


def test_a_run_without_answers_makes_no_report(run: Run, two_runs: Path) -> None:
    write_run(two_runs, "20261121-120000-cccc", [])
    assert "has no answers yet" in run("seeonce report latest").error


def test_pictures_are_found_though_the_manifest_names_other_frames_now(
    run: Run, home: Path, plain: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    noise(1).save(folder / "a.png")
    assert run("seeonce encode", folder, "--model", plain).code == 0
    assert run("seeonce describe latest --max-tokens 2 --model", plain).code == 0
    noise(2).save(folder / "a.png")
    assert run("seeonce encode", folder, "--model", plain).code == 0
    assert run("seeonce report latest -o", tmp_path / "r.html").code == 0
    page = (tmp_path / "r.html").read_text()
    assert page.count("data:image/webp") == 1
    assert "1 answer came from 1 picture," in page


def test_a_report_of_a_name_takes_the_newest_run_of_it_about_each_recording_and_says_so(
    run: Run, home: Path, tmp_path: Path
) -> None:
    for number, recording in enumerate(["monday", "tuesday", "monday"]):
        run_id = f"20261121-10000{number}-aaaa"
        write_run(
            home, run_id, [answer(0, f"text {number}", recording=recording)], name="x", recording=recording
        )
    ended = run("seeonce report x -o", tmp_path / "r.html")
    taken = "20261121-100001-aaaa about tuesday, 20261121-100002-aaaa about monday"
    assert f"3 runs are called 'x': the newest about each recording, {taken}." in ended.err
    assert "text 0" not in (tmp_path / "r.html").read_text()
    assert (
        "3 runs are called 'x': the newest, 20261121-100002-aaaa about monday."
        in run("seeonce compare x x").err
    )


def test_an_experiment_is_reported_by_its_name(run: Run, home: Path, tmp_path: Path) -> None:
    for number in range(2):
        write_run(home, f"20261121-10000{number}-aaaa", [answer(0, f"t{number}")], name=f"wording / {number}")
    assert run("seeonce report wording -o", tmp_path / "r.html").code == 0
    page = (tmp_path / "r.html").read_text()
    assert "<h1><bdi>wording</bdi></h1>" in page
    assert "t0" in page
    assert "t1" in page
    assert "'wording' is an experiment of 2 runs: give one of 2026" in run("seeonce score wording").error


def test_a_report_tells_no_speed_of_answers_that_were_known(run: Run, home: Path, tmp_path: Path) -> None:
    totals: dict[str, object] = {"seconds": 0.5, "num_known": 2}
    write_run(home, FIRST, [answer(0, "a"), answer(1, "b")], totals=totals)
    assert run("seeonce report latest -o", tmp_path / "r.html").code == 0
    assert "<td>0.5</td><td>–</td>" in (tmp_path / "r.html").read_text()
    write_run(home, SECOND, [answer(0, "a"), answer(1, "b")], totals=totals | {"num_known": 1})
    assert run("seeonce report latest -o", tmp_path / "r.html").code == 0
    assert "<td>0.5</td><td>2.0</td>" in (tmp_path / "r.html").read_text()


def test_a_truth_that_does_not_say_which_of_several_prompts_it_is_about_is_refused(
    run: Run, home: Path, tmp_path: Path
) -> None:
    write_run(home, FIRST, [answer(0, "mail", "P?"), answer(0, "2", "Q?")], prompts=["P?", "Q?"])
    truth = tmp_path / "truth.csv"
    truth.write_text("frame,text\n0,mail\n")
    assert "has no column 'prompt' and 2 prompts were asked" in run("seeonce score --truth", truth).error
    assert run("seeonce score latest:1 --json --truth", truth).json[0]["exact"] == 1.0
    truth.write_text("frame,prompt,text\n0,P?,mail\n")
    assert [one["prompt"] for one in run("seeonce score --json --truth", truth).json] == ["P?"]


def test_a_truth_that_does_not_say_which_of_several_recordings_it_is_about_is_refused(
    run: Run, home: Path, tmp_path: Path
) -> None:
    for run_id, recording in ((FIRST, "monday"), (SECOND, "tuesday")):
        write_run(home, run_id, [answer(0, "mail", recording=recording)], name="x", recording=recording)
    truth, report = tmp_path / "truth.csv", tmp_path / "r.html"
    truth.write_text("frame,text\n0,mail\n")
    assert "has no column 'recording'" in run("seeonce report x -o", report, "--truth", truth).error
    truth.write_text("frame,recording,text\n0,monday,mail\n")
    assert run("seeonce report x -o", report, "--truth", truth).code == 0
    assert report.read_text().count("✓ true") == 1


def test_a_truth_beside_the_pictures_is_taken_without_being_named(
    run: Run, home: Path, tmp_path: Path
) -> None:
    write_run(home, FIRST, [answer(0, "mail", source=str(tmp_path / "0.png"))])
    (tmp_path / "truth.csv").write_text("frame,text\n0.png,mail\n")
    assert run("seeonce score --json").json[0]["exact"] == 1.0
    (tmp_path / "truth.csv").write_text("something,else\n1,2\n")
    ended = run("seeonce report latest -o", tmp_path / "r.html")
    assert (ended.code, "The truth is not looked at" in ended.err) == (0, True)


def test_of_a_line_of_fields_and_a_recorded_sentence_the_description_is_shown_on_both_sides(
    run: Run, home: Path, plain: Path, tmp_path: Path
) -> None:
    database = sample(tmp_path)
    change(database, "UPDATE observations SET vlm_description = 'a mail', apps = '[\"mail\"]'")
    assert run("seeonce encode --model", plain, f"{database}#recording=rec").code == 0
    assert run("seeonce describe latest --max-tokens 2 --model", plain).code == 0
    (folder,) = (home / "runs").iterdir()
    lines = [json.loads(text) for text in (folder / "results.jsonl").read_text().splitlines()]
    said = {"description": "a browser", "activity": "a", "apps": [], "topics": []}
    lines = [one | {"text": line("a browser"), "parsed": said} for one in lines]
    (folder / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (found,) = run("seeonce compare --json latest recorded").json
    assert {(one["left"], one["right"]) for one in found["changed_most"]} == {("a browser", "a mail")}


@pytest.mark.parametrize("columns", [40, 60, 80, 110])
def test_listings_comparisons_and_scores_fit_the_terminal(
    columns: int, run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    asked = [
        f"{word} the applications that are open, and what each of them is about?" for word in ("Name", "List")
    ]
    write_run(
        home,
        FIRST,
        [answer(0, "a", prompt) for prompt in asked],
        name="long " * 30,
        prompts=asked,
        system="Be brief. " * 20,
    )
    assert run("seeonce encode demo --limit 1 --model demo").code == 0
    (tmp_path / "truth.csv").write_text("frame,text\n0,b\n")
    for command in (f"compare {FIRST} {FIRST}", f"score {FIRST}:1 --truth {tmp_path / 'truth.csv'}"):
        assert max(map(len, run(f"seeonce {command}").out.splitlines())) <= columns
    for command in ("runs", "recordings"):
        lines = run(f"seeonce {command}").out.splitlines()
        assert max(map(len, lines)) <= columns
        assert lines[0].split()[0] == "id"
        assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d|\bUTC\b", " ".join(lines))


def test_times_are_those_of_the_machines_zone_which_is_named(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        write_run(home, FIRST, [answer(0, "a")])
        assert "2026-11-21 19:00 JST" in run("seeonce runs").out
    finally:
        monkeypatch.undo()
        time.tzset()


def test_large_pictures_are_those_of_the_recording_where_it_still_shows_them(
    run: Run, home: Path, plain: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(2):
        noise(number, 900, 600).save(folder / f"{number}.png")
    assert run("seeonce encode", folder, "--model", plain).code == 0
    assert run("seeonce describe latest --max-tokens 2 --model", plain).code == 0
    noise(7, 900, 600).save(folder / "1.png")  # what was encoded is not there any more
    assert run("seeonce report latest --large -o", tmp_path / "r.html").code == 0
    pictures = re.findall(r"data:image/webp;base64,([^\"]+)", (tmp_path / "r.html").read_text())
    widths = [Image.open(io.BytesIO(base64.b64decode(text))).width for text in pictures]
    assert widths == [900, 480]


def test_prompts_are_compared_in_the_order_in_which_they_were_asked(run: Run, home: Path) -> None:
    for run_id in (FIRST, SECOND):
        answers = [answer(0, "b", "Second?"), answer(1, "b", "Second?"), answer(1, "a", "First?")]
        write_run(home, run_id, answers, prompts=["First?", "Second?"])
    found = run(f"seeonce compare --json {FIRST} {SECOND}").json
    assert [one["num_frames"] for one in found] == [1, 2]
    assert "name a run, too" in run("seeonce report recorded").error


def test_frames_that_could_not_be_read_are_named_and_nothing_is_folded_across_them(
    run: Run, home: Path, plain: Path, tmp_path: Path
) -> None:
    for number in range(6):
        noise(1).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"broken")
    assert run("seeonce encode", tmp_path, "--model", plain).code == 3
    ended = run("seeonce describe latest --max-tokens 2 --model", plain)
    assert re.findall(r"^ +(\d\S*) ", ended.out, re.MULTILINE) == ["0-2", "4-5"]
    assert run("seeonce report latest -o", tmp_path / "r.html").code == 0
    page = (tmp_path / "r.html").read_text()
    assert "have answers; 1 could not be read: 3<" in page
    assert f"5 of 6 frames of <bdi>{run('seeonce recordings --json').json[0]['id']}</bdi>" in page
    assert re.findall(r"frames \d+–\d+", page) == ["frames 0–2", "frames 4–5"]
