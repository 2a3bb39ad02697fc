"""The order of prompts is that in which they were asked, whatever order their answers came in."""

import json
from pathlib import Path

import pytest
from conftest import Run
from screens import folder_of

FLAT = Path(__file__).parent / "golden_runs" / "flat"
PROMPTS = ["Second in the alphabet?", "A question?", "Never answered?"]


@pytest.fixture
def asked(home: Path) -> str:
    """A run of three prompts over two frames whose second prompt was answered first, and its third never."""
    folder = home / "runs" / "20261127-000000-0000"
    folder.mkdir(parents=True)
    fields = json.loads((FLAT / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(fields | {"id": folder.name, "prompts": PROMPTS}))
    line = json.loads((FLAT / "results.jsonl").read_text().splitlines()[0])
    lines = [
        line
        | {
            "frame": frame,
            "group": [frame],
            "prompt": prompt,
            "prompt_id": f"p{prompt[:2]}",
            "text": prompt[0],
        }
        for frame, prompt in [(1, PROMPTS[1]), (1, PROMPTS[0]), (0, PROMPTS[1]), (0, PROMPTS[0])]
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    return folder.name


def test_run_n_is_the_nth_prompt_of_run_json(run: Run, asked: str, tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text("frame,text\n0,S\n1,S\n")
    assert run("seeonce score latest:1 --json --truth", truth).json[0]["exact"] == 1.0
    assert run("seeonce score latest:2 --json --truth", truth).json[0]["exact"] == 0.0
    assert "has no answers yet" in run("seeonce score latest:3 --truth", truth).error


def test_columns_of_a_report_and_rows_of_a_table_are_in_that_order(
    run: Run, asked: str, tmp_path: Path
) -> None:
    assert run("seeonce report latest -o", tmp_path / "report.html").code == 0
    page = (tmp_path / "report.html").read_text()
    assert page.index(PROMPTS[0]) < page.index(PROMPTS[1])
    assert run("seeonce export latest --to csv --output", tmp_path / "table.csv").code == 0
    rows = (tmp_path / "table.csv").read_text().splitlines()[1:]
    assert [PROMPTS[0] in row for row in rows] == [True, False, True, False]


def test_lines_of_a_finished_run_stand_as_they_were_asked(run: Run, plain: Path, tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images")
    assert run("seeonce encode", images, "--model", plain).code == 0
    asked = ("--prompt", "A rather long question, that takes its time?", "--prompt", "Why?", "--model", plain)
    few = ("--max-tokens", "2", "--max-num-seqs", "3")
    first = run("seeonce describe latest --json", *asked[2:], *few)  # the second prompt is known
    ended = run("seeonce describe latest --json", *asked, *few, "--output", tmp_path / "own.jsonl")
    assert (first.code, ended.code) == (0, 0)
    text = (Path(ended.json["path"]) / "results.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    prompts = ended.json["prompts"]
    places = [(line["frame"], prompts.index(line["prompt"])) for line in lines]
    assert places == sorted(places)
    assert len(set(places)) == 2 * len({line["frame"] for line in lines}) > 2
    assert (tmp_path / "own.jsonl").read_text() == text
