"""What --json prints follows its schema, and the words claim what was checked."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from conftest import HomeAfter, Run
from live_mlx_vlm import draw_noise

from cache.entry import Features
from seeonce.commands.verify_report import as_json_text, markdown, terminal_lines, verdict_words
from seeonce.verifier.differences import feature_differences, layer_figures
from seeonce.verifier.report import REPORT_SCHEMA, Check, ControlResult, Report, Tolerances

SCHEMA: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "docs" / "verify-report.schema.json").read_text(encoding="utf-8")
)
CHECK = Check("bytes", True, "every byte", 5, 5, ())
REPORT = Report("monday", "bytes", True, True, (CHECK,))


def valid(document: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(document))


def test_the_schema_is_one_and_names_the_version_that_is_written() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["schema"]["const"] == REPORT_SCHEMA


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_noise(tmp_path_factory.mktemp("recordings") / "images", 3)


@pytest.mark.parametrize("options", ["--level bytes", "--all", "--level embeddings --controls", "--sample 1"])
def test_a_real_report_follows_the_schema(
    options: str, run: Run, home: Path, home_after: HomeAfter, images: Path, plain: Path
) -> None:
    shutil.copytree(home_after(("seeonce encode", images, "--model", plain)), home)
    more = () if options == "--all" else (images, "--model", plain)
    found = run(f"verify-cache --json {options}", *more).json
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    assert not valid(found | {"equal": "yes"})
    assert not valid(found | {"more": 1})


def test_features_that_are_no_numbers_make_figures_that_are_null() -> None:
    live = Features(np.ones((1, 4, 3), np.float32), "float32", (1, 4, 4), 2)
    broken = replace(live, array=np.full_like(live.array, np.nan))
    layers = layer_figures([feature_differences(broken, live) or []])
    check = replace(CHECK, equal=False, problems=("a layer differs",), layers=layers)
    text = as_json_text(replace(REPORT, equal=False, checks=(check,)))
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["checks"][0]["layers"][0]["relative"] is None
    assert valid(found)


def test_a_report_of_what_differs_follows_the_schema_and_fills_a_page(
    run: Run, tmp_path: Path, plain: Path, home: Path
) -> None:
    images = draw_noise(tmp_path / "images", 3)
    run("seeonce encode", images, "--model", plain)
    for chunk in home.rglob("c.0.0.0"):
        chunk.write_bytes(chunk.read_bytes()[:-1] + b"\0")
    page = tmp_path / "report.md"
    ended = run("verify-cache --json --level bytes --report", page, images, "--model", plain)
    jsonschema.Draft202012Validator(SCHEMA).validate(ended.json)
    assert ended.code == 1
    assert page.read_text().count("crc32c") == 3
    assert "**NOT equal" in page.read_text()


@pytest.mark.parametrize(
    ("report", "code", "words"),
    [
        (REPORT, 0, "every byte of the entries and manifests checked is as it was written"),
        (replace(REPORT, equal=False), 1, "NOT equal"),
        (replace(REPORT, complete=False), 2, "not all could be checked"),
        (replace(REPORT, controls_problem="the twin fails"), 1, "controls FAILED"),
        (replace(REPORT, controls=(ControlResult("zeroed", True, False, (), ""),)), 1, "controls FAILED"),
        (replace(REPORT, controls=(ControlResult("zeroed", False, False, (), "none"),)), 0, "every byte"),
        (replace(REPORT, tolerances=Tolerances(1, 1, 1, 1, True)), 0, "within the tolerance that was given"),
    ],
)
def test_the_verdict_and_the_exit_code_say_the_same(report: Report, code: int, words: str) -> None:
    assert report.exit_code == code
    assert words in verdict_words(report)
    assert words in terminal_lines(report)[-1]
    assert words in markdown(report)


def test_a_check_of_nothing_is_not_called_equal() -> None:
    report = replace(REPORT, checks=(replace(CHECK, num_checked=0),))
    assert "bytes       unknown" in terminal_lines(report)[0]


def test_many_problems_are_cut_on_the_terminal_and_whole_on_the_page() -> None:
    problems = tuple(f"entry {number}: wrong" for number in range(40))
    report = replace(REPORT, equal=False, checks=(replace(CHECK, equal=False, problems=problems),))
    assert "… and 28 more in bytes; --json has all" in "\n".join(terminal_lines(report))
    assert all(problem in markdown(report) for problem in problems)
