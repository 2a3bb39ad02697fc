"""Answers under a schema: every one parses, whatever the weights; a bad schema is one error, at once."""

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import Ended, HomeAfter, Run
from screens import folder_of
from store_samples import frame

from cache.base.errors import InputError
from infer import schema as schemas
from infer.request import Answer, Request, Usage
from infer.sampling import Sampling
from infer.schema import check_schema
from seeonce.runs.prompts import Prompt
from seeonce.runs.results import results_of

BOUNDED = {
    "type": "object",
    "properties": {
        "apps": {"type": "array", "items": {"enum": ["mail", "editor", "ünï 🙂"]}, "maxItems": 3},
        "busy": {"type": "boolean"},
        "title": {"type": "string", "maxLength": 8},
        "windows": {"type": "integer", "minimum": 0, "maximum": 20},
    },
    "required": ["apps", "busy", "title", "windows"],
    "additionalProperties": False,
}
RECURSIVE = {
    "$defs": {
        "window": {
            "type": "object",
            "properties": {
                "n": {"enum": [1, 2]},
                "behind": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/window"}]},
            },
            "required": ["n", "behind"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/window",
}


@pytest.fixture(scope="module")
def monday(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("recordings") / "monday", 3)


@pytest.fixture
def asked(run: Run, plain: Path, monday: Path, home: Path, home_after: HomeAfter, tmp_path: Path) -> Any:
    """Ask about three frames with random weights, several seeds at a time."""
    shutil.copytree(home_after(("seeonce encode", monday, "--model", plain)), home)

    def ask(schema: object, *words: object) -> Ended:
        if isinstance(schema, dict):
            (tmp_path / "schema.json").write_text(json.dumps(schema))
            schema = tmp_path / "schema.json"
        return run("seeonce describe monday --json --model", plain, "--schema", schema, *words)

    return ask


def _lines(ended: Ended) -> list[dict[str, Any]]:
    lines = (Path(ended.json["path"]) / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted(map(json.loads, lines), key=lambda line: (line["prompt"], line["frame"]))


SCHEMA_LINE = ("--schema", "description")
SAMPLINGS = [
    (),
    pytest.param(("--temperature", 2, "--seed", 3), marks=pytest.mark.campaign),
    ("--temperature", 1, "--repetition-penalty", 1.5, "--top-k", 9),
]


@pytest.mark.parametrize("words", SAMPLINGS, ids=str)
def test_every_answer_fulfils_its_schema(words: tuple[object, ...], asked: Any) -> None:
    ended = asked(BOUNDED, "--max-tokens", 300, "--prompt", "A?", "--prompt", "B?", *words)
    assert ended.code == 0, _lines(ended)
    for line in _lines(ended):
        jsonschema.validate(line["parsed"], BOUNDED)
        assert line["parsed"] == json.loads(line["text"])
        assert line["finish_reason"] == "stop"


@pytest.mark.parametrize("is_whole", [False, pytest.param(True, marks=pytest.mark.campaign)])
def test_the_description_line_always_parses(
    is_whole: bool, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_whole:  # a random model fills it: a tenth of the length is as good
        schema = schemas._LINE
        for long, short in (("299", "29"), ("79", "9"), ("39", "5"), ("0,7", "0,1")):
            schema = schema.replace(f"{long}}}", f"{short}}}")
        monkeypatch.setattr(schemas, "_LINE", schema)
    ended = asked("description", "--max-tokens", 2500, "--temperature", 1.5, "--seed", 6)
    for line in _lines(ended):
        assert (line["error"], set(line["parsed"])) == (None, {"description", "activity", "apps", "topics"})
        assert line["text"].startswith("description: ")


def test_a_model_that_writes_the_line_anyway_says_the_same_under_its_schema(run: Run, demo: None) -> None:
    free, held = (_lines(run("seeonce describe demo --json", *words)) for words in ((), SCHEMA_LINE))
    assert [line["text"] for line in held] == [line["text"] for line in free]
    assert all(line["parsed"] for line in held)


def test_several_frames_each_fulfil_the_schema(asked: Any) -> None:
    ended = asked(BOUNDED, "--frames-per-prompt", 2, "--max-tokens", 500, "--temperature", 1)
    lines = _lines(ended)
    assert (ended.code, [line["group"] for line in lines]) == (0, [[0, 1], [0, 1], [2]])
    for line in lines:
        jsonschema.validate(line["parsed"], BOUNDED)


def test_an_answer_cut_by_max_tokens_is_an_error_that_says_so(asked: Any) -> None:
    ended = asked({"type": "integer", "minimum": 10}, "--max-tokens", 2)
    assert ended.code == 1
    for line in _lines(ended):
        assert isinstance(json.loads(line["text"]), int)  # and yet it may be the beginning of another
        assert "ended by length after 2 tokens, before its schema was fulfilled" in line["error"]
        assert line["parsed"] is None


@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 5000])
def test_a_number_that_cannot_be_kept_is_an_error_that_says_so(number: str) -> None:
    prompt = Prompt("What?")
    request = Request(0, prompt.segments(frame(0)), Sampling(schema="{}"))
    answer = Answer(f'{{"n": {number}}}', "stop", Usage(1, 1))
    (line,) = results_of(request, prompt, answer, "monday")
    assert line.parsed is None
    assert line.error is not None
    assert "JSON that cannot be kept" in line.error


def test_a_schema_that_refers_to_itself_works(asked: Any) -> None:
    ended = asked(RECURSIVE, "--max-tokens", 400, "--temperature", 1.5)
    for line in _lines(ended):
        if line["error"] is None:
            jsonschema.validate(line["parsed"], RECURSIVE)
        else:
            assert line["finish_reason"] in ("length", "repetition")


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"type": "string", "pattern": "(a{1000}){1000}"}], ids=str)
def test_a_schema_that_no_answer_can_be_held_to_costs_an_error_a_line(schema: object, asked: Any) -> None:
    ended = asked(schema, "--max-tokens", 8)
    assert (ended.code, {line["error"] is None for line in _lines(ended)}) == (1, {False})


