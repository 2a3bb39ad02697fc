"""Responses, files and batches: what was answered survives a kill, and what cannot be done is said."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_mlx_vlm import Encoded, draw_noise
from served import Served, prepared, served

from cache.base.errors import InputError
from cache.base.home import Home
from cache.prefixes import prefix_cache_bytes
from infer.limits import BatchLimits
from seeonce.server.batch_run import Batch
from seeonce.server.options import ServeOptions

Json = dict[str, Any]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return draw_noise(tmp_path_factory.mktemp("images"), 2), tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def encoded(plain: Path, places: tuple[Path, Path]) -> Encoded:
    return prepared(plain, *places)


@pytest.fixture(scope="module")
def api(encoded: Encoded, places: tuple[Path, Path]) -> Iterator[Served]:
    options = ServeOptions(str(encoded.checkpoint.path), BatchLimits(4, 2, 64), max_open=64)
    with served(places[1], options) as found:
        yield found


def _events(api: Served, **fields: Any) -> list[Json]:
    lines = api.client.post("/v1/responses", json={"stream": True, **fields}).text.split("\n\n")
    named = [part.partition("\n") for part in lines if part.startswith("event: ")]
    events = [json.loads(data.removeprefix("data: ")) for _, _, data in named]
    assert [name.removeprefix("event: ") for name, _, _ in named] == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def test_a_response_is_what_the_chat_of_it_answers(api: Served, encoded: Encoded) -> None:
    url = f"seeonce:{encoded.manifest.recording.id}/1"
    asked = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "What?"}]
    body = {
        "input": [{"role": "user", "content": asked}],
        "instructions": "Be brief.",
        "max_output_tokens": 12,
    }
    found = api.client.post("/v1/responses", json=body).json()
    shown = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": shown}]
    chat = api.ask("", messages=messages).json()
    text = chat["choices"][0]["message"]["content"]
    assert found["output"][0]["content"][0]["text"] == text
    assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert found["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    events = _events(api, **body)
    assert "".join(event["delta"] for event in events if event["type"].endswith("text.delta")) == text
    assert events[-1]["response"]["output"][0]["content"] == found["output"][0]["content"]
    assert [event["type"] for event in events if not event["type"].endswith("delta")] == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added", "response.output_text.done", "response.content_part.done",
        "response.output_item.done", "response.incomplete",
    ]  # fmt: skip


def test_a_response_holds_to_its_schema_and_refuses_by_name(api: Served) -> None:
    schema: Json = {"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"]}
    schema |= {"additionalProperties": False}
    form = {"type": "json_schema", "name": "n", "schema": schema}
    body: Json = {"input": "n?", "text": {"format": form}, "top_logprobs": 1}
    found = api.client.post("/v1/responses", json=body).json()["output"][0]["content"][0]
    assert json.loads(found["text"])["n"] in (1, 22)
    assert found["logprobs"][0]["top_logprobs"]
    picture = {"type": "input_image", "image_url": "data:image/png;base64,@@"}
    odd = {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": 5}]}]}
    said = api.client.post("/v1/responses", json=odd).json()["error"]["message"]
    assert said.startswith("input.0.content.0.image_url: ")
    for fields, param in (
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"input": []}, "input"),
        ({"input": [{"role": "assistant", "content": "a"}]}, "input"),
        ({"input": [{"role": "user", "content": [picture]}]}, "input"),
        ({"text": {"format": form | {"schema": {"type": "x"}}}}, "text"),
    ):
        found = api.client.post("/v1/responses", json={"input": "Hello"} | fields)
        assert (found.status_code, found.json()["error"]["param"]) == (400, param), found.text
        assert found.json()["error"]["message"].startswith(param)


def _line(name: str, prompt: str, **fields: Any) -> Json:
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 6, **fields}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def _write(path: Path, lines: list[Json]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _read(text: str) -> dict[str, Json]:
    return {line["custom_id"]: line for line in map(json.loads, text.splitlines())}


def _sent(api: Served, lines: list[Json]) -> str:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    found = api.client.post("/v1/files", files={"file": ("in.jsonl", text)}, data={"purpose": "batch"})
    assert found.status_code == 200, found.text
    return str(found.json()["id"])


def _ended(api: Served, file_id: str) -> Json:
    asked = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    found = api.client.post("/v1/batches", json=asked).json()
    until_s = time.monotonic() + 60
    while found["status"] in ("validating", "in_progress", "finalizing"):
        assert time.monotonic() < until_s, found
        time.sleep(0.02)
        found = api.client.get(f"/v1/batches/{found['id']}").json()
    return dict(found)


def test_a_batch_leaves_its_answers_and_its_errors_in_files(api: Served) -> None:
    lines = [
        _line("a", "One"),
        _line("b", "Two", tools=[{}]),
        _line("c", "Three"),
        _line("d", "x", stream=True),
    ]
    found = _ended(api, _sent(api, lines))
    assert found["status"] == "completed"
    assert found["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
    answers = _read(api.client.get(f"/v1/files/{found['output_file_id']}/content").text)
    errors = _read(api.client.get(f"/v1/files/{found['error_file_id']}/content").text)
    said = answers["a"]["response"]["body"]["choices"][0]["message"]["content"]
    assert said == api.text("One", max_tokens=6)
    assert set(answers) == {"a", "c"}
    assert errors["b"]["response"]["body"]["error"]["param"] == "tools"
    assert errors["d"]["response"]["status_code"] == 400
    files = api.client.get("/v1/files", params={"purpose": "batch_output"}).json()["data"]
    assert {found["output_file_id"], found["error_file_id"]} <= {file["id"] for file in files}
    assert api.client.get("/v1/batches").json()["data"][0]["id"] == found["id"]
    assert api.client.delete(f"/v1/files/{found['output_file_id']}").json()["deleted"]
    assert api.client.get(f"/v1/files/{found['output_file_id']}").status_code == 404


def test_a_batch_that_cannot_be_read_is_failed_with_its_line(api: Served) -> None:
    for second in (_line("a", "x"), _line("b", "x") | {"url": "/v1/models"}, {"custom_id": "b"}):
        found = _ended(api, _sent(api, [_line("a", "One"), second]))
        assert (found["status"], found["errors"]["data"][0]["line"]) == ("failed", 2)
    for body in ({"input_file_id": "file-1"}, {"completion_window": "1h"}, {"endpoint": "/v1/embeddings"}):
        asked = {"input_file_id": "x", "endpoint": "/v1/responses", "completion_window": "24h"} | body
        assert api.client.post("/v1/batches", json=asked).status_code in (400, 404)
    upload = {"file": ("a", "x")}
    assert (
        api.client.post("/v1/files", files=upload, data={"purpose": "vision"}).json()["error"]["param"]
        == "purpose"
    )
    assert api.client.get("/v1/files/..%2Fbatches").status_code == 404
    assert api.client.get("/v1/batches?limit=x").json()["error"]["param"] == "limit"


def test_a_batch_that_is_cancelled_ends(api: Served) -> None:
    file_id = _sent(api, [_line(str(n), "Go on", max_tokens=100_000) for n in range(3)])
    asked = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    found = api.client.post("/v1/batches", json=asked).json()
    while not api.metric("in_flight"):
        time.sleep(0.01)
    assert api.client.post(f"/v1/batches/{found['id']}/cancel").json()["status"] in (
        "cancelling",
        "cancelled",
    )
    api.wait_until_idle()
    while (now := api.client.get(f"/v1/batches/{found['id']}").json())["status"] == "cancelling":
        time.sleep(0.01)
    assert now["status"] == "cancelled"
    assert api.client.post(f"/v1/batches/{found['id']}/cancel").status_code == 409


async def _same(_: str | None) -> str:
    return "a model"


def test_what_was_answered_before_a_kill_is_not_asked_again(api: Served, tmp_path: Path) -> None:
    lines = [_line(str(number), f"Number {number}") for number in range(5)]
    source = _write(tmp_path / "in.jsonl", lines)
    output, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    asyncio.run(Batch(source, output, errors).run(api.server.paths, _same, 2))
    whole = _read(output.read_text())
    kept = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(kept[:3]) + kept[3][:40])  # killed in the middle of a line
    lines[int(json.loads(kept[0])["custom_id"])]["body"]["max_tokens"] = 3  # asked in another way
    before = api.metric("completion_tokens_total")
    batch = Batch(_write(source, lines), output, errors)
    asyncio.run(batch.run(api.server.paths, _same, 2))
    assert (batch.known, batch.completed, batch.total) == (2, 5, 5)
    assert api.metric("completion_tokens_total") == before + 3 + 6 + 6
    found = _read(output.read_text())
    changed = json.loads(kept[0])["custom_id"]
    said = {name: line["response"]["body"]["choices"] for name, line in found.items() if name != changed}
    assert said == {name: whole[name]["response"]["body"]["choices"] for name in said}

    async def other(_: str | None) -> str:
        return "other weights"

    batch = Batch(source, output, errors)
    asyncio.run(batch.run(api.server.paths, other, 2))
    assert batch.known == 0


def test_a_batch_goes_on_when_the_server_starts_again(encoded: Encoded, places: tuple[Path, Path]) -> None:
    options = ServeOptions(str(encoded.checkpoint.path), BatchLimits(1, 1, 64))
    with served(places[1], options) as found:
        prompts = [_line(str(number), f"Say {number}", max_tokens=20) for number in range(8)]
        asked = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = found.client.post("/v1/batches", json=asked | {"input_file_id": _sent(found, prompts)}).json()
        while not found.metric("completion_tokens_total"):
            time.sleep(0.01)
    path = places[1] / "batches" / batch["id"]
    num_before = len((path / "output.jsonl").read_text().splitlines())
    assert json.loads((path / "batch.json").read_text())["status"] == "in_progress"
    assert 0 < num_before < 8
    with served(places[1], options) as found:
        while (now := found.client.get(f"/v1/batches/{batch['id']}").json())["status"] != "completed":
            assert now["status"] in ("in_progress", "finalizing"), now
            time.sleep(0.02)
        assert now["request_counts"] == {"total": 8, "completed": 8, "failed": 0}
        assert found.metric("completion_tokens_total") == 20 * (8 - num_before)


def test_a_batch_whose_object_is_damaged_keeps_no_server_from_starting(
    encoded: Encoded, places: tuple[Path, Path]
) -> None:
    (folder := places[1] / "batches" / f"batch_{'0' * 24}").mkdir(parents=True)
    (folder / "batch.json").write_bytes(b"")  # as a power loss leaves it
    with served(places[1], ServeOptions(str(encoded.checkpoint.path), BatchLimits(1, 1, 64))) as found:
        assert folder.name not in found.client.get("/v1/batches").text


def test_two_batches_do_not_write_one_file(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = _write(tmp_path / "in.jsonl", [_line("a", "One")]), tmp_path / "out.jsonl"
    seen: list[str] = []

    class Running:
        """A server that is asked for while the first batch has written its file anew."""

        def __init__(self, *_: object) -> None:
            if not seen:
                seen.append("")
                output.write_bytes(b"")
                output.with_suffix(".new").write_bytes(b"")
                output.with_suffix(".new").replace(output)
                seen.append(run("seeonce run-batch", source, output).err)
            raise InputError("far enough")

    monkeypatch.setattr("seeonce.server.app.Server", Running)
    run("seeonce run-batch", source, output)
    assert "is being written by another batch" in seen[1]


def test_run_batch_says_what_stands_in_its_way(run: Any, tmp_path: Path) -> None:
    source = _write(tmp_path / "in.jsonl", [_line("a", "One")])
    other = tmp_path / "mine.txt"
    other.write_text("my notes")
    for arguments, problem in (
        ((tmp_path / "none.jsonl", tmp_path / "out.jsonl"), "no such file"),
        ((source, source), "one file"),
        ((source, other), "no answers of a batch"),
    ):
        done = run("seeonce run-batch", *arguments)
        assert done.code == 1
        assert problem in done.err
    assert other.read_text() == "my notes"


@pytest.mark.parametrize(
    ("words", "size"), [(("--prefix-cache", "2GB"), "2GB"), ((), "3GB"), (("--prefix-cache", 0), "0")]
)
def test_run_batch_keeps_prefixes_as_it_is_told(
    words: tuple[object, ...], size: str, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[ServeOptions] = []

    def started(_home: Home, options: ServeOptions, _say: object) -> None:
        told.append(options)
        raise InputError("far enough")

    monkeypatch.setenv("SEEONCE_PREFIX_CACHE", "3GB")
    monkeypatch.setattr("seeonce.server.app.Server", started)
    source = _write(tmp_path / "in.jsonl", [_line("a", "One")])
    assert "far enough" in run("seeonce run-batch", source, tmp_path / "out.jsonl", *words).err
    assert [options.prefix_cache for options in told] == [prefix_cache_bytes(size)]


def test_a_batch_of_nothing_is_refused(tmp_path: Path) -> None:
    source = _write(tmp_path / "in.jsonl", [])
    batch = Batch(source, tmp_path / "out.jsonl", tmp_path / "errors.jsonl")
    with pytest.raises(InputError, match="no request"):
        asyncio.run(batch.run(_same, _same, 1))  # type: ignore[arg-type]
