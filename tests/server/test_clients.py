"""Real clients, each doing what its user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from tests.server.conftest import Served

QUESTION = "What is the capital of France?"
PARIS = "Paris"
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": [PARIS, "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


# OpenAI -------------------------------------------------------------------------------------------


@pytest.fixture
def openai_client(served: Served) -> Any:
    import openai

    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_openai_names_a_model_as_serve_was_told_it(
    openai_client: Any, served: Served, smollm2_bundle: Path
) -> None:
    answer = openai_client.chat.completions.create(
        model=str(smollm2_bundle), messages=asked(QUESTION), temperature=0
    )
    assert PARIS in answer.choices[0].message.content


def test_openai_lists_models(openai_client: Any, served: Served) -> None:
    assert [model.id for model in openai_client.models.list()] == [served.model]
    assert openai_client.models.retrieve(served.model).id == served.model


def test_openai_chats(openai_client: Any, served: Served) -> None:
    answer = openai_client.chat.completions.create(
        model=served.model, messages=asked(QUESTION), temperature=0, max_completion_tokens=30
    )
    assert PARIS in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_openai_streams(openai_client: Any, served: Served) -> None:
    chunks = list(
        openai_client.chat.completions.create(
            model=served.model,
            messages=asked(QUESTION),
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    whole = openai_client.chat.completions.create(
        model=served.model, messages=asked(QUESTION), temperature=0
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len([chunk for chunk in chunks if chunk.choices]) > 4  # piece by piece


def test_openai_stops_and_cuts(openai_client: Any, served: Served) -> None:
    settings = {"model": served.model, "messages": asked(QUESTION), "temperature": 0}
    stopped = openai_client.chat.completions.create(**settings, stop=[PARIS, "never"])
    assert PARIS not in stopped.choices[0].message.content
    assert stopped.choices[0].finish_reason == "stop"
    cut = openai_client.chat.completions.create(**settings, max_tokens=3)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 3)


def test_openai_gets_several_answers(openai_client: Any, served: Served) -> None:
    settings: dict[str, Any] = {
        "model": served.model, "messages": asked("Tell me a story."), "temperature": 1.5,
        "top_k": 50, "max_tokens": 8,
    }  # fmt: skip
    extra = {"extra_body": {"top_k": settings.pop("top_k")}}
    one, same = (
        openai_client.chat.completions.create(**settings, **extra, seed=3, n=3) for _ in range(2)
    )
    texts = [choice.message.content for choice in one.choices]
    assert texts == [choice.message.content for choice in same.choices]
    assert len(set(texts)) > 1
    assert [choice.index for choice in one.choices] == [0, 1, 2]


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_openai_forces_a_tool(openai_client: Any, served: Served, choice: Any) -> None:
    answer = openai_client.chat.completions.create(
        model=served.model,
        messages=asked("How is the weather in Paris?"),
        tools=[WEATHER],
        tool_choice=choice,
        temperature=0,
    )
    [call] = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert json.loads(call.function.arguments)["city"] in (PARIS, "Rome")
    # What the user's program does next.
    messages: list[Any] = [
        *asked("How is the weather in Paris?"),
        answer.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "Sunny."},
    ]
    assert (
        openai_client.chat.completions.create(model=served.model, messages=messages, max_tokens=8)
        .choices[0]
        .message.content
    )


def test_openai_streams_a_forced_tool(openai_client: Any, served: Served) -> None:
    stream = openai_client.chat.completions.create(
        model=served.model,
        messages=asked("How is the weather in Rome?"),
        tools=[WEATHER],
        tool_choice="required",
        temperature=0,
        stream=True,
    )
    calls = [
        call
        for chunk in stream
        for choice in chunk.choices
        for call in choice.delta.tool_calls or ()
    ]
    assert json.loads("".join(call.function.arguments for call in calls))["city"]


def test_openai_parses_a_schema(openai_client: Any, served: Served) -> None:
    answer = openai_client.chat.completions.parse(
        model=served.model,
        messages=asked("Name a person."),
        response_format=Person,
        temperature=0,
        max_tokens=60,
    )
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_openai_completes(openai_client: Any, served: Served) -> None:
    answer = openai_client.completions.create(
        model=served.model, prompt="The capital of France is", max_tokens=4, temperature=0
    )
    assert PARIS in answer.choices[0].text


def test_openai_responds(openai_client: Any, served: Served) -> None:
    answer = openai_client.responses.create(
        model=served.model, input=QUESTION, instructions="Answer briefly.", temperature=0
    )
    assert PARIS in answer.output_text
    with openai_client.responses.stream(
        model=served.model, input=QUESTION, instructions="Answer briefly.", temperature=0
    ) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text == answer.output_text
    tool = {"type": "function", **WEATHER["function"]}
    called = openai_client.responses.create(
        model=served.model, input="Weather?", tools=[tool], tool_choice="required"
    )
    assert json.loads(called.output[-1].arguments)["city"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_bias", {"1": 5}), ("logprobs", True), ("temperature", 5), ("top_p", -1),
        ("max_tokens", 0), ("max_tokens", 1.5), ("n", 99), ("seed", -1), ("stop", [1]),
        ("min_p", 0.1), ("tool_choice", "required"), ("response_format", {"type": "xml"}),
        ("audio", {}), ("messages", []), ("messages", [{"role": "king", "content": "x"}]),
        ("stream_options", {"include_usage": True}), ("made_up", 1),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_honoured_is_named(served: Served, field: str, value: Any) -> None:
    answer = served.chat(QUESTION, **{field: value})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert field in (error["param"] or "") or field in error["message"]


def test_a_prompt_that_is_too_long_says_how_long(served: Served) -> None:
    answer = served.chat("word " * 3000)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert "1280" in answer.json()["error"]["message"]


def test_embeddings_are_refused(openai_client: Any, served: Served) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="embeddings"):
        openai_client.embeddings.create(model=served.model, input="x")


# Ollama -------------------------------------------------------------------------------------------


@pytest.fixture
def ollama_client(served: Served) -> Any:
    import ollama

    return ollama.Client(served.url)


def test_ollama_knows_the_models(ollama_client: Any, served: Served) -> None:
    assert [model.model for model in ollama_client.list().models] == [served.model]
    shown = ollama_client.show(served.model)
    assert "completion" in shown.capabilities
    assert shown.modelinfo["llama.context_length"] == 1280


def test_ollama_chats(ollama_client: Any, served: Served) -> None:
    settings: dict[str, Any] = {
        "model": served.model, "messages": asked(QUESTION), "options": {"temperature": 0},
    }  # fmt: skip
    answer = ollama_client.chat(**settings)
    assert PARIS in answer.message.content
    assert (answer.done, answer.done_reason) == (True, "stop")
    assert answer.eval_count > 0
    parts = list(ollama_client.chat(**settings, stream=True))
    assert "".join(part.message.content for part in parts) == answer.message.content
    assert parts[-1].prompt_eval_count == answer.prompt_eval_count
    assert [model.model for model in ollama_client.ps().models] == [served.model]


def test_ollama_generates(ollama_client: Any, served: Served) -> None:
    raw = ollama_client.generate(
        served.model,
        prompt="The capital of France is",
        raw=True,
        options={"temperature": 0, "num_predict": 4},
    )
    assert PARIS in raw.response
    assert (
        PARIS
        in ollama_client.generate(
            f"{served.model}:latest", prompt=QUESTION, options={"temperature": 0}
        ).response
    )
    assert ollama_client.generate(served.model).done_reason == "load"


def test_ollama_keeps_to_a_schema(ollama_client: Any, served: Served) -> None:
    answer = ollama_client.chat(
        served.model,
        messages=asked("Name a person."),
        format=Person.model_json_schema(),
        options={"temperature": 0, "num_predict": 60},
    )
    assert Person.model_validate_json(answer.message.content)


def test_line_breaks_in_a_text_of_a_schema_are_escaped(ollama_client: Any, served: Served) -> None:
    answer = ollama_client.chat(
        served.model,
        messages=asked("Write a poem of four lines, with line breaks."),
        format={"type": "string", "minLength": 30, "maxLength": 160},
        options={"temperature": 0},
    )
    assert "\n" in json.loads(answer.message.content)


def test_ollama_is_told_of_errors(ollama_client: Any, served: Served) -> None:
    import ollama

    with pytest.raises(ollama.ResponseError, match="no model is called"):
        ollama_client.chat("nothing", messages=asked(QUESTION))
    with pytest.raises(ollama.ResponseError, match="mirostat"):
        ollama_client.chat(served.model, messages=asked(QUESTION), options={"mirostat": 2})
    with pytest.raises(ollama.ResponseError, match="embeddings"):
        ollama_client.embed(served.model, input="x")


# Others -------------------------------------------------------------------------------------------


def test_llm(served: Served, tmp_path: Path) -> None:
    """Simon Willison's command, with a model added as its manual says."""
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: ours\n  model_name: {served.model}\n  api_base: {served.url}/v1\n"
    )
    command = [sys.executable, "-m", "llm", "-m", "ours", "-o", "temperature", "0", QUESTION]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"},
    )
    assert PARIS in ended.stdout, ended.stderr


