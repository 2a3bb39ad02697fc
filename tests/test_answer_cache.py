"""Known answers: what makes two questions the same, and that a wrong row is never an answer."""

import dataclasses
import shutil
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from checkpoint_edits import copy_of, edit
from conftest import HomeAfter, Run
from screens import folder_of, noise
from store_samples import frame, new_store

from cache.base.home import Home
from cache.manifest import list_manifests
from cache.pixel_index import PixelIndex
from checkpoint import identity as answering
from checkpoint.folder import find_checkpoint
from checkpoint.identity import model_id
from infer.request import Answer, Image, Request, Text, Usage
from infer.sampling import Sampling
from seeonce.runs.answer_cache import AnswerCache, answer_from_json, answer_to_json
from seeonce.runs.options import DescribeOptions
from seeonce.runs.plan import ModelIdentity, make_plan, request_digest
from seeonce.runs.prompts import ImagePosition, Prompt, Showing

ANSWER = Answer("a mail, “naïve” \u202e\x00", "stop", Usage(10, 3))
DIGEST = "a" * 64
IDENTITY = ModelIdentity("m" * 64, "float32", "here")
REQUEST = Request(0, Prompt("What?").segments(frame(0)), Sampling(0.5, 0.9, 1, 64))


@pytest.fixture
def cache(home: Path) -> Iterator[AnswerCache]:
    home.mkdir()
    with AnswerCache(Home(home)) as cache:
        yield cache


def _file(home: Path) -> Path:
    return home / "answers" / "answers-1.sqlite"


# --- the memory


def test_what_was_kept_is_found_by_another_process(cache: AnswerCache, home: Path) -> None:
    cache.keep(DIGEST, ANSWER, "monday")
    cache.close()
    with AnswerCache(Home(home)) as other:
        assert other.find(DIGEST) == ANSWER
    assert stat.S_IMODE(_file(home).stat().st_mode) == 0o600
    assert stat.S_IMODE(_file(home).parent.stat().st_mode) == 0o700


def test_an_unknown_ask_is_unknown_and_an_error_is_not_kept(cache: AnswerCache) -> None:
    cache.keep(DIGEST, dataclasses.replace(ANSWER, error="full"), "monday")
    assert cache.find(DIGEST) is None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE answers SET reply = replace(reply, 'mail', 'chat')",
        "UPDATE answers SET recording = 'tuesday'",
        "UPDATE answers SET reply = '{}', row_digest = x'00'",
        "UPDATE answers SET reply = 7",
        "DROP TABLE answers",
    ],
)
def test_a_row_that_was_changed_is_no_answer(statement: str, cache: AnswerCache, home: Path) -> None:
    cache.keep(DIGEST, ANSWER, "monday")
    cache.close()
    with sqlite3.connect(_file(home)) as connection:
        connection.execute(statement)
    connection.close()
    assert cache.find(DIGEST) is None
    cache.keep(DIGEST, ANSWER, "monday")
    assert cache.find(DIGEST) == ANSWER


def test_two_rows_that_changed_places_are_no_answers(cache: AnswerCache, home: Path) -> None:
    other = "b" * 64
    cache.keep(DIGEST, ANSWER, "monday")
    cache.keep(other, dataclasses.replace(ANSWER, text="a chat"), "monday")
    cache.close()
    with sqlite3.connect(_file(home)) as connection:
        connection.execute("UPDATE answers SET ask = 'c' WHERE ask = ?", (DIGEST,))
        connection.execute("UPDATE answers SET ask = ? WHERE ask = ?", (DIGEST, other))
        connection.execute("UPDATE answers SET ask = ? WHERE ask = 'c'", (other,))
    connection.close()
    assert (cache.find(DIGEST), cache.find(other)) == (None, None)


@pytest.mark.parametrize("position", range(0, 100, 7))
def test_a_file_with_bytes_overwritten_gives_the_answer_or_none(
    position: int, cache: AnswerCache, home: Path
) -> None:
    cache.keep(DIGEST, ANSWER, "monday")
    cache.close()
    content = bytearray(_file(home).read_bytes())
    start = len(content) * position // 100
    content[start : start + 64] = b"\xff" * len(content[start : start + 64])
    _file(home).write_bytes(content)
    assert cache.find(DIGEST) in (None, ANSWER)
    cache.keep(DIGEST, ANSWER, "monday")
    assert cache.find(DIGEST) in (None, ANSWER)


