"""Clients as people run them, and a server of the demo: OpenAI's SDK, LangChain, llm, Open WebUI's requests.

Installed for this campaign alone: ``pip install openai langchain-openai llm``. A client that is not there is
skipped by name.
"""

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from served import Served, served

import seeonce.demo
from cache.base.home import Home
from infer.canary import Verdict, combination, remember
from infer.limits import BatchLimits
from seeonce.server.options import ServeOptions

pytestmark = pytest.mark.campaign

PICTURE = sorted((Path(seeonce.demo.__file__).parent / "recording").glob("*.png"))[3]
URL = f"data:image/png;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
IMAGE = {"type": "image_url", "image_url": {"url": URL}}
WORDS = {"type": "text", "text": "Describe this screen."}
ASK: list[Any] = [{"role": "user", "content": [IMAGE, WORDS]}]


class Screen(BaseModel):
    """A form that the demo's small model can fill."""

    app: Literal["mail", "chat", "editor"]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = Home(tmp_path_factory.mktemp("home"))
    home.prepare()
    remember(home, combination(), Verdict.batched)
    with served(home.path, ServeOptions("demo", BatchLimits(8))) as found:
        yield found


@pytest.fixture(scope="module")
def base(api: Served) -> str:
    return f"http://127.0.0.1:{api.port}/v1"


@pytest.fixture(scope="module")
def said(api: Served) -> str:
    return api.text(ASK[0]["content"], max_tokens=60)


@pytest.fixture
def client(base: str) -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=base, api_key="any", max_retries=0)


def test_openai_chat_whole_and_streamed(client: Any, said: str) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    asked = {"model": "demo", "messages": ASK, "max_tokens": 60}
    assert client.chat.completions.create(**asked).choices[0].message.content == said
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        for _ in stream:
            pass
        found = stream.get_final_completion()
    assert (found.choices[0].message.content, found.usage.completion_tokens > 0) == (said, True)


def test_openai_structured_output(client: Any) -> None:
    asked = {"model": "demo", "messages": ASK, "response_format": Screen}
    parsed = client.chat.completions.parse(**asked).choices[0].message.parsed
    with client.chat.completions.stream(**asked) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.parsed == parsed
    assert isinstance(parsed, Screen)


def test_openai_choices_stops_and_log_probabilities(client: Any, said: str) -> None:
    asked = {"model": "demo", "messages": ASK, "max_tokens": 8}
    drawn = client.chat.completions.create(**asked, n=3, temperature=1.5, seed=4)
    assert [choice.index for choice in drawn.choices] == [0, 1, 2]
    stopped = client.chat.completions.create(model="demo", messages=ASK, stop=["|"]).choices[0]
    assert (stopped.finish_reason, stopped.message.content) == ("stop", said.partition("|")[0].strip())
    noted = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3).choices[0].logprobs
    assert [len(token.top_logprobs) for token in noted.content] == [3] * 8
    text = client.completions.create(model="demo", prompt="description:", max_tokens=5, logprobs=2)
    assert len(text.choices[0].logprobs.tokens) == 5


def test_openai_many_at_once(base: str, said: str) -> None:
    openai = pytest.importorskip("openai")

    async def ask() -> set[str]:
        async with openai.AsyncOpenAI(base_url=base, api_key="any", max_retries=0) as client:
            asked = {"model": "demo", "messages": ASK, "max_tokens": 60}
            found = await asyncio.gather(*(client.chat.completions.create(**asked) for _ in range(16)))
            stream = await client.chat.completions.create(**asked, stream=True)
            streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        return {streamed, *(one.choices[0].message.content for one in found)}

    assert asyncio.run(ask()) == {said}


def test_openai_responses(client: Any, said: str) -> None:
    content = [
        {"type": "input_image", "image_url": URL, "detail": "auto"},
        {"type": "input_text", "text": WORDS["text"]},
    ]
    asked: dict[str, Any] = {"model": "demo", "input": [{"role": "user", "content": content}]}
    first = client.responses.create(**asked)
    assert first.output_text == said
    with client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == said
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert isinstance(client.responses.parse(**asked, text_format=Screen).output_parsed, Screen)
    more = [*asked["input"], *first.output, {"role": "user", "content": "And now?"}]
    assert client.responses.create(model="demo", input=more).status == "completed"


def test_openai_errors(client: Any) -> None:
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="another", messages=ASK)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="demo", messages=ASK, presence_penalty=1)
    assert refused.value.param == "presence_penalty"


