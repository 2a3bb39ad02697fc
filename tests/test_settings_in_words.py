"""How a run was asked, in a few words: nothing when as usual, never the same words for two ways."""

import json
from pathlib import Path

import pytest
from conftest import Run
from run_samples import answer
from test_results_commands import FIRST, write_run

from infer.sampling import Sampling
from seeonce.runs.prompts import Showing
from seeonce.runs.run import RunInfo


def in_words(sampling: Sampling, showing: Showing) -> str:
    return RunInfo("a-run", sampling=sampling, showing=showing).settings_in_words


def _schema(text: str) -> str:
    return in_words(Sampling(schema=text), Showing())


def test_what_is_as_usual_is_not_said() -> None:
    assert in_words(Sampling(), Showing()) == ""
    assert in_words(Sampling(), Showing(4, 4)) == "4 frames a prompt"


TEXTS = [
    "description",
    '{"type": "integer"}',
    '{"type":  "integer"}',
    '{"title": "One"}',
    '{"title": "One", "type": "object"}',
    '{"properties": {"a": {}}}',
    '{"properties": {"a": {"type": "string"}}}',
    '{"title": 3, "properties": []}',
    '["' + "x" * 300 + '"]',
    '["' + "x" * 299 + 'y"]',
    "\u202edescription",
    "[U+202E]description",
]


def test_no_two_schemas_or_system_texts_look_the_same() -> None:
    assert len({_schema(text) for text in TEXTS}) == len(TEXTS)
    assert len({in_words(Sampling(), Showing(system=text)) for text in TEXTS}) == len(TEXTS)


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_said_is_short_and_visible(text: str) -> None:
    shown = in_words(Sampling(schema=text), Showing(system=text))
    assert "\u202e" not in shown
    assert len(shown) < 130


def test_a_schema_is_named_by_its_title_or_its_properties() -> None:
    assert _schema('{"properties": {"apps": {}, "busy": {}}}').startswith("schema apps, busy (")
    assert _schema('{"title": "Windows", "properties": {"a": {}}}').startswith("schema Windows (")


@pytest.mark.parametrize("odd", ["1e999", "-1e999", "NaN", "1" + "0" * 400, "true", '"x"', "[]", "null"])
def test_odd_numbers_in_run_json_hide_no_run(odd: str, run: Run, home: Path) -> None:
    folder = write_run(home, FIRST, [answer(0, "a")])
    fields = json.loads((folder / "run.json").read_text())
    text = json.dumps(fields | {"stride": 0, "frames_per_prompt": 0, "totals": {"num_known": 0}})
    (folder / "run.json").write_text(text.replace(": 0", f": {odd}"))
    (listed,) = run("seeonce runs --json").json
    assert (listed["num_known"], listed["manner"]["frames_per_prompt"]) == (0, 1)