def test_a_run_under_a_schema_goes_on(asked: Any, run: Run) -> None:
    first = asked({"type": "integer", "minimum": 0, "maximum": 20}, "--fresh")
    whole, path = _lines(first), Path(first.json["path"])
    text = (path / "results.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (path / "results.jsonl").write_text(text[0], encoding="utf-8")
    assert _lines(run("seeonce describe --json --resume latest")) == whole


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no JSON"), ("{", "no JSON"), ("[]", "expected an object"), ("[" * 5000, "no JSON"),
        ('{"type": "strin"}', "Invalid type: strin"), ('{"$ref": "#/nope"}', "'/nope' does not exist"),
        ('{"$ref": "http://a/b"}', "not present"), ('{"not": {}}', "Unimplemented keys"),
        ('{"type": "string", "minLength": 5, "maxLength": 2}', "Unsatisfiable"),
        ('{"enum": []}', "Unsatisfiable"),
        ('{"type": "string", "pattern": "("}', "unclosed group"),
    ],
)  # fmt: skip
def test_a_bad_schema_is_one_line_that_says_why(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        check_schema(text, "--schema x.json")
    assert "start: answer" not in str(raised.value)


def test_a_bad_schema_is_refused_before_anything_is_loaded(run: Run, home: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"type": "strin"}')
    assert "Invalid type" in run("seeonce describe nowhere --schema", tmp_path / "bad.json").error
    assert "cannot be read" in run("seeonce describe nowhere --schema", tmp_path / "none.json").error
    assert not home.exists()


def test_a_stop_string_and_a_schema_exclude_each_other() -> None:
    with pytest.raises(InputError, match="--stop and --schema"):
        Sampling(stop=("x",), schema="description")