def test_langchain(served: Served) -> None:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(
        model=served.model,
        base_url=f"{served.url}/v1",
        api_key="none",
        temperature=0,
        max_retries=0,
    )
    assert PARIS in chat.invoke(QUESTION).content
    assert PARIS in "".join(str(part.content) for part in chat.stream(QUESTION))
    called = chat.bind_tools([WEATHER], tool_choice="get_weather").invoke("Weather in Rome?")
    assert called.tool_calls[0]["args"]["city"]


def test_npm_openai(served: Served, npm_openai: Path) -> None:
    program = Path(__file__).with_name("openai_client.mjs")
    command = ["node", program, npm_openai, served.url, served.model, QUESTION, json.dumps(WEATHER)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    got = json.loads(ended.stdout)
    assert got["models"] == [served.model]
    assert PARIS in got["whole"]
    assert "".join(got["pieces"]) == got["whole"] == got["assembled"]
    assert len(got["pieces"]) > 4  # piece by piece
    assert got["usage"]["completion_tokens"] > 4
    assert got["call"][0] == "get_weather"
    for arguments in (got["call"][1], got["parsed"]):
        assert arguments["city"] in (PARIS, "Rome")
    assert PARIS in got["response"]
    assert "nothing" in got["errors"][0]
    assert "logit_bias" in got["errors"][1]


def curl(served: Served, *options: str, **body: Any) -> str:
    """What curl writes to stdout."""
    settings = {"model": served.model, "messages": asked(QUESTION), "temperature": 0, **body}
    command = ["curl", "--silent", "--show-error", *options, f"{served.url}/v1/chat/completions"]
    command += ["-H", "Content-Type: application/json", "-d", json.dumps(settings)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_curl(served: Served) -> None:
    whole = json.loads(curl(served))["choices"][0]["message"]["content"]
    assert PARIS in whole
    *events, done, end = curl(served, "-N", stream=True).split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content", "") for delta in deltas) == whole
    schema = {"name": "person", "schema": Person.model_json_schema()}
    form = {"type": "json_schema", "json_schema": schema}
    held = json.loads(curl(served, response_format=form, max_tokens=60))
    assert Person.model_validate_json(held["choices"][0]["message"]["content"])
    called = json.loads(curl(served, tools=[WEATHER], tool_choice="required"))
    [call] = called["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["city"]


def test_curl_is_told_of_errors(served: Served) -> None:
    told = curl(served, "-w", "\n%{http_code}", model="nothing")
    body, status = told.rsplit("\n", 1)
    assert status == "404"
    assert json.loads(body)["error"]["code"] == "model_not_found"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        curl(served, "--fail", logprobs=True)
    assert "400" in caught.value.stderr
