"""The server speaks OpenAI's protocol: whole answers, streams, refusals, many clients at once."""
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from model import chat
from model.engine import Engine, SamplingParams
from model.serving import create_app


@pytest.fixture(scope="module")
def engine(toy) -> Engine:
    return Engine(*toy, max_slots=4, max_length=96)


@pytest.fixture(scope="module")
def client(engine):
    with TestClient(create_app(engine, "toy")) as client:
        yield client


ASK = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "seed": 4, "max_tokens": 12}


def expected(engine, budget=None, **changes) -> str:
    fresh = Engine(engine.lm, engine.tokenizer, max_slots=2, max_length=96)
    prompt = chat.encode_prompt(engine.tokenizer, ASK["messages"])
    return fresh.generate([prompt], SamplingParams(seed=4, max_tokens=12, thinking_budget=budget, **changes))[0].outputs[0].text


def test_whole_answer_is_the_engines(client, engine):
    data = client.post("/v1/chat/completions", json=ASK | {"thinking_token_budget": 3}).json()
    text = expected(engine, budget=3)
    message = data["choices"][0]["message"]
    if "</think>" in text:
        reasoning, _, content = text.partition("</think>")
        assert (message["reasoning_content"] or "", message["content"]) == (reasoning.strip(), content.strip())
    else:
        assert message["reasoning_content"] == text and message["content"] is None
    assert data["usage"]["completion_tokens"] <= 12 and data["model"] == "toy"


def read(response) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_stream_adds_up_to_the_whole(client):
    whole = client.post("/v1/completions", json={"prompt": "abc", "seed": 9, "max_tokens": 30, "n": 2}).json()["choices"]
    chunks = read(client.post("/v1/completions", json={"prompt": "abc", "seed": 9, "max_tokens": 30, "n": 2, "stream": True}))
    for choice in whole:
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(c["text"] for c in own) == choice["text"]
        assert [c["finish_reason"] for c in own][-1] == choice["finish_reason"] and all(c["finish_reason"] is None for c in own[:-1])


def test_streamed_thinking_and_content_are_apart(client, engine):
    body = ASK | {"thinking_token_budget": 0, "max_tokens": 20}
    message = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    chunks = [c["choices"][0]["delta"] for c in read(client.post("/v1/chat/completions", json=body | {"stream": True}))]
    assert "".join(c.get("content", "") for c in chunks).strip() == message["content"]
    assert "".join(c.get("reasoning_content", "") for c in chunks).strip() == (message["reasoning_content"] or "")
    assert message["content"]


def test_many_clients_get_what_they_would_get_alone(client):
    bodies = [{"prompt": f"p{i}", "seed": i, "max_tokens": 10 + i % 5} for i in range(24)]
    alone = [client.post("/v1/completions", json=b).json()["choices"][0]["text"] for b in bodies]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda b: client.post("/v1/completions", json=b).json()["choices"][0]["text"], bodies))
    assert together == alone


@pytest.mark.parametrize("path,body,message", [
    ("chat/completions", {}, "messages"), ("chat/completions", {"messages": []}, "messages"), ("chat/completions", {"messages": [{"role": "robot"}]}, "role"),
    ("chat/completions", ASK | {"temperature": -1}, "temperature"), ("completions", {"prompt": ""}, "empty"), ("completions", {"prompt": "x" * 200}, "no room"),
    ("completions", {"prompt": [99999]}, "outside"), ("completions", {"prompt": "a", "stop": ["a", ""]}, "stop"),
])
def test_malformed_requests_are_refused_with_400(client, path, body, message):
    answer = client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]
    assert client.post("/v1/completions", content=b"{not json").status_code == 400


def test_models_and_health(client):
    assert client.get("/v1/models").json()["data"][0]["id"] == "toy"
    assert client.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}


def test_a_failing_engine_tells_everybody(engine):
    broken = Engine(engine.lm, engine.tokenizer, max_slots=2, max_length=96)
    broken.scheduler.step = lambda: 1 / 0
    with TestClient(create_app(broken)) as client:
        for stream in (False, True):
            answer = client.post("/v1/completions", json={"prompt": "a", "stream": stream})
            assert (stream and "server_error" in answer.text) or answer.status_code == 503
        health = client.get("/health")
        assert health.status_code == 503 and "ZeroDivisionError" in health.json()["status"]