def test_openai_batches(client: Any, said: str) -> None:
    body = {"model": "demo", "messages": ASK, "max_tokens": 60}
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body | more}
        for name, more in (("a", {}), ("bad", {"max_tokens": -1}))
    ]
    sent = BytesIO("\n".join(map(json.dumps, lines)).encode())
    file = client.files.create(file=("in.jsonl", sent), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while batch.status not in ("completed", "failed"):
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    answer = json.loads(client.files.content(batch.output_file_id).text)
    assert answer["response"]["body"]["choices"][0]["message"]["content"] == said
    assert json.loads(client.files.content(batch.error_file_id).text)["custom_id"] == "bad"


def test_langchain(base: str, said: str) -> None:
    langchain = pytest.importorskip("langchain_openai")
    messages = pytest.importorskip("langchain_core.messages")
    data = URL.partition(",")[2]
    shown = [
        IMAGE,
        {"type": "image", "base64": data, "mime_type": "image/png"},
        {"type": "image", "source_type": "base64", "data": data, "mime_type": "image/png"},
    ]
    asks = [[messages.HumanMessage([image, WORDS])] for image in shown]
    model = langchain.ChatOpenAI(model="demo", base_url=base, api_key="any", max_retries=0, max_tokens=60)
    assert {found.content for found in model.batch(asks)} == {said}
    chunks = list(model.stream(asks[0], stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == said
    assert any(chunk.usage_metadata for chunk in chunks)
    assert isinstance(model.with_structured_output(Screen).invoke(asks[0]), Screen)
    told = model.bind(logprobs=True, top_logprobs=2).invoke(asks[0]).response_metadata["logprobs"]
    assert told["content"]
    history = [messages.SystemMessage("Be brief."), *asks[0], messages.AIMessage(said), *asks[1]]
    assert model.invoke(history).content
    responses = langchain.ChatOpenAI(
        model="demo", base_url=base, api_key="any", max_retries=0, use_responses_api=True
    )
    assert responses.invoke(asks[0]).text == said
    assert "".join(str(chunk.text) for chunk in responses.stream(asks[1])) == said
    assert isinstance(responses.with_structured_output(Screen).invoke(asks[0]), Screen)


def test_llm(base: str, said: str, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    model: dict[str, Any] = {
        "model_id": "seeonce",
        "model_name": "demo",
        "api_base": base,
        "api_key_name": "seeonce",
    }
    model |= {"vision": True, "supports_schema": True}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))
    (tmp_path / "keys.json").write_text('{"seeonce": "any"}')

    def llm(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm", *arguments], capture_output=True, text=True, check=False,
            env=os.environ | {"LLM_USER_PATH": str(tmp_path)}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    asked = ("-m", "seeonce", WORDS["text"], "-a", str(PICTURE))
    assert llm(*asked) == llm(*asked, "--no-stream") == said
    assert llm(*asked, "-o", "temperature", "0.5", "-o", "seed", "3", "-s", "Be brief.")
    assert llm("-c", "And now?")
    schema = Screen.model_json_schema() | {"additionalProperties": False}
    assert Screen.model_validate_json(llm(*asked, "--schema", json.dumps(schema)))


def test_requests_as_open_webui_sends_them(api: Served, said: str) -> None:
    """A chat with its model's parameters, the tasks after it, and the next question with its history."""
    usual = {"model": "demo", "stream": True, "stream_options": {"include_usage": True}}
    params = {"temperature": 0.0, "top_p": 0.9, "min_p": 0.0, "seed": 3, "stop": ["\n\n\n"], "max_tokens": 60}
    params |= {"frequency_penalty": 0.0, "presence_penalty": 0.0}
    first = [{"role": "system", "content": "Today is Friday."}, {"role": "user", "content": [WORDS, IMAGE]}]
    title = '### Task:\nGenerate a title. JSON format: {"title": "…"}\n'
    task = {"role": "user", "content": title + said}
    later = [*first, {"role": "assistant", "content": said}, {"role": "user", "content": "And now?"}]
    for body in (
        usual | params | {"messages": first},
        {"model": "demo", "messages": [task], "stream": False, "max_completion_tokens": 1000},
        {"model": "demo", "messages": [task], "stream": False, "max_tokens": 50},
        usual | {"messages": later},
    ):
        headers = {"X-OpenWebUI-User-Name": "a", "Authorization": "Bearer none"}
        found = api.client.post("/v1/chat/completions", json=body, headers=headers)
        assert found.status_code == 200, found.text
        if body["stream"]:
            chunks = found.text.split("\n\n")
            assert json.loads(chunks[-3].removeprefix("data: "))["usage"]["total_tokens"]
            assert chunks[-2:] == ["data: [DONE]", ""]
    assert api.client.get("/v1/models", headers=headers).json()["data"][0]["id"] == "demo"
