"""Experiments that ask under a schema, with a system text, or about several frames together."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from screens import folder_of

from cache.base.errors import InputError
from seeonce.runs.experiment import Experiment, read_experiment
from seeonce.runs.prompts import ImagePosition, Showing

SCHEMA = {"type": "object", "properties": {"busy": {"type": "boolean"}}, "required": ["busy"]}
LEAST = 'recordings = ["demo"]\n[prompts]\napps = "Which?"\n'


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    """Write an experiment, beside the files that it may name."""
    (tmp_path / "busy.json").write_text(json.dumps(SCHEMA | {"additionalProperties": False}))
    (tmp_path / "brief.txt").write_text("Be brief.\n")

    def write(text: str) -> Path:
        (tmp_path / "try.toml").write_text(text, encoding="utf-8")
        return tmp_path / "try.toml"

    return write


Write = Callable[[str], Path]


def _read(file: Write, text: str) -> Experiment:
    return read_experiment(file(text))


# --- the file


def test_what_is_said_at_the_top_holds_for_every_prompt(file: Write) -> None:
    top = 'schema = "busy.json"\nsystem = { file = "brief.txt" }\nframes_per_prompt = 4\nstride = 2\n'
    (cell,) = _read(file, top + 'image_position = "after"\n' + LEAST + 'b = { text = "B?" }\n').runs()
    assert json.loads(cell.sampling.schema or "")["required"] == ["busy"]
    assert cell.showing == Showing(4, 2, ImagePosition.after, "Be brief.")
    assert (cell.name, cell.prompt_names) == ("try", ("apps", "b"))


def test_a_prompt_may_be_asked_in_its_own_way_or_in_none(file: Write) -> None:
    text = LEAST + (
        'terse = { text = "Which?", system = "One word." }\n'
        'line = { text = "Line?", system = false, schema = "description" }\n'
        'terse2 = { text = "Else?", system = "One word." }\n'
    )
    cells = list(_read(file, 'system = "Be kind."\n' + text).runs())
    assert [(cell.name, cell.showing.system, cell.sampling.schema) for cell in cells] == [
        ("try", "Be kind.", None),
        ("try / terse, terse2", "One word.", None),
        ("try / line", None, "description"),
    ]


def test_a_stride_belongs_to_its_number_of_frames(file: Write) -> None:
    text = "frames_per_prompt = 4\nstride = 2\n" + LEAST + 'one = { text = "One?", frames_per_prompt = 1 }\n'
    four, one = _read(file, text).runs()
    assert (four.showing.stride, one.showing.stride) == (2, None)


def test_many_prompts_of_one_manner_make_a_short_name(file: Write) -> None:
    text = "".join(f'p{number} = {{ text = "{number}?", schema = "description" }}\n' for number in range(9))
    assert [cell.name for cell in _read(file, LEAST + text).runs()] == ["try", "try / p0, p1, p2 and 6 more"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("schema = 3\n" + LEAST, "try.toml: schema should be a file of JSON Schema, description, or false"),
        ('schema = "none.json"\n' + LEAST, "try.toml: schema none.json cannot be read"),
        (LEAST + 'b = { text = "B?", schema = "brief.txt" }\n', "prompts.b.schema brief.txt is no JSON"),
        (LEAST + 'b = { text = "B?", schema = true }\n', "prompts.b.schema should be a file"),
        (LEAST + 'b = { text = "B?", shcema = "busy.json" }\n', "unknown key prompts.b.shcema; did you mean"),
        (LEAST + 'b = { schema = "busy.json" }\n', "prompts.b should be a text, or a table with either"),
        (LEAST + 'b = { text = "B?", file = "brief.txt" }\n', "prompts.b should be a text, or a table with"),
        (LEAST + 'schema = "busy.json"\n', "prompts.schema stands below [prompts], so it is a prompt"),
        (LEAST + "[sampling]\nschema = 'a'\n", "unknown key sampling.schema; say it for all prompts, above"),
        ('system = " "\n' + LEAST, "try.toml: system should be a text, { file"),
        ('system = { file = "none.txt" }\n' + LEAST, "try.toml: system.file: There is no system text file"),
        ('system = { flie = "a" }\n' + LEAST, "unknown key system.flie; did you mean system.file"),
        ("frames_per_prompt = 0\n" + LEAST, "frames_per_prompt should be a whole number of at least 1"),
        ("frames_per_prompt = true\n" + LEAST, "frames_per_prompt should be a whole number"),
        ("stride = 1.5\n" + LEAST, "stride should be a whole number of at least 1; got 1.5"),
        ("image_position = 'left'\n" + LEAST, "image_position should be 'before' or 'after'; got 'left'"),
        (
            LEAST + 'b = { text = "B?", schema = "busy.json" }\n[sampling.a]\nstop = ["."]\n',
            "sampling.a.stop ends answers that the schema of prompts.b ends itself",
        ),
        (
            LEAST + 'b = { text = "Which?", schema = false }\n',
            "prompts 'apps' and 'b' are the same text, asked in the same way",
        ),
    ],
)
def test_what_is_wrong_is_one_line_with_file_and_key(text: str, said: str, file: Write) -> None:
    with pytest.raises(InputError) as refused:
        _read(file, text)
    assert said in str(refused.value)
    assert "try.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


PLACES = (
    "{key} = {value}\n" + LEAST,
    LEAST + "{key} = {value}\n",
    LEAST + "x = {{ text = 'X?', {key} = {value} }}\n",
    LEAST + "[sampling]\n{key} = {value}\n",
    LEAST + "[sampling.s]\n{key} = {value}\n",
    "system = {{ {key} = {value} }}\n" + LEAST,
)
KEYS = (
    "name", "recordings", "models", "prompts", "sampling", "repetitions", "schema", "system",
    "frames_per_prompt", "stride", "image_position", "text", "file", "seed", "max_tokens", "top_k",
    "repetition_window", "temperature", "top_p", "min_p", "repetition_penalty", "stop", "''", "a.b",
)  # fmt: skip
VALUES = (
    "1", "-1", "0", "1.5", "nan", "-inf", "9" * 30, "true", "false", "2026-11-21", "08:30:00",
    "''", "' '", "'🙂'", "'~nobody-here/x'", "'.'", "'description'", '"\\u0000"', '"\\u202e"', '"a\\nb"',
    "[]", "[[]]", "[1]", '[""]', '["a", "a"]', "{}", "{a = 1}", "{file = 1}", "{file = '.'}",
)  # fmt: skip


def _refusal(path: Path) -> str:
    """Return why an experiment is refused; empty when it is taken."""
    try:
        list(read_experiment(path).runs())
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("key", KEYS)
def test_whatever_stands_at_a_key_is_taken_or_is_one_line(key: str, file: Write) -> None:
    said = [_refusal(file(place.format(key=key, value=value))) for place, value in product(PLACES, VALUES)]
    refused = [line for line in said if line]
    assert len(refused) > len(VALUES)
    assert [line for line in refused if "try.toml" not in line or "\n" in line] == []


def test_a_wrong_schema_is_told_before_anything_is_encoded_or_loaded(
    run: Run, file: Write, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.json").write_text('{"type": "strin"}')
    text = 'schema = "bad.json"\n' + LEAST.replace("demo", str(folder_of(tmp_path / "images")))
    assert (
        "try.toml: schema bad.json cannot be followed: Invalid type" in run("seeonce run", file(text)).error
    )
    assert not home.exists()


# --- as typed, with a tiny checkpoint

EVERY_MANNER = """
a = "Which?"
held = { text = "Which?", schema = "busy.json" }
line = { text = "Which?", schema = "description" }
terse = { text = "Which?", system = { file = "brief.txt" } }
three = { text = "Which?", frames_per_prompt = 3, stride = 2 }
all = { text = "What?", frames_per_prompt = 2, image_position = "after", system = "S.", schema = "busy.json" }
"""
AS_DESCRIBED = (
    "--prompt Which?",
    "--prompt Which? --schema busy.json",
    "--prompt Which? --schema description",
    "--prompt Which? --system-file brief.txt",
    "--prompt Which? --frames-per-prompt 3 --stride 2",
    "--prompt What? --frames-per-prompt 2 --image-position after --system S. --schema busy.json",
)


@pytest.fixture
def text(run: Run, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What an experiment about five encoded frames begins with; its prompts come at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEEONCE_MODEL", str(plain))
    assert run("seeonce encode", folder_of(tmp_path / "monday", 5)).code == 0
    return 'recordings = ["monday"]\n[sampling]\nmax_tokens = 8\ntemperature = 1.0\nseed = 5\n[prompts]\n'


def _lines(home: Path, run_id: str) -> list[dict[str, Any]]:
    lines = (home / "runs" / run_id / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted(map(json.loads, lines), key=lambda line: (line["prompt"], line["group"], line["frame"]))


def test_the_answers_are_those_of_describe_with_the_same_options(
    run: Run, file: Write, text: str, home: Path
) -> None:
    cells = run("seeonce run --json", file(text + EVERY_MANNER)).json
    assert len(cells) == len(AS_DESCRIBED)
    sampled = "--max-tokens 8 --temperature 1.0 --seed 5"
    for cell, words in zip(cells, AS_DESCRIBED, strict=True):
        described = run(f"seeonce describe monday --json --fresh {sampled} {words}").json
        assert _lines(home, cell["run"]["id"]) == _lines(home, described["id"])
        known = run(f"seeonce describe monday --json {sampled} {words}").json["totals"]
        assert known["num_known"] == known["num_results"] == cell["run"]["num_answers"]
    texts = [[line["text"] for line in _lines(home, cell["run"]["id"])] for cell in cells]
    assert len({str(found) for found in texts}) == len(AS_DESCRIBED)


def test_only_what_is_missing_is_run_when_one_prompt_is_asked_otherwise(
    run: Run, file: Write, text: str, tmp_path: Path
) -> None:
    first = run("seeonce run --json", file(text + EVERY_MANNER)).json
    again = run("seeonce run --json", tmp_path / "try.toml").json
    assert [(cell["was_there"], cell["run"]["id"]) for cell in again] == [
        (True, cell["run"]["id"]) for cell in first
    ]
    (tmp_path / "brief.txt").write_text("Be brief!\n")
    changed = run("seeonce run --json", tmp_path / "try.toml").json
    assert [cell["was_there"] for cell in changed] == [True, True, True, False, True, True]
    assert changed[3]["run"]["num_known"] == 0


def test_a_changed_schema_is_another_question(run: Run, file: Write, text: str, tmp_path: Path) -> None:
    written = file(text + 'held = { text = "Which?", schema = "busy.json" }\n')
    run("seeonce run", written)
    (tmp_path / "busy.json").write_text('{"type": "integer", "minimum": 0, "maximum": 9}')
    (cell,) = run("seeonce run --json", written).json
    assert (cell["was_there"], cell["run"]["num_known"], cell["run"]["num_answers"]) == (False, 0, 5)


def test_columns_that_differ_in_schema_or_system_alone_are_told_apart(
    run: Run, file: Write, text: str, tmp_path: Path
) -> None:
    cells = run("seeonce run --json", file(text + EVERY_MANNER)).json
    ids = [cell["run"]["id"] for cell in cells]
    said = [
        "schema busy (", "schema description", "system Be brief.", "3 frames a prompt; stride 2",
        "system S.; 2 frames a prompt; images after",
    ]  # fmt: skip
    assert run("seeonce report -o", tmp_path / "r.html", *ids).code == 0
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    listed = " ".join(run("seeonce runs").out.split())
    assert [page.count(part) for part in said] == [2, 1, 1, 1, 1]  # two runs have the schema
    assert [listed.count(part) for part in said] == [2, 1, 1, 1, 1]
    compared = run("seeonce compare", ids[0], ids[3])
    assert f"A  {ids[0]}\nB  {ids[3]} (system Be brief.)" in compared.out


def test_a_run_that_describe_went_on_with_is_there(run: Run, file: Write, text: str, home: Path) -> None:
    written = file(text + 'held = { text = "Which?", schema = "busy.json", frames_per_prompt = 2 }\n')
    (cell,) = run("seeonce run --json", written).json
    folder = home / "runs" / cell["run"]["id"]
    whole = _lines(home, folder.name)
    kept = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:2]
    (folder / "results.jsonl").write_text("".join(kept), encoding="utf-8")
    info = json.loads((folder / "run.json").read_text()) | {"status": "interrupted"}
    (folder / "run.json").write_text(json.dumps(info))
    run("seeonce describe --resume", folder.name)
    assert _lines(home, folder.name) == whole
    (again,) = run("seeonce run --json", written).json
    assert (again["was_there"], again["run"]["id"]) == (True, folder.name)