def test_a_home_that_cannot_be_written_knows_nothing(home: Path) -> None:
    home.mkdir()
    (home / "answers").write_text("a file")
    cache = AnswerCache(Home(home))
    cache.keep(DIGEST, ANSWER, "monday")
    assert cache.find(DIGEST) is None


def test_the_memory_is_bounded_and_lets_go_of_what_was_used_longest_ago(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    monkeypatch.setattr("seeonce.runs.answer_cache._PRUNE_EVERY", 1)
    cache = AnswerCache(Home(home), max_answers=10)
    for number in range(30):
        monkeypatch.setattr("seeonce.runs.answer_cache._now", lambda number=number: number)
        cache.keep(f"{number:064}", ANSWER, "monday")
        cache.find(f"{0:064}")
    kept = [number for number in range(30) if cache.find(f"{number:064}")]
    cache.close()
    assert kept[0] == 0
    assert 29 in kept
    assert len(kept) <= 10


def test_forgetting_a_recording_removes_its_answers_alone(cache: AnswerCache, home: Path) -> None:
    other = "b" * 64
    cache.keep(DIGEST, dataclasses.replace(ANSWER, text="secret words"), "monday")
    cache.keep(other, ANSWER, "tuesday")
    assert cache.remove_recording("monday") == 1
    assert (cache.find(DIGEST), cache.find(other)) == (None, ANSWER)
    cache.close()
    assert not [file for file in _file(home).parent.iterdir() if b"secret words" in file.read_bytes()]


@pytest.fixture
def caches(home: Path) -> Iterator[list[AnswerCache]]:
    home.mkdir()
    with ExitStack() as opened:
        yield [opened.enter_context(AnswerCache(Home(home))) for _ in range(4)]


def test_several_threads_and_connections_share_the_memory(caches: list[AnswerCache]) -> None:
    def work(number: int) -> None:
        for step in range(50):
            caches[number].keep(f"{step:064}", ANSWER, "monday")
            assert caches[(number + 1) % 4].find(f"{step:064}") in (None, ANSWER)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(caches[0].find(f"{step:064}") == ANSWER for step in range(50))


# --- what makes two questions the same


def _changes() -> list[Any]:
    return [
        (REQUEST, dataclasses.replace(IDENTITY, model_id="n" * 64)),
        (REQUEST, dataclasses.replace(IDENTITY, compute_dtype="bfloat16")),
        (REQUEST, dataclasses.replace(IDENTITY, computed_by="there")),
        (dataclasses.replace(REQUEST, sampling=Sampling(0.6, 0.9, 1, 64)), IDENTITY),
        (dataclasses.replace(REQUEST, sampling=Sampling(0.5, 0.8, 1, 64)), IDENTITY),
        (dataclasses.replace(REQUEST, sampling=Sampling(0.5, 0.9, 2, 64)), IDENTITY),
        (dataclasses.replace(REQUEST, sampling=Sampling(0.5, 0.9, 1, 65)), IDENTITY),
        (dataclasses.replace(REQUEST, system="Be brief."), IDENTITY),
    ]


@pytest.mark.parametrize(("request_", "model_identity"), _changes())
def test_whatever_an_answer_depends_on_makes_another_question(
    request_: Request, model_identity: ModelIdentity
) -> None:
    assert request_digest(request_, model_identity) != request_digest(REQUEST, IDENTITY)


def test_texts_and_frames_in_another_order_or_division_are_another_question() -> None:
    one, two = Image(frame(0)), Image(frame(1))
    key = frame(0).key.hex
    asked = [
        (one, two, Text("What?")), (two, one, Text("What?")), (one, Text("What?")), (one, Text("What? ")),
        (one, Text("Wh"), Text("at?")), (Text("What?"), one), (Text(key), Text("What?")),
        (one, Text('"],["image","' + key)), (one, Text("What?"), Text("")),
    ]  # fmt: skip
    requests = [dataclasses.replace(REQUEST, segments=segments) for segments in asked]
    assert len({request_digest(request, IDENTITY) for request in requests}) == len(asked)


def test_how_frames_are_shown_makes_another_question() -> None:
    showings = (Showing(), Showing(2), Showing(image_position=ImagePosition.after), Showing(3))
    plans = [
        make_plan(
            [frame(0), frame(1)], DescribeOptions((Prompt("At {timestamp}?"),), showing=showing), IDENTITY
        )
        for showing in showings
    ]
    # three frames hold both, as two do
    assert len({digest for plan in plans for digest in plan.digests}) == 2 + 1 + 2 + 0


def test_the_same_picture_elsewhere_is_the_same_question() -> None:
    here, there = frame(0), dataclasses.replace(frame(7, picture=0), source="elsewhere.png")
    plan = make_plan([here, there], DescribeOptions((Prompt("What?"),)), IDENTITY)
    assert plan.digests[0] == plan.digests[1]


def test_greedy_answers_do_not_depend_on_the_seed() -> None:
    samplings = (Sampling(0, 1, 0), Sampling(0, 0.5, 9))
    greedy = [dataclasses.replace(REQUEST, sampling=sampling) for sampling in samplings]
    assert request_digest(greedy[0], IDENTITY) == request_digest(greedy[1], IDENTITY)


# --- as typed


def _described(run: Run, *more: object) -> dict[str, Any]:
    ended = run("seeonce describe latest --json --max-tokens 3 --prompt What?", *more)
    assert ended.code == 0, ended.err
    totals: dict[str, Any] = ended.json["totals"]
    return totals


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = folder_of(tmp_path_factory.mktemp("recordings") / "images")
    noise(0).save(folder / "003_30.0s.png")  # the first picture again
    return folder


@pytest.fixture
def encoded(home_after: HomeAfter, images: Path, plain: Path, home: Path) -> Path:
    shutil.copytree(home_after(("seeonce encode", images, "--model", plain)), home)
    return plain


def test_equal_frames_are_decoded_once_and_a_second_run_decodes_nothing(run: Run, encoded: Path) -> None:
    first = _described(run, "--model", encoded)
    second = _described(run, "--model", encoded)
    assert (first["num_known"], first["num_repeated"], second["num_known"]) == (0, 1, 4)
    strip = ("num_known", "num_repeated", "num_images", "seconds", "prefix_seconds", "prefix_bytes")
    assert {k: v for k, v in first.items() if k not in strip} == {
        k: v for k, v in second.items() if k not in strip
    }


def test_a_run_of_known_answers_loads_no_model(
    run: Run, encoded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _described(run, "--model", encoded)
    monkeypatch.setattr("infer.model.LanguageModel", lambda *_: pytest.fail("loaded the model"))
    assert _described(run, "--model", encoded)["num_known"] == 4


def test_fresh_decodes_everything(run: Run, encoded: Path) -> None:
    _described(run, "--model", encoded)
    totals = _described(run, "--fresh", "--model", encoded)
    assert (totals["num_known"], totals["num_repeated"]) == (0, 0)


def test_sampled_answers_are_known_under_their_seed_alone(run: Run, encoded: Path) -> None:
    sampled = ("--temperature", "1", "--model", encoded)
    _described(run, "--seed", "1", *sampled)
    assert _described(run, "--seed", "2", *sampled)["num_known"] == 0
    assert _described(run, "--seed", "1", *sampled)["num_known"] == 4


@pytest.mark.parametrize("what", ["language weights", "chat template", "generation config"])
def test_another_language_model_over_the_same_pictures_answers_itself(
    what: str, run: Run, encoded: Path, tmp_path: Path
) -> None:
    _described(run, "--model", encoded)
    model = copy_of(encoded, tmp_path / "model")
    assert _described(run, "--model", model)["num_known"] == 4
    if what == "language weights":
        _change_language_weights(model)
    elif what == "chat template":
        (model / "chat_template.jinja").write_text("{{ 'Look: ' }}" + _template(model))
    else:
        edit(model, "config.json", lambda config: config.update(a_new_field=1))
    assert _described(run, "--model", model)["num_known"] == 0


def _template(model: Path) -> str:
    file = model / "chat_template.jinja"
    return file.read_text() if file.exists() else "{{ messages[0]['content'] }}"


def _change_language_weights(model: Path) -> None:
    """Change one number of the language model in place; the size of the file stays."""
    import mlx.core as mx

    weights: Any = mx.load(str(model / "model.safetensors"))
    name = next(key for key in sorted(weights) if "language_model" in key and key.endswith("norm.weight"))
    weights[name] = weights[name] * 1.01
    mx.save_safetensors(str(model / "model.safetensors"), weights, metadata={"format": "pt"})


def test_another_version_that_computes_asks_again(
    run: Run, encoded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _described(run, "--model", encoded)
    monkeypatch.setattr("seeonce.runs.plan.computed_by", lambda: "mlx 99")
    assert _described(run, "--model", encoded)["num_known"] == 0


def test_verify_cache_looks_no_answer_up(run: Run, encoded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _described(run, "--model", encoded)
    monkeypatch.setattr(AnswerCache, "find", lambda *_: pytest.fail("looked an answer up"))
    assert run("verify-cache latest --sample 1 --model", encoded).code == 0


def test_purging_a_recording_forgets_its_answers(run: Run, encoded: Path, home: Path) -> None:
    _described(run, "--model", encoded)
    (manifest,) = list_manifests(Home(home))
    assert run("seeonce store forget --purge", manifest.recording.id).code == 0
    with sqlite3.connect(_file(home)) as connection:
        assert connection.execute("SELECT count(*) FROM answers").fetchone() == (0,)
    connection.close()


def test_what_is_no_answer_is_not_taken_for_one() -> None:
    assert answer_from_json(answer_to_json(ANSWER)) == ANSWER
    assert answer_from_json('{"text": 7}') is None
    assert answer_from_json(answer_to_json(dataclasses.replace(ANSWER, text=""))) is None


def test_every_field_of_sampling_is_part_of_the_question() -> None:
    for field in dataclasses.fields(Sampling):
        value = getattr(REQUEST.sampling, field.name)
        changed = dataclasses.replace(REQUEST.sampling)
        object.__setattr__(changed, field.name, not value if isinstance(value, bool) else f"{value}?")
        other = dataclasses.replace(REQUEST, sampling=changed)
        assert request_digest(other, IDENTITY) != request_digest(REQUEST, IDENTITY), field.name


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "added.jinja", "vocab.txt", "chat_templates/a.jinja", "own.model"],
)
def test_a_file_of_the_checkpoint_that_changes_makes_another_model(
    name: str, plain: Path, home: Path, tmp_path: Path
) -> None:
    folder = find_checkpoint(str(copy_of(plain, tmp_path / "model")), lambda _: None)
    with PixelIndex(Home(home)) as index:
        before = model_id(folder, index)
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_bytes(b"something else")
        assert model_id(folder, index) != before


def test_a_checkpoint_is_read_once_and_again_when_it_was_touched(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "RACY_NS", 0)
    folder = find_checkpoint(str(copy_of(plain, tmp_path / "model")), lambda _: None)
    with PixelIndex(new_store(tmp_path).home) as index:
        before = model_id(folder, index)
        monkeypatch.setattr(answering, "_content_digest", lambda *_: "read again")
        assert model_id(folder, index) == before
        (folder.path / "config.json").touch()
        assert model_id(folder, index) == "read again"


def test_a_template_in_another_folder_is_another_model(plain: Path, home: Path, tmp_path: Path) -> None:
    folder = find_checkpoint(str(copy_of(plain, tmp_path / "model")), lambda _: None)
    (folder.path / "chat_templates").mkdir()
    (folder.path / "a.jinja").write_text("x")
    with PixelIndex(Home(home)) as index:
        before = model_id(folder, index)
        (folder.path / "a.jinja").rename(folder.path / "chat_templates" / "a.jinja")
        assert model_id(folder, index) != before
