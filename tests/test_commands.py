"""Both commands end to end, as typed: what they print, leave behind and exit with; what they refuse."""

import json
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_edits import copy_of, edit
from conftest import MAX_PIXELS, HomeAfter, MakeCheckpoint, Run
from PIL import Image
from screens import folder_of, noise, python
from store_samples import flip_bit
from tiny_checkpoint import Tiny
from videos import make_video

from cache.base.home import Home
from cache.manifest import Manifest, list_manifests, read_manifest, write_manifest
from cache.pixel_index import RACY_NS
from cache.store import Store
from sources.recording import recording_id

FIELDS = [
    "recording", "frame", "timestamp_s", "source", "key", "prompt_id", "prompt", "text", "finish_reason",
    "usage", "parsed", "error", "group", "logprobs",
]  # fmt: skip
SEEONCE = "from seeonce.__main__ import main; main()"


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of three frames, which no test changes."""
    folder = folder_of(tmp_path_factory.mktemp("recordings") / "monday")
    time.sleep(RACY_NS / 1e9 + 0.1)  # what changed just now is not remembered as unchanged
    return folder


@pytest.fixture
def encoded(home_after: HomeAfter, images: Path, plain: Path, home: Path) -> Store:
    """This test's own home, with ``images`` encoded by ``plain``."""
    shutil.copytree(home_after(("seeonce encode", images, "--model", plain)), home)
    return Store.open(Home(home))


def _manifest(store: Store) -> Manifest:
    return read_manifest(list_manifests(store.home)[0].path)


def _results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _only_run(home: Path) -> Path:
    (found,) = (home / "runs").iterdir()
    return found


# --- encode


def test_encode_says_what_it_did(run: Run, images: Path, plain: Path) -> None:
    ended = run("seeonce encode", images, "--model", plain)
    assert ended.code == 0
    assert "3 of 3 frames in 3 entries, 0 already there, 3 new (18.4 kB), 0 skipped; done." in ended.out
    assert "writes at most" in ended.err


def test_encode_tells_repeated_pictures_from_entries_that_were_there(
    run: Run, encoded: Store, plain: Path, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "the same pictures elsewhere")
    shutil.copy(folder / "000_0.0s.png", folder / "003_30.0s.png")
    ended = run("seeonce encode", folder, "--model", plain)
    assert "4 of 4 frames in 3 entries, 3 already there, 0 new (0 kB), 1 repeated, 0 skipped" in ended.out


def test_a_second_encode_says_that_there_is_nothing_to_do(
    run: Run, encoded: Store, images: Path, plain: Path
) -> None:
    ended = run("seeonce encode --json", images, "--model", plain)
    assert (ended.code, ended.json["num_new"], ended.json["num_hits"]) == (0, 0, 3)
    assert "nothing to do" in ended.err


def test_a_second_encode_imports_nothing_slow(encoded: Store, images: Path, plain: Path) -> None:
    slow = ["mlx", "mlx_vlm", "transformers", "torch"]
    program = (
        "import sys\nfrom seeonce.commands import main\n"
        "assert main.run(main.app, sys.argv[1:], error_code=1) == 0\n"
        f"print('LOADED', *(name for name in {slow} if name in sys.modules))"
    )
    out, err = python(program, "encode", images, "--model", plain).communicate(timeout=300)
    assert out.splitlines()[-1] == "LOADED", err


