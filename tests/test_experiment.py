"""Experiments: the matrix of a file, only what is missing, killed and resumed; and the API for notebooks."""

import json
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import HomeAfter, Run
from screens import ROOT, folder_of, python, stopped

from cache.base.errors import InputError
from cache.base.home import Home
from seeonce import ask
from seeonce.runs import recording as selection
from seeonce.runs.experiment import read_experiment
from seeonce.runs.lock import RunLock

EXAMPLE = ROOT / "docs" / "examples" / "experiment.toml"
SEEONCE_ON_GO = """
import pathlib, sys, time
import infer.engine  # what takes long before a command begins
from seeonce.__main__ import main
go = pathlib.Path(sys.argv.pop(1))
print("ready", flush=True)
while not go.exists():
    time.sleep(0.001)
main()
"""
LEAST = 'recordings = ["demo"]\n[prompts]\napps = "Which?"\n'


def _file(tmp_path: Path, text: str) -> Path:
    (tmp_path / "try.toml").write_text(text, encoding="utf-8")
    return tmp_path / "try.toml"


# --- the file


def test_the_least_experiment_is_one_greedy_run_named_after_the_file(tmp_path: Path) -> None:
    (cell,) = read_experiment(_file(tmp_path, LEAST)).runs()
    assert (cell.name, cell.recording, cell.model, cell.sampling.temperature) == ("try", "demo", None, 0)
    assert (cell.prompt_names, cell.prompts[0].text) == (("apps",), "Which?")


def test_the_matrix_has_every_combination_and_greedy_ones_once(tmp_path: Path) -> None:
    text = 'name = "n"\nrepetitions = 2\nmodels = ["m1", "m2"]\n' + LEAST.replace('["demo"]', '["a", "b"]')
    text += "[sampling.cold]\nmax_tokens = 7\n[sampling.warm]\ntemperature = 1\nseed = 5\n"
    cells = list(read_experiment(_file(tmp_path, text)).runs())
    assert len(cells) == 2 * 2 * (1 + 2)
    assert len({cell.name for cell in cells}) == len(cells)
    assert [cell.name for cell in cells[:2]] == ["n / a / m1 / cold / 1", "n / a / m1 / warm / 1"]
    assert [cell.sampling.seed for cell in cells[:3]] == [0, 5, 6]


def test_a_setting_may_name_all_that_describe_takes_of_sampling(tmp_path: Path) -> None:
    text = (
        "[sampling]\ntop_k = 5\nmin_p = 0.1\nrepetition_penalty = 1.2\nrepetition_window = 8\nstop = ['.']\n"
    )
    (cell,) = read_experiment(_file(tmp_path, LEAST + text)).runs()
    found = cell.sampling
    assert (found.top_k, found.min_p, found.repetition_penalty) == (5, 0.1, 1.2)
    assert (found.repetition_window, found.stop) == (8, (".",))


def test_a_line_break_may_end_an_answer(tmp_path: Path) -> None:
    (cell,) = read_experiment(_file(tmp_path, LEAST + '[sampling]\nstop = ["\\n", "."]\n')).runs()
    assert cell.sampling.stop == ("\n", ".")


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "marked.txt").write_text("\ufeffWhich?")
    (cell,) = read_experiment(
        _file(
            tmp_path, '\ufeffrecordings = ["demo"]\nsystem = { file = "marked.txt" }\n[prompts]\na = "A?"\n'
        )
    ).runs()
    assert cell.showing.system == "Which?"


