"""``--prefix-cache`` as typed: what is saved, what is said, and what forgets it."""

import json
from pathlib import Path

import pytest
from conftest import Run
from screens import folder_of

from infer.engine import EngineStats

SIZE = "--prefix-cache 1GB"


@pytest.fixture
def screens(run: Run, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEEONCE_MODEL", str(plain))
    folder = folder_of(tmp_path / "screens", 2)
    assert run("seeonce encode", folder).code == 0
    return folder


def test_a_second_prompt_reads_prefixes_that_stats_count_and_purge_removes(
    run: Run, screens: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = "seeonce describe screens --json --max-tokens 2"
    assert run(f"{ask} --prompt A?").json["totals"]["num_images_read"] == 0
    assert not (home / "prefixes").exists()

    totals = run(f"{ask} {SIZE} --fresh --prompt A?").json["totals"]
    assert (totals["num_images"], totals["num_images_read"]) == (2, 0)
    assert totals["prefix_bytes"] > 0
    monkeypatch.setenv("SEEONCE_PREFIX_CACHE", "1GB")
    totals = run(f"{ask} --prompt B?").json["totals"]
    assert (totals["num_images"], totals["num_images_read"]) == (0, 2)
    words = run("seeonce describe screens --max-tokens 2 --prompt C?").out
    assert "2 images from the prefix cache" in words

    stats = json.loads(run("seeonce store stats --json").out)
    assert (stats["num_prefixes"], stats["prefix_bytes"] > 0) == (2, True)
    assert "prefix cache            2 (" in run("seeonce store stats").out
    assert run("seeonce store gc --json").json["num_prefixes"] == 0
    assert run("seeonce store forget screens --purge --json").json["num_prefixes"] == 2
    assert not list((home / "prefixes").rglob("c.0.0.0"))


def test_purge_takes_prefixes_of_what_was_forgotten_before(run: Run, screens: Path, home: Path) -> None:
    run(f"seeonce describe screens {SIZE} --max-tokens 2 --prompt A?")
    assert run("seeonce store forget screens").code == 0
    assert list((home / "prefixes").rglob("c.0.0.0"))
    assert run("seeonce store forget screens --purge").code == 0
    assert not list((home / "prefixes").rglob("c.0.0.0"))


def test_without_it_describe_says_what_it_would_have_saved(
    run: Run, screens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineStats, "seconds_of", lambda self, num_tokens: 200.4 if num_tokens else 0.0)
    said = "the next prompt over these frames would skip 200 s of prefill."
    ask = "seeonce describe screens --fresh --max-tokens 2 --prompt A?"
    assert said in run(ask).out
    assert said not in run(f"{ask} {SIZE}").out


def test_sizes_that_are_none_and_contradictions_are_one_line(run: Run, screens: Path) -> None:
    assert "--prefix-cache is 'much'" in run("seeonce describe screens --prefix-cache much").error
    assert "--prefix-cache" in run(f"seeonce describe screens --no-sharing {SIZE}").error