def test_a_bad_picture_among_good_ones_is_named_and_the_exit_code_is_3(
    run: Run, plain: Path, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "mixed")
    (folder / "001_10.0s.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    ended = run("seeonce encode --json", folder, "--model", plain)
    assert (ended.code, ended.json["num_encoded"], len(ended.json["skipped"])) == (3, 2, 1)
    assert "skipped frame 1: " in ended.err
    assert "001_10.0s.png" in ended.err
    line = f"warning: encode could not read 1 of 3 frames of {recording_id(folder)}, so they are left out: "
    for command in ("seeonce describe --max-tokens 2 --prompt x", "verify-cache --level embeddings"):
        assert line in run(command, folder, "--model", plain).err


def test_what_lies_beside_the_frames_is_named_in_text_and_json(run: Run, plain: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mixed")
    (folder / "notes.txt").write_text("x")
    (folder / "clip.mov").write_bytes(b"x")
    (folder / "sub").mkdir()
    ended = run("seeonce encode --json", folder, "--model", plain)
    assert (ended.code, ended.json["left_out"]) == (0, ["clip.mov", "notes.txt", "sub/"])
    assert "left out are 1 folder (sub/), 1 video (clip.mov), 1 other file (notes.txt)" in ended.err


def test_one_frame_is_not_called_frames(run: Run, plain: Path, tmp_path: Path) -> None:
    noise(1).save(tmp_path / "a.png")
    ended = run("seeonce encode", tmp_path / "a.png", "--model", plain)
    assert "1 frame to look at, " in ended.err + ended.out
    assert "1 of 1 frame in 1 entry, " in ended.out


def test_a_deep_picture_is_told_apart_and_equal_to_live(run: Run, plain: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for number in (1, 2):
        shades = np.asarray(noise(number).convert("L")).astype(np.uint16) * 257
        Image.fromarray(shades).save(tmp_path / "deep" / f"{number}.png")
    ended = run("seeonce encode --json", tmp_path / "deep", "--model", plain)
    assert (ended.code, ended.json["num_entries"]) == (0, 2)
    assert run("verify-cache --level embeddings --sample all", tmp_path / "deep", "--model", plain).code == 0


def test_frames_that_an_older_rule_chose_are_still_verified_and_others_are_said(
    run: Run, home: Path, plain: Path, tmp_path: Path
) -> None:
    video = make_video(tmp_path / "a.mp4", [0, 1000, 30_000, 31_000])
    assert run("seeonce encode --every 1", video, "--model", plain).code == 0
    manifest = _manifest(Store.open(Home(home)))
    first, _, third, last = manifest.frames  # the next picture at each moment: not what stood from 1 to 30 s
    older = (first, replace(third, index=1), replace(last, index=2))
    info = replace(manifest.recording, num_frames=3, every_s=10.0)
    write_manifest(Home(home), replace(manifest, recording=info, frames=older))
    assert run("verify-cache --level embeddings --sample all", video, "--model", plain).code == 0
    ended = run("seeonce encode --every 10", video, "--model", plain)
    assert (ended.code, [frame.timestamp_s for frame in _manifest(Store.open(Home(home))).frames]) == (
        0,
        [0, 1, 30],
    )
    assert "1 of the 3 frames that were encoded before are others now" in ended.err


def test_encode_says_which_model_is_the_default_and_why(run: Run, images: Path) -> None:
    ended = run("seeonce encode", images)
    assert "Qwen3-VL-4B-Instruct-4bit is the default with" in ended.err
    assert "could not be downloaded" in ended.error


def test_a_recording_with_no_readable_picture_is_an_error(run: Run, plain: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "bad")
    for file in folder.iterdir():
        file.write_bytes(b"nothing")
    ended = run("seeonce encode", folder, "--model", plain)
    assert ended.code == 1
    assert "No frame of bad-" in ended.error


def test_names_with_spaces_and_other_scripts_work_through_both_passes(
    run: Run, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "Vidéos à voir 录屏 🎥 'q'", 1)
    noise(7).save(folder / "bild ü [1] %s {x}.png")
    monkeypatch.chdir(folder.parent)
    assert run("seeonce encode", folder.name, "--model", plain).code == 0
    assert run("seeonce describe --max-tokens 2", folder.name, "--model", plain).code == 0
    assert run("seeonce describe --max-tokens 2", recording_id(folder), "--model", plain).code == 0


def test_an_encoded_recording_is_encoded_again_by_its_id_or_the_start_of_it(
    run: Run, encoded: Store, images: Path, plain: Path
) -> None:
    for selector in (recording_id(images), recording_id(images)[:-3], "latest"):
        ended = run("seeonce encode --json", selector, "--model", plain)
        assert (ended.code, ended.json["num_hits"]) == (0, 3)


def test_a_recording_keeps_its_size_of_frames_and_its_model_until_another_is_given(
    run: Run, home: Path, images: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("checkpoint.folder._from_hub", None)  # nothing may be asked of the hub
    first = run("seeonce encode --json --max-pixels 2048", images, "--model", plain)
    again = run("seeonce encode --json", images)
    assert (again.json["encoder_id"], again.json["num_new"]) == (first.json["encoder_id"], 0)
    assert "Using --max-pixels 2048 as before;" in again.err
    assert run("seeonce describe --max-tokens 2 --prompt x", images).code == 0
    assert run("verify-cache --level embeddings", images).code == 0
    other = run("seeonce encode --json --max-pixels 1000000", images)
    assert other.json["encoder_id"] != first.json["encoder_id"]


def test_a_model_that_was_moved_is_named(run: Run, images: Path, plain: Path, tmp_path: Path) -> None:
    model = copy_of(plain, tmp_path / "model")
    assert run("seeonce encode", images, "--model", model).code == 0
    model.rename(tmp_path / "moved")
    ended = run("seeonce describe --prompt x", images)
    assert (ended.code, str(model) in ended.error, "--model" in ended.error) == (1, True, True)
    assert run("seeonce describe --max-tokens 2 --prompt x", images, "--model", tmp_path / "moved").code == 0


def test_a_picture_without_a_time_that_is_added_leaves_what_was_encoded_right(
    run: Run, home: Path, plain: Path, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "shots")
    assert run("seeonce encode", folder, "--model", plain).code == 0
    shutil.copy(next(folder.iterdir()), folder / "image.png")
    assert run("verify-cache --level embeddings", folder, "--model", plain).code == 0
    assert "1 of 4 names tell no time" in run("seeonce encode", folder, "--model", plain).err


def test_limit_takes_the_first_frames(run: Run, home: Path, images: Path, plain: Path) -> None:
    ended = run("seeonce encode --json --limit 2", images, "--model", plain)
    assert (ended.json["num_frames"], ended.json["num_encoded"]) == (2, 2)


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGKILL, -9, marks=pytest.mark.campaign)]
)
def test_an_encode_that_is_stopped_leaves_a_store_from_which_the_next_goes_on(
    signum: signal.Signals, code: int, run: Run, home: Path, plain: Path, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "long", 40)
    process = python(SEEONCE, "encode", folder, "--model", plain, "--durability", "none")
    deadline = time.monotonic() + 300
    while not list((home / "store" / "frames").glob("??/*/zarr.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signum)
    _, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    ended = run("seeonce encode --json --durability none", folder, "--model", plain)
    assert (ended.code, ended.json["num_encoded"]) == (0, 40)
    assert ended.json["num_new"] < 40
    assert run("verify-cache --level bytes", folder).code == 0


# --- what encode refuses


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("seeonce encode ./nowhere", "no recording './nowhere'"),
        ("seeonce encode latest", "seeonce encode demo"),
        ("seeonce encode demo --limit 0", "--limit is 0; expected a number of frames above 0"),
        ("seeonce encode demo --limit -3", "--limit is -3"),
        ("seeonce encode demo --every 0", "--every is 0.0; expected a number of seconds above 0"),
        ("seeonce encode demo --every nan", "--every is nan"),
        ("seeonce encode demo --model ./nowhere", "No model folder at './nowhere'"),
        ("seeonce encode demo --model nobody/no-such-model", "could not be downloaded"),
        ("seeonce describe latest", "run seeonce encode demo"),
        ("seeonce describe nowhere", "'nowhere' is not encoded: run seeonce encode nowhere"),
        ("seeonce describe --max-num-seqs 0", "--max-num-seqs is 0; expected at least 1"),
        ("seeonce describe --prompt-file nowhere.txt", "no prompt file nowhere.txt"),
        ("seeonce describe --prompt ''", "The --prompt is empty"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(line: str, said: str, run: Run, home: Path) -> None:
    ended = run(line)
    assert ended.code == 1
    assert said in ended.error
    assert not list(home.glob("runs/*"))


def test_an_empty_folder_is_refused(run: Run, home: Path, plain: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ended = run("seeonce encode", tmp_path / "empty", "--model", plain)
    assert (ended.code, home.exists()) == (1, False)
    assert "no images in this folder" in ended.error


def test_the_empty_prompt_file_is_refused(run: Run, encoded: Store, plain: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(" \n")
    ended = run("seeonce describe --prompt-file", tmp_path / "prompt.txt", "--model", plain)
    assert (ended.code, encoded.home.runs.exists()) == (1, False)
    assert "is empty: write the question into it" in ended.error


@pytest.mark.parametrize("command", ["seeonce encode", "seeonce describe", "verify-cache"])
@pytest.mark.parametrize("fault", ["no weights", "kind", "config", "truncated"])
def test_a_model_that_cannot_be_used_is_refused(
    command: str, fault: str, run: Run, encoded: Store, images: Path, plain: Path, tmp_path: Path
) -> None:
    model = copy_of(plain, tmp_path / "model")
    weights = model / "model.safetensors"
    if fault == "no weights":
        weights.unlink()
    elif fault == "kind":
        edit(model, "config.json", lambda config: config.update(model_type="gemma3"))
    elif fault == "config":
        (model / "config.json").write_text("{")
    else:
        weights.write_bytes(weights.read_bytes()[:-1000])
    ended = run(command, images, "--model", model)
    assert ended.code == (2 if command == "verify-cache" else 1)
    assert str(model) in ended.error or model.name in ended.error


def test_a_model_without_a_tokenizer_encodes_but_does_not_describe(
    run: Run, encoded: Store, images: Path, plain: Path, tmp_path: Path
) -> None:
    model = copy_of(plain, tmp_path / "model")
    for file in model.glob("tokenizer*"):
        file.unlink()
    assert run("seeonce encode", images, "--model", model).code == 0
    ended = run("seeonce describe", images, "--model", model)
    assert ended.code == 1
    assert "tokenizer" in ended.error


@pytest.mark.parametrize(
    "command", ["seeonce encode", "seeonce describe", "verify-cache", "seeonce store stats"]
)
def test_a_store_of_a_newer_format_is_refused(
    command: str, run: Run, encoded: Store, images: Path, plain: Path
) -> None:
    header = encoded.path / "store.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"format": 99}))
    words = [] if command.endswith("stats") else [images, "--model", plain]
    ended = run(command, *words)
    assert ended.code == (2 if command == "verify-cache" else 1)
    assert "99" in ended.error
    assert "upgrade seeonce" in ended.error


def test_a_full_disk_is_one_line_and_keeps_what_was_committed(
    run: Run, home: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "images", 5)
    monkeypatch.setattr(Store, "free_bytes", lambda _: 10)
    refused = run("seeonce encode", folder, "--model", plain)
    assert refused.code == 1
    assert "Encoding needs up to" in refused.error


def test_a_home_that_cannot_be_written_is_refused(
    run: Run, images: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("SEEONCE_HOME", str(tmp_path / "a file" / "home"))
    ended = run("seeonce encode", images, "--model", plain)
    assert ended.code == 1
    assert "check SEEONCE_HOME" in ended.error


# --- describe


def test_describe_answers_every_prompt_for_every_frame(
    run: Run, encoded: Store, images: Path, plain: Path, tmp_path: Path
) -> None:
    (tmp_path / "third.txt").write_text("Third, ünïcode?\n", encoding="utf-8")
    ended = run(
        "seeonce describe --prompt First? --prompt Second? --max-tokens 3",
        "--prompt-file", tmp_path / "third.txt",
        "--output", tmp_path / "out.jsonl", "--model", plain, "--", images,
    )  # fmt: skip
    assert ended.code == 0
    found = _results(tmp_path / "out.jsonl")
    prompts = ["First?", "Second?", "Third, ünïcode?"]
    assert sorted((line["frame"], line["prompt"]) for line in found) == [
        (f, p) for f in range(3) for p in prompts
    ]
    assert found == _results(_only_run(encoded.home.path) / "results.jsonl")


def test_the_fields_of_a_result_are_those_of_the_contract(
    run: Run, encoded: Store, images: Path, plain: Path
) -> None:
    assert run("seeonce describe --max-tokens 4 --prompt Apps?", images, "--model", plain).code == 0
    lines = _results(_only_run(encoded.home.path) / "results.jsonl")
    frames = {frame.index: frame for frame in _manifest(encoded).frames}
    for line in lines:
        frame = frames[line["frame"]]
        assert list(line) == FIELDS
        assert (line["timestamp_s"], line["source"], line["key"]) == (
            frame.timestamp_s,
            frame.source,
            frame.key.hex,
        )
        assert (line["recording"], line["prompt"], line["error"]) == (recording_id(images), "Apps?", None)
        assert sorted(line["usage"]) == ["completion_tokens", "prompt_tokens"]
        assert line["finish_reason"] in ("stop", "length")


def test_a_run_is_described_in_run_json(run: Run, encoded: Store, images: Path, plain: Path) -> None:
    ended = run("seeonce describe --json --max-tokens 2 --seed 5 --temperature 0.5", images, "--model", plain)
    info = json.loads((_only_run(encoded.home.path) / "run.json").read_text())
    assert {"model", "prompts", "versions", "recording", "started_at", "ended_at", "totals"} <= set(info)
    assert (info["status"], info["totals"]["num_results"]) == ("done", 3)
    assert (info["sampling"]["seed"], info["sampling"]["temperature"]) == (5, 0.5)
    assert ended.json == info | {"path": str(_only_run(encoded.home.path))}


def test_describe_works_with_the_images_gone_and_opens_none(
    run: Run, home: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "images")
    assert run("seeonce encode", folder, "--model", plain).code == 0
    folder.rename(tmp_path / "elsewhere")
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("opened an image"))
    for selector in (recording_id(folder), "latest", "images", str(folder)):
        ended = run("seeonce describe --max-tokens 2", selector, "--model", plain)
        assert ended.code == 0
        assert "3 answers" in ended.out


def test_describe_under_another_encoder_names_a_command_that_works(
    run: Run, encoded: Store, images: Path, checkpoint_of: MakeCheckpoint
) -> None:
    other = checkpoint_of(Tiny(max_pixels=MAX_PIXELS, seed=1))
    refused = run("seeonce describe --max-tokens 2", images, "--model", other)
    assert refused.code == 1
    command = refused.error.partition(": run ")[2]
    assert command.startswith("seeonce encode")
    assert run(command).code == 0
    assert run("seeonce describe --max-tokens 2", images, "--model", other).code == 0


def test_a_recording_with_spaces_in_its_path_is_quoted_in_the_command_that_is_named(
    run: Run, plain: Path, tmp_path: Path, checkpoint_of: MakeCheckpoint
) -> None:
    folder = folder_of(tmp_path / "my screens", 1)
    assert run("seeonce encode", folder, "--model", plain).code == 0
    other = checkpoint_of(Tiny(max_pixels=MAX_PIXELS, seed=1))
    refused = run("seeonce describe", folder, "--model", copy_of(other, tmp_path / "a model"))
    assert run(refused.error.partition(": run ")[2]).code == 0


def test_frames_encoded_under_a_pixel_limit_are_described(run: Run, images: Path, plain: Path) -> None:
    assert run("seeonce encode --max-pixels 2048", images, "--model", plain).code == 0
    ended = run("seeonce describe --json --max-tokens 2", images, "--model", plain)
    assert (ended.code, ended.json["totals"]["num_errors"]) == (0, 0)


def test_a_4bit_language_model_describes_what_its_plain_twin_encoded(
    run: Run, encoded: Store, images: Path, text_4bit: Path
) -> None:
    assert run("seeonce describe --max-tokens 2", images, "--model", text_4bit).code == 0


def test_one_sequence_at_a_time_gives_the_same_answers(
    run: Run, encoded: Store, images: Path, plain: Path, tmp_path: Path
) -> None:
    texts = []
    for size in (1, 8):
        out = tmp_path / f"{size}.jsonl"
        line = f"seeonce describe --max-tokens 6 --max-num-seqs {size} --output"
        assert run(line, out, images, "--model", plain).code == 0
        texts.append({result["frame"]: result["text"] for result in _results(out)})
    assert texts[0] == texts[1]


def test_a_prompt_longer_than_the_context_is_refused_and_says_how_long(
    run: Run, encoded: Store, images: Path, plain: Path
) -> None:
    ended = run("seeonce describe --prompt", "x" * 5000, images, "--model", plain)
    assert ended.code == 1
    assert "4096" in (ended.err + ended.out).replace(",", "")


def test_latest_is_the_newest_listed_else_the_newest_encoded(
    run: Run, encoded: Store, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        run("seeonce describe --json --max-tokens 1 --model", plain).json["recording"].startswith("monday-")
    )
    place = tmp_path / "recordings"
    folder_of(place / "tuesday", 1, first=20)
    monkeypatch.setenv("SEEONCE_RECORDINGS", str(place))
    refused = run("seeonce describe --model", plain)
    assert (refused.code, "tuesday" in refused.error) == (1, True)
    assert run("seeonce encode --json --model", plain).json["recording"].startswith("tuesday-")
    assert (
        run("seeonce describe --json --max-tokens 1 --model", plain).json["recording"].startswith("tuesday-")
    )


def test_a_missing_entry_is_told_per_frame_and_the_others_are_answered(
    run: Run, encoded: Store, images: Path, plain: Path
) -> None:
    key = _manifest(encoded).frames[1].key
    shutil.rmtree(encoded.path / "frames" / key.hex[:2] / key.hex)
    ended = run("seeonce describe --max-tokens 2", images, "--model", plain)
    results = {line["frame"]: line for line in _results(_only_run(encoded.home.path) / "results.jsonl")}
    assert ended.code == 3
    assert "run seeonce encode" in results[1]["error"]
    assert [results[frame]["error"] for frame in (0, 2)] == [None, None]


# --- verify-cache


@pytest.mark.parametrize("level", ["bytes", "embeddings", "outputs"])
def test_an_untouched_store_is_equal(level: str, run: Run, encoded: Store, images: Path, plain: Path) -> None:
    ended = run(f"verify-cache --json --level {level}", images, "--model", plain)
    names = [check["name"] for check in ended.json["checks"]]
    assert (ended.code, ended.json["equal"]) == (0, True)
    assert names == ["bytes", "embeddings", "outputs"][: names.index(level) + 1]


@pytest.mark.parametrize("position", [0, 12_345, -1])
def test_one_flipped_bit_is_found(position: int, run: Run, encoded: Store, images: Path) -> None:
    key = _manifest(encoded).frames[0].key
    chunk = encoded.path / "frames" / key.hex[:2] / key.hex / "c.0.0.0"
    flip_bit(chunk, position % (8 * chunk.stat().st_size))
    ended = run("verify-cache --level bytes", images)
    assert ended.code == 1
    assert key.hex[:12] in ended.out
    assert "NOT equal" in ended.out


def test_two_swapped_entries_are_found(run: Run, encoded: Store, images: Path) -> None:
    first, second = (
        encoded.path / "frames" / frame.key.hex[:2] / frame.key.hex / "c.0.0.0"
        for frame in _manifest(encoded).frames[:2]
    )
    first.rename(second.with_name("aside"))
    second.rename(first)
    second.with_name("aside").rename(second)
    ended = run("verify-cache --level bytes --json", images)
    assert (ended.code, len(ended.json["checks"][0]["problems"])) == (1, 2)


@pytest.mark.parametrize("fault", ["zeroed", "swapped"])
def test_deepstack_that_is_zeroed_or_swapped_with_valid_digests_is_found(
    fault: str, run: Run, encoded: Store, images: Path, plain: Path
) -> None:
    manifest = _manifest(encoded)
    frame = manifest.frames[0]
    info, features = encoded.peek(frame.key), encoded.read(frame.key)
    assert info is not None
    assert features is not None
    array = np.array(features.array)
    array[1:] = 0 if fault == "zeroed" else array[1:][::-1]
    shutil.rmtree(encoded.path / "frames" / frame.key.hex[:2] / frame.key.hex)
    encoded.write(frame.pixels, manifest.encoder, replace(features, array=array), info.provenance)
    assert run("verify-cache --level bytes", images).code == 0
    ended = run("verify-cache --level embeddings --sample all", images, "--model", plain)
    assert ended.code == 1
    assert "frame 0" in ended.out


def test_frames_that_are_gone_cannot_be_compared_but_their_bytes_can(
    run: Run, home: Path, plain: Path, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "images")
    assert run("seeonce encode", folder, "--model", plain).code == 0
    shutil.rmtree(folder)
    gone = run("verify-cache --level embeddings", folder, "--model", plain)
    assert gone.code == 2
    assert "--level bytes" in gone.out
    assert run("verify-cache --level bytes", folder).code == 0


@pytest.mark.parametrize("line", ["verify-cache", "verify-cache nowhere", "verify-cache demo --sample 0"])
def test_nothing_to_check_is_code_2(line: str, run: Run, home: Path) -> None:
    ended = run(line)
    assert ended.code == 2
    assert ended.error


# --- what there is


def test_recordings_lists_what_is_there_and_what_is_encoded(
    run: Run, encoded: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "recordings" / "tuesday", 2)
    monkeypatch.setenv("SEEONCE_RECORDINGS", str(tmp_path / "recordings"))
    found = {entry["name"]: entry for entry in run("seeonce recordings --json").json}
    assert found["monday"]["encodings"][0]["num_encoded"] == 3
    assert (found["tuesday"]["num_frames"], found["tuesday"]["encodings"]) == (2, [])
    shown = run("seeonce recordings")
    assert shown.code == 0
    assert "not encoded" in shown.out
    assert "3 encoded under" in shown.out


def test_without_recordings_the_listing_says_how_to_get_one(run: Run, home: Path) -> None:
    ended = run("seeonce recordings")
    assert (ended.code, "seeonce encode demo" in ended.out) == (0, True)


def test_store_stats_count_entries(run: Run, encoded: Store) -> None:
    assert run("seeonce store stats --json").json["num_entries"] == 3
    assert "3 named" in run("seeonce store stats").out


@pytest.mark.parametrize(("names", "length_s"), [(("a", "b", "c"), None), (("0s", "1s", "2s"), 2.0)])
def test_a_folder_whose_names_tell_no_time_has_no_length(
    names: tuple[str, ...], length_s: float | None, run: Run, plain: Path, home: Path, tmp_path: Path
) -> None:
    for number, name in enumerate(names):
        noise(number).save(tmp_path / f"{name}.png")
    assert run("seeonce encode", tmp_path, "--model", plain).code == 0
    (listed,) = run("seeonce recordings --json").json
    assert listed["length_s"] == length_s