def test_a_prompt_file_lies_beside_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("A long\nquestion?\n")
    text = 'recordings = ["demo"]\n[prompts]\nlong = { file = "long.txt" }\n'
    (cell,) = read_experiment(_file(tmp_path, text)).runs()
    assert cell.prompts[0].text == "A long\nquestion?"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recordigns = []\n" + LEAST, "unknown key recordigns; did you mean recordings"),
        (
            LEAST + "[sampling]\ntemprature = 1\n",
            "unknown key sampling.temprature; did you mean sampling.temp",
        ),
        (LEAST + "[sampling.a]\ntopk = 1\n", "unknown key sampling.a.topk; did you mean sampling.a.top_k"),
        (LEAST + "x = { fil = 'a' }\n", "unknown key prompts.x.fil; did you mean prompts.x.file"),
        ("zzz = 1\n" + LEAST, "unknown key zzz; expected one of name, recordings"),
        ('[prompts]\na = "b"\n', "recordings should be a list"),
        ('recordings = ["demo"]\n', "prompts should be a table"),
        (LEAST + 'other = "Which?"\n', "prompts 'apps' and 'other' are the same text"),
        (LEAST + "x = 3\n", "prompts.x should be a text; got 3"),
        (LEAST + "x = { file = 'nowhere.txt' }\n", "no prompt file"),
        ("repetitions = 0\n" + LEAST, "repetitions should be a number from 1"),
        (LEAST + "[sampling]\ntemperature = 'hot'\n", "sampling.temperature should be a number; got 'hot'"),
        (LEAST + "[sampling]\nmax_tokens = 1.5\n", "sampling.max_tokens should be a whole number"),
        (LEAST + "[sampling.a]\nstop = ['']\n", "sampling.a.stop should be a list of texts"),
        (LEAST + '"" = "Empty?"\n', "the name of a prompt should be a text; got ''"),
        (LEAST + '[sampling." "]\nseed = 1\n', "the name of a setting should be a text; got ' '"),
        (
            LEAST + "x = { file = '~nobody-here/x' }\n",
            "prompts.x.file: There is no prompt file ",
        ),
        (LEAST + 'x = { file = "a\\u0000b" }\n', "prompts.x.file should be the name of something, without"),
        ('models = ["a\\u0000b"]\n' + LEAST, "models should be the name of something, without a NUL"),
        (
            "repetitions = 2\n" + LEAST + f"[sampling]\ntemperature = 1\nseed = {2**63 - 1}\n",
            "sampling.seed is 9223372036854775807, too large for 2 repetitions",
        ),
        (LEAST + "[sampling]\ntemperature = -1\n", "sampling: "),
        (LEAST + "[sampling]\nseed = 1\n[sampling.a]\nseed = 1\n", "sampling.seed stands beside named"),
        ('recordings = ["demo", "demo"]\n[prompts]\na = "b"\n', "recordings names something twice"),
        ("recordings = [", "is not TOML"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_with_the_key(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        read_experiment(_file(tmp_path, text))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_one_line(run: Run) -> None:
    assert "nowhere.toml cannot be read" in run("seeonce run nowhere.toml").error


# --- as typed


def test_the_annotated_example_runs_on_the_demo_and_has_nothing_left_to_do(run: Run, demo: None) -> None:
    first = run("seeonce run --json", EXAMPLE)
    assert first.code == 0, first.err
    cells = first.json
    assert [cell["run"]["name"] for cell in cells] == [
        "applications / greedy / 1", "applications / warm / 1", "applications / warm / 2",
        "applications / line / greedy / 1", "applications / line / warm / 1",
        "applications / line / warm / 2",
    ]  # fmt: skip
    assert [cell["run"]["num_answers"] for cell in cells] == [18] * 3 + [6] * 3
    assert cells[3]["run"]["num_parsed"] == 6
    again = run("seeonce run --json", EXAMPLE).json
    assert [cell["was_there"] for cell in again] == [True] * 6
    assert [cell["run"]["id"] for cell in again] == [cell["run"]["id"] for cell in cells]


def test_an_experiment_encodes_what_is_not_encoded(run: Run, plain: Path, tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images")
    text = (
        f'recordings = ["{images}"]\nmodels = ["{plain}"]\n[prompts]\na = "A?"\n[sampling]\nmax_tokens = 2\n'
    )
    ended = run("seeonce run", _file(tmp_path, text))
    assert ended.code == 0, ended.err
    assert "0 of 1 runs were there, 1 made: 3 answers, 0 of them known, 0 errors" in ended.out
    added = run("seeonce run", _file(tmp_path, text.replace('a = "A?"', 'a = "A?"\nb = "B?"')))
    assert "1 made: 6 answers, 3 of them known" in added.out


def test_a_run_about_another_recording_of_the_same_pictures_is_another_run(
    run: Run, plain: Path, tmp_path: Path
) -> None:
    folders = [folder_of(tmp_path / name) for name in ("monday", "tuesday")]
    text = 'recordings = ["{}"]\nmodels = ["{}"]\n[prompts]\na = "A?"\n[sampling]\nmax_tokens = 2\n'
    for folder in folders:
        (cell,) = run("seeonce run --json", _file(tmp_path, text.format(folder, plain))).json
        assert not cell["was_there"]
        assert cell["run"]["recording"].startswith(folder.name)
    assert cell["run"]["num_known"] == cell["run"]["num_answers"]


def test_ten_prompts_need_each_picture_encoded_once_and_the_report_says_so(
    run: Run, demo: None, tmp_path: Path
) -> None:
    prompts = [f"Question {number}?" for number in range(10)]
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    assert run("seeonce describe demo --max-tokens 2", *words).code == 0
    assert run("seeonce report latest -o", tmp_path / "r.html").code == 0
    page = (tmp_path / "r.html").read_text()
    pictures = page.count("data:image/webp")
    assert re.search(rf"<b>{60 - pictures}</b> vision encodings not repeated", page)
    rows = re.findall(r"<td>(\d+)</td></tr>", page)[:10]
    assert rows == [str(pictures)] + ["0"] * 9


def test_a_run_that_cannot_be_made_costs_no_other(run: Run, demo: None, tmp_path: Path) -> None:
    text = LEAST.replace('"demo"', '"~nobody-here", "demo"') + "[sampling]\nmax_tokens = 1\n"
    ended = run("seeonce run", _file(tmp_path, 'models = ["demo", "/nowhere"]\n' + text))
    assert ended.code == 3
    assert [line[:40] for line in ended.err.splitlines() if line.startswith("error: ")] == [
        "error: try / ~nobody-here / demo: no rec",
        "error: try / ~nobody-here / /nowhere: no",
        "error: try / demo / /nowhere: No model f",
    ]
    assert "0 of 4 runs were there, 1 made: 6 answers" in ended.out
    assert "3 runs are left: run the same command" in ended.out


def test_when_no_run_can_be_made_it_is_an_error(run: Run, tmp_path: Path) -> None:
    ended = run("seeonce run --json", _file(tmp_path, LEAST.replace('"demo"', '"nowhere", "elsewhere"')))
    assert (ended.code, [cell["run"]["state"] for cell in ended.json]) == (1, ["failed", "failed"])
    assert all("no recording" in cell["error"] for cell in ended.json)


def test_names_and_prompts_in_any_script_are_kept_and_shown(run: Run, demo: None, tmp_path: Path) -> None:
    text = 'name = "Ü\\n🙂\\u202e"\nrecordings = ["demo"]\n[prompts]\n"שלום 🙂" = "Wëlche 🙂\\u202e?"\n'
    ended = run("seeonce run --json", _file(tmp_path, text + "[sampling]\nmax_tokens = 1\n"))
    assert "[1/1] Ü 🙂[U+202E]: 6 answers" in ended.err
    (cell,) = ended.json
    assert (cell["run"]["prompt_names"], cell["run"]["prompts"]) == (["שלום 🙂"], ["Wëlche 🙂\u202e?"])
    again = run("seeonce run --json", tmp_path / "try.toml")
    assert [cell["was_there"] for cell in again.json] == [True]


def test_latest_is_one_recording_for_all_runs_whatever_comes_meanwhile(
    run: Run, demo: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = iter(["demo", "came-meanwhile", "came-later"])
    monkeypatch.setattr(selection, "latest_recording", lambda: SimpleNamespace(id=next(newest)))
    text = LEAST.replace("demo", "latest") + 'line = { text = "?", schema = "description" }\n'
    cells = run("seeonce run --json", _file(tmp_path, text + "[sampling]\nmax_tokens = 1\n")).json
    assert [cell["run"]["recording"] for cell in cells] == ["demo", "demo"]
    assert next(newest) == "came-meanwhile"


def test_a_later_run_has_a_later_id(run: Run, demo: None, tmp_path: Path) -> None:
    text = "".join(f'p{number} = {{ text = "?", system = "{number}" }}\n' for number in range(6))
    cells = run("seeonce run --json", _file(tmp_path, LEAST + text + "[sampling]\nmax_tokens = 1\n")).json
    ids = [cell["run"]["id"] for cell in cells]
    assert ids == sorted(ids)
    assert [listed["id"] for listed in run("seeonce runs --json").json] == ids[::-1]


def test_a_letter_of_one_prompt_decodes_that_prompt_alone(run: Run, demo: None, tmp_path: Path) -> None:
    text = LEAST + 'doing = "What is the user doing?"\n[sampling]\nmax_tokens = 1\n'
    run("seeonce run", _file(tmp_path, text))
    (cell,) = run("seeonce run --json", _file(tmp_path, text.replace("Which?", "Which!"))).json
    assert (cell["was_there"], cell["run"]["num_known"], cell["run"]["num_answers"]) == (False, 6, 12)


def test_a_model_that_moved_is_the_same_model(
    run: Run, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(plain, tmp_path / "here")
    images = folder_of(tmp_path / "images")
    text = f'recordings = ["{images}"]\nmodels = ["here"]\n[prompts]\na = "A?"\n[sampling]\nmax_tokens = 2\n'
    (first,) = run("seeonce run --json", _file(tmp_path, text)).json
    (tmp_path / "here").rename(tmp_path / "there")
    assert "No model folder at 'here'" in run("seeonce run", tmp_path / "try.toml").error
    (moved,) = run("seeonce run --json", _file(tmp_path, text.replace("here", "there"))).json
    assert (moved["was_there"], moved["run"]["id"]) == (True, first["run"]["id"])


def test_a_request_that_failed_is_asked_again_and_the_others_are_known(
    run: Run, demo: None, tmp_path: Path
) -> None:
    text = LEAST + f'long = "{"word " * 20_000}"\n[sampling]\nmax_tokens = 1\n'
    for num_known in (0, 6, 6):
        ended = run("seeonce run --json", _file(tmp_path, text))
        (cell,) = ended.json
        assert (ended.code, cell["was_there"], cell["run"]["num_errors"]) == (3, False, 6)
        assert cell["run"]["num_known"] == num_known


# --- killed and resumed


def _newest(home: Path) -> Path:
    return max((home / "runs").iterdir())


def _answers(folder: Path) -> list[dict[str, Any]]:
    """Return the answers of a run, in an order that does not depend on the run."""
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return sorted(lines, key=lambda line: (line["frame"], line["prompt"]))


@pytest.fixture(scope="module")
def long(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """The command line of an experiment about 16 frames."""
    root = tmp_path_factory.mktemp("long")
    images = folder_of(root / "images", 16)
    text = (
        f'recordings = ["{images}"]\nmodels = ["{plain}"]\n[prompts]\na = "A?"\nb = "B?"\n'
        "[sampling]\ntemperature = 1.0\nseed = 3\nmax_tokens = 12\n"
    )
    return "seeonce run", _file(root, text)


@pytest.mark.parametrize(
    ("by", "code"), [(signal.SIGKILL, -9), pytest.param(signal.SIGINT, 130, marks=pytest.mark.campaign)]
)
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(
    by: signal.Signals, code: int, run: Run, long: tuple[Any, ...], home: Path, home_after: HomeAfter
) -> None:
    whole, (_, file) = home_after(long), long
    shutil.copytree(whole, home)
    for made in ("runs", "answers"):
        shutil.rmtree(home / made)
    assert stopped(home, 5, by, "run", file) == code
    torn = len(_answers(_newest(home)))
    assert run("seeonce runs --json").json[0]["state"] == "interrupted"
    ended = run("seeonce run --json", file)
    assert ended.code == 0
    assert 5 <= torn < 32
    assert ended.json[0]["run"]["num_known"] >= 4
    assert _answers(_newest(home)) == _answers(_newest(whole))


def test_two_processes_at_once_give_the_answers_of_one(
    run: Run, demo: None, tmp_path: Path, home: Path
) -> None:
    file = _file(tmp_path, 'models = ["demo"]\n' + LEAST + "[sampling]\ntemperature = 1.0\nmax_tokens = 8\n")
    other = python(SEEONCE_ON_GO, tmp_path / "go", "run", file, SEEONCE_HOME=str(home))
    assert other.stdout is not None
    assert other.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    code = run("seeonce run", file).code
    said = other.communicate(timeout=300)
    assert sorted([code, other.returncode]) in ([0, 0], [0, 3]), said  # one may leave the run to the other
    (cell,) = run("seeonce run --json --fresh", file).json
    alone = _answers(home / "runs" / cell["run"]["id"])
    assert all(_answers(folder) == alone for folder in (home / "runs").iterdir())


def test_a_run_that_another_process_is_at_is_left_to_it(
    run: Run, demo: None, tmp_path: Path, home: Path
) -> None:
    file = _file(tmp_path, LEAST + 'b = { text = "?", system = "S." }\n[sampling]\nmax_tokens = 1\n')
    first = run("seeonce run --json", file).json[0]["run"]
    info = home / "runs" / first["id"] / "run.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"status": "running"}))
    with RunLock(info.parent):
        ended = run("seeonce run", file)
    assert (ended.code, f"[1/2] try: goes on in another process ({first['id']})" in ended.err) == (3, True)
    assert ended.out.startswith("1 of 2 runs were there, 0 made")
    assert "1 run is left" in ended.out
    assert "1 of 2 runs were there, 1 made: 6 answers, 6 of them known" in run("seeonce run", file).out


# --- notebooks


def test_the_api_example_of_the_readme_runs(run: Run, demo: None, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "ask(" in block)
    assert len([line for line in example.splitlines() if line.strip()]) == 5
    exec(example.replace('EncodeOptions("demo")', 'EncodeOptions("demo", limit=6)'), {})
    assert "mail" in capsys.readouterr().out


def test_a_table_has_a_row_an_answer_and_shows_texts_as_texts(run: Run, demo: None, home: Path) -> None:
    table = ask("demo", "Which applications are open?", "<b>What?</b>", home=Home(home))
    assert (len(table), len(table[:2]), table[0].frame) == (12, 2, 0)
    assert table.as_dicts()[0]["text"] == table[0].text == "mail"
    assert "&lt;b&gt;What?&lt;/b&gt;" in table._repr_html_()
