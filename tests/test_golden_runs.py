"""Runs that earlier versions wrote read as before: golden_runs/flat has settings that are not grouped."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import Run

from cache.base.errors import StoreError
from infer.limits import BatchLimits
from infer.sampling import Sampling
from seeonce.runs.options import options_of
from seeonce.runs.prompts import Showing
from seeonce.runs.run import read_info, readable_info

FLAT = Path(__file__).parent / "golden_runs" / "flat"


@pytest.fixture
def flat(home: Path) -> Path:
    """The home's only run, an old one."""
    run_id = json.loads((FLAT / "run.json").read_text())["id"]
    return Path(shutil.copytree(FLAT, home / "runs" / run_id))


def test_an_old_run_json_is_read_whole() -> None:
    info = read_info(FLAT)
    assert (info.sampling, info.limits, info.showing) == (Sampling(), BatchLimits(max_num_seqs=8), Showing())
    assert (info.status, info.totals.num_results, len(info.plan_id)) == ("done", 49, 64)
    assert options_of(info).sampling == Sampling()


def test_an_old_run_is_listed_reported_scored_and_exported(run: Run, flat: Path, tmp_path: Path) -> None:
    (listed,) = run("seeonce runs --json").json
    assert (listed["id"], listed["num_answers"], listed["state"]) == (flat.name, 3, "done")
    assert listed["manner"] == {
        "schema": "", "system": "", "frames_per_prompt": 1, "stride": None, "image_position": "before",
        "thinking": False,
    }  # fmt: skip
    assert run("seeonce report latest -o", tmp_path / "report.html").code == 0
    assert run("seeonce export latest --to csv --output", tmp_path / "table.csv").code == 0
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 4


def test_settings_of_an_old_run_count_as_those_of_a_new_one(run: Run, flat: Path) -> None:
    fields = json.loads((flat / "run.json").read_text())
    (flat / "run.json").write_text(json.dumps(fields | {"temperature": 0.7, "stride": 2, "stop": ["."]}))
    info = read_info(flat)
    assert (info.sampling.temperature, info.showing.stride, info.sampling.stop) == (0.7, 2, (".",))


def test_settings_that_nothing_could_be_asked_with_are_one_line(flat: Path) -> None:
    fields = json.loads((flat / "run.json").read_text())
    for name, value in (("temperature", -1), ("max_num_seqs", 0), ("image_position", "beside")):
        (flat / "run.json").write_text(json.dumps(fields | {name: value}))
        with pytest.raises(StoreError, match=r"run\.json"):
            read_info(flat)


def test_a_setting_that_cannot_be_read_costs_no_other(flat: Path) -> None:
    fields = json.loads((flat / "run.json").read_text())
    (flat / "run.json").write_text(json.dumps(fields | {"temperature": "warm", "top_k": 5, "stride": 3}))
    info = readable_info(flat)
    assert (info.sampling.temperature, info.sampling.top_k, info.showing.stride) == (0.0, 5, 3)
    assert info.totals.num_results == 49
    with pytest.raises(StoreError, match="temperature"):
        read_info(flat)
