"""The server over real sockets, with the official client: streams, crowds, clients that leave, too many of them, and a server told to stop."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
import uvicorn

from model.engine import Engine, SamplingParams
from model.engine.stream import UNFINISHED
from model.serving import Limits, create_app
from model.serving.logprobs import TokenNames

openai = pytest.importorskip("openai")
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def served(toy, *, slots=64, length=96, limits=None, key=None):
    """A server on a port of its own, in a thread; gives its engine and address."""
    engine = Engine(*toy, max_slots=slots, max_length=length)
    server = uvicorn.Server(uvicorn.Config(create_app(engine, "toy", limits=limits, key=key), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield engine, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def until(ready, seconds=30):
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def client(address, **changes):
    return openai.OpenAI(base_url=f"{address}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 60} | changes)


def async_client(address, **changes):
    return openai.AsyncOpenAI(base_url=f"{address}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 60} | changes)


@pytest.fixture(scope="module")
def server(toy):
    with served(toy) as running:
        yield running


def alone(toy, prompt, **params):
    return Engine(*toy, max_slots=1, max_length=96).generate([prompt], SamplingParams(**params))[0].outputs[0]


ASK = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "seed": 4, "max_tokens": 40}


def test_a_chat_and_its_stream_say_the_same(server):
    talk = client(server[1]).chat.completions
    for budget in (0, 5):
        whole = talk.create(**ASK, extra_body={"thinking_budget": budget})
        chunks = list(talk.create(**ASK, extra_body={"thinking_budget": budget}, stream=True, stream_options={"include_usage": True}))
        deltas = [chunk.choices[0] for chunk in chunks[:-1]]
        message = whole.choices[0].message
        assert "".join(d.delta.content or "" for d in deltas) == message.content
        assert "".join(getattr(d.delta, "reasoning_content", "") or "" for d in deltas) == (message.reasoning_content or "")
        assert deltas[0].delta.role == "assistant" and deltas[-1].finish_reason == whole.choices[0].finish_reason
        assert chunks[-1].usage == whole.usage and not chunks[-1].choices
        assert message.content and "</think>" not in message.content


def test_logprobs_are_the_engines(server, toy):
    texts = server[0].token_texts
    answer = client(server[1]).completions.create(model="toy", prompt="abc", seed=9, max_tokens=20, logprobs=3).choices[0]
    expected = alone(toy, "abc", seed=9, max_tokens=20, logprobs=True, top_logprobs=3)
    shown = answer.logprobs
    assert shown.token_logprobs == pytest.approx(expected.logprobs, abs=1e-4) and answer.text == expected.text
    assert shown.tokens == [texts[token] for token in expected.token_ids]
    for i, offset in enumerate(shown.text_offset):
        before = toy[1].decode(expected.token_ids[:i], skip_special_tokens=False)
        assert offset == len(before) or before.endswith(UNFINISHED)
    for found, top, token, value in zip(shown.top_logprobs, expected.top_logprobs, expected.token_ids, expected.logprobs, strict=True):
        assert found == pytest.approx({texts[other]: other_value for other, other_value in reversed([*top, (token, value)])}, abs=1e-4)
    talk = client(server[1]).chat.completions
    whole = talk.create(**ASK, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    chunks = talk.create(**ASK, logprobs=True, top_logprobs=2, stream=True)
    assert whole == [entry for chunk in chunks for entry in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])] and len(whole) > 10
    for entry in whole:
        first, second = entry.top_logprobs
        assert first.logprob >= second.logprob and entry.logprob <= first.logprob + 1e-5
        assert all(bytes(e.bytes).decode(errors="replace") == e.token for e in (entry, first, second))
    assert {bytes([byte]) for byte in range(128, 256)} <= set(TokenNames(toy[1], texts).bytes), "a token that is a part of a character has its bytes"
    assert not talk.create(**ASK, logprobs=True).choices[0].logprobs.content[0].top_logprobs


@pytest.mark.parametrize("prompts", [["abc", "d", "abc"], [[20, 30], [40]], [[50]], ["one"]])
def test_several_prompts_are_each_what_they_are_alone(server, toy, prompts):
    talk, asked = client(server[1]).completions, dict(model="toy", prompt=prompts, seed=3, max_tokens=12, n=2)
    whole = talk.create(**asked)
    wanted = [output.text for prompt in prompts for output in Engine(*toy, max_slots=2, max_length=96).generate([prompt], SamplingParams(seed=3, max_tokens=12, n=2))[0].outputs]
    assert [choice.text for choice in whole.choices] == wanted and [choice.index for choice in whole.choices] == list(range(2 * len(prompts)))
    streamed = [""] * len(wanted)
    for chunk in talk.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == wanted
    assert whole.usage.prompt_tokens == sum(map(len, prompts))  # the toy's tokens are bytes
    echoed = [prompt if isinstance(prompt, str) else toy[1].decode(prompt) for prompt in prompts for _ in range(2)]
    assert [choice.text for choice in talk.create(**asked, echo=True).choices] == [prompt + text for prompt, text in zip(echoed, wanted)]
    assert "".join(chunk.choices[0].text for chunk in talk.create(**asked | {"n": 1}, echo=True, stream=True) if chunk.choices[0].index == 0).startswith(echoed[0])


@pytest.mark.parametrize("prompts", ["naïve 😀!", ["abc", "d", "abc"], [[20, 30, 250], [40]], [50, 51]])
@pytest.mark.parametrize("new, n", [(0, 1), (1, 1), (6, 2)])
def test_prompts_are_scored(server, toy, prompts, new, n):
    """echo, logprobs: what perplexity scripts send."""
    lm, tokenizer = toy
    talk, asked = client(server[1]).completions, dict(model="toy", prompt=prompts, max_tokens=new, seed=1, n=n, echo=True, logprobs=2, extra_body={"ignore_eos": True})
    whole, plain = talk.create(**asked), talk.create(**asked | {"logprobs": None})
    several = prompts if isinstance(prompts, list) and not isinstance(prompts[0], int) else [prompts]
    assert whole.usage.completion_tokens == new * n * len(several) and [choice.text for choice in whole.choices] == [choice.text for choice in plain.choices]
    for i, choice in enumerate(whole.choices):
        given, shown = several[i // n], choice.logprobs
        ids = tokenizer.encode(given).ids if isinstance(given, str) else given
        assert choice.text.startswith(tokenizer.decode(ids)) and choice.finish_reason == "length"
        assert len(shown.tokens) == len(shown.token_logprobs) == len(shown.top_logprobs) == len(shown.text_offset) == len(ids) + new
        assert shown.tokens[:len(ids)] == [server[0].token_texts[token] for token in ids] and shown.token_logprobs[0] is None and shown.top_logprobs[0] is None
        with torch.no_grad():
            reference = lm(torch.tensor([ids]))[0, :-1].log_softmax(-1)
        assert shown.token_logprobs[1:len(ids)] == pytest.approx(reference[range(len(ids) - 1), ids[1:]].tolist(), abs=1e-4)
        assert [max(top.values()) for top in shown.top_logprobs[1:len(ids)]] == pytest.approx(reference.max(-1).values.tolist(), abs=1e-4)
        if new:
            alone = talk.create(**asked | {"prompt": ids, "echo": False}).choices[i % n]
            assert shown.token_logprobs[len(ids):] == alone.logprobs.token_logprobs and choice.text.endswith(alone.text)
    streamed = [{"text": "", "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []} for _ in whole.choices]
    for chunk in talk.create(**asked, stream=True):
        (choice,) = chunk.choices
        streamed[choice.index]["text"] += choice.text
        for name, values in (choice.logprobs.model_dump() if choice.logprobs else {}).items():
            streamed[choice.index][name] += values
    assert streamed == [{"text": choice.text} | choice.logprobs.model_dump() for choice in whole.choices]


def test_offsets_are_those_of_the_text(server):
    text = "naïve 😀!"
    shown = client(server[1]).completions.create(model="toy", prompt=text, max_tokens=0, echo=True, logprobs=0).choices[0].logprobs
    wanted = [at for at, character in enumerate(text) for _ in character.encode()]  # the toy's tokens are bytes
    assert shown.text_offset == wanted and all(len(top) == 1 for top in shown.top_logprobs[1:])


def test_one_bad_prompt_refuses_them_all(server):
    with pytest.raises(openai.BadRequestError, match="empty"):
        client(server[1]).completions.create(model="toy", prompt=["abc", "", "d"], max_tokens=5)
    until(lambda: httpx.get(f"{server[1]}/health").json() == {"status": "ok", "running": 0, "waiting": 0})
    assert client(server[1]).completions.create(model="toy", prompt="abc", max_tokens=5).choices


@pytest.mark.parametrize("path, field, value, harmless", [
    ("completions", "frequency_penalty", 2.5, 0), ("completions", "logit_bias", {"5": 300}, {}), ("completions", "suffix", "x", ""), ("completions", "best_of", 3, 1),
    ("completions", "min_p", 1.1, None), ("completions", "min_tokens", 3, 2), ("completions", "echo", "perhaps", None), ("completions", "return_token_ids", True, False),
    ("completions", "truncate_prompt_tokens", 5, None), ("completions", "structured_outputs", {"grammar": "x"}, {"choice": ["a"]}), ("chat/completions", "echo", True, False),
    ("completions", "allowed_token_ids", [999], [20]), ("chat/completions", "continue_final_message", True, False), ("chat/completions", "n", 0, None), ("chat/completions", "functions", [{"name": "f"}], []), ("chat/completions", "modalities", ["audio"], ["text"]),
    ("chat/completions", "reasoning_effort", "low", "high"), ("chat/completions", "verbosity", "low", "medium"), ("chat/completions", "web_search_options", {}, None),
    ("chat/completions", "user", {"of": "no consequence"}, "me"), ("chat/completions", "stream_options", {"include_usage": True}, None), ("chat/completions", "top_logprobs", 2, 0),
])
def test_what_would_change_the_answer_is_done_or_refused(server, path, field, value, harmless):
    def status(given):
        body = {"prompt": "a", "max_tokens": 2} if path == "completions" else {"messages": ASK["messages"], "max_tokens": 2}
        return httpx.post(f"{server[1]}/v1/{path}", json=body | {field: given})

    assert status(harmless).status_code == 200
    refused = status(value)
    assert refused.status_code == (200 if field == "user" else 400) and (field == "user" or field in refused.json()["error"]["message"])


def test_structured_output_matches_its_schema(server):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "y"]}}, "required": ["a", "b"], "additionalProperties": False}
    talk = client(server[1]).chat.completions
    asked = ASK | {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}}
    found = json.loads(talk.create(**asked).choices[0].message.content)
    assert isinstance(found["a"], bool) and found["b"] in "xy" and len(found) == 2
    for wrong in ({"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}},
                  {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "nothing"}}}}):
        with pytest.raises(openai.BadRequestError):
            talk.create(**asked | wrong)


def test_stop_strings_never_show_in_a_stream(server, toy):
    seed, text = next((seed, text) for seed in range(100) if len(text := alone(toy, "abc", seed=seed, max_tokens=60).text) > 20 and text[6:9].isascii())
    stop = text[6:9]
    chunks = list(client(server[1]).completions.create(model="toy", prompt="abc", seed=seed, max_tokens=60, stop=[stop], stream=True))
    assert "".join(c.choices[0].text for c in chunks) == text[:text.index(stop)] and chunks[-1].choices[0].finish_reason == "stop"


def test_64_streams_at_once_are_each_what_they_are_alone(server, toy):
    async def one(talk, i):
        chunks = await talk.completions.create(model="toy", prompt=f"p{i}", seed=i, max_tokens=10 + i % 30, stream=True)
        return "".join([chunk.choices[0].text async for chunk in chunks])

    async def crowd():
        async with async_client(server[1]) as talk:
            return await asyncio.gather(*[one(talk, i) for i in range(64)])

    together = asyncio.run(crowd())
    engine = Engine(*toy, max_slots=1, max_length=96)
    for i in range(0, 64, 5):
        assert together[i] == engine.generate([f"p{i}"], [SamplingParams(seed=i, max_tokens=10 + i % 30)])[0].outputs[0].text


def test_clients_that_leave_free_their_slots(toy):
    with served(toy, slots=2, length=60_000) as (engine, address):
        endless = {"model": "toy", "prompt": "a", "max_tokens": 50_000, "ignore_eos": True, "temperature": 1.0}
        with pytest.raises(httpx.ReadTimeout):  # waits for the whole answer, and gives up
            httpx.post(f"{address}/v1/completions", json=endless, timeout=0.5)
        for _ in range(2):  # leave in the middle of a stream
            with httpx.stream("POST", f"{address}/v1/completions", json=endless | {"stream": True}) as reply:
                assert next(reply.iter_lines()).startswith("data: ")
        until(lambda: httpx.get(f"{address}/health").json() == {"status": "ok", "running": 0, "waiting": 0})
        assert not engine.busy
        assert client(address).completions.create(model="toy", prompt="b", max_tokens=5).usage.completion_tokens <= 5
        assert "gristmill_cancelled_requests_total 3.0" in httpx.get(f"{address}/metrics").text


def test_overload_is_429_and_nothing_is_lost(toy):
    with served(toy, slots=2, limits=Limits(queue=6)) as (engine, address):
        async def one(talk, i):
            try:
                done = await talk.completions.create(model="toy", prompt=f"p{i}", seed=i, max_tokens=60, extra_body={"ignore_eos": True})
                return done.choices[0].text
            except openai.RateLimitError as error:
                assert int(error.response.headers["retry-after"]) >= 1 and error.body["type"] == "rate_limit_error"
                return None

        async def crowd():
            async with async_client(address) as talk:
                return await asyncio.gather(*[one(talk, i) for i in range(40)])

        answers = asyncio.run(crowd())
        refused = answers.count(None)
        assert 8 <= 40 - refused < 40
        fresh = Engine(*toy, max_slots=1, max_length=96)
        first = next(i for i, answer in enumerate(answers) if answer is not None)
        assert answers[first] == fresh.generate([f"p{first}"], [SamplingParams(seed=first, max_tokens=60, ignore_eos=True)])[0].outputs[0].text
        page = httpx.get(f"{address}/metrics").text
        assert f'gristmill_http_responses_total{{route="/v1/completions",status="429"}} {refused}.0' in page
        assert f'gristmill_http_responses_total{{route="/v1/completions",status="200"}} {40 - refused}.0' in page
        assert f"gristmill_generated_tokens_total {60 * (40 - refused)}.0" in page
        with pytest.raises(openai.BadRequestError, match="n is at most 8"):
            client(address).completions.create(model="toy", prompt="a", n=9)


def test_keys_models_and_sizes_are_checked(toy):
    with served(toy, key="secret", limits=Limits(body_bytes=2000, tokens=50)) as (_, address):
        with pytest.raises(openai.AuthenticationError):
            client(address).models.list()
        own = client(address, api_key="secret")
        assert own.models.list().data[0].id == "toy"
        with pytest.raises(openai.NotFoundError, match="no model 'other'"):
            own.completions.create(model="other", prompt="a")
        with pytest.raises(openai.BadRequestError, match="at most 50"):
            own.completions.create(model="toy", prompt="a", max_tokens=51)
        assert own.chat.completions.create(messages=ASK["messages"], model="toy", extra_body={"ignore_eos": True}).usage.completion_tokens == 50
        assert own.completions.create(model="toy", prompt="a", extra_body={"ignore_eos": True}).usage.completion_tokens == 16
        with pytest.raises(openai.APIStatusError) as large:
            own.completions.create(model="toy", prompt="a" * 3000)
        assert large.value.status_code == 413
        piecewise = httpx.post(f"{address}/v1/completions", content=iter([b" " * 1500] * 2), headers={"Authorization": "Bearer secret"})
        assert piecewise.status_code == 413 and piecewise.json()["error"]["message"] == "the body exceeds 2000 bytes"
        assert httpx.get(f"{address}/health").status_code == 200 and httpx.get(f"{address}/metrics").status_code == 200


MALFORMED = [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"prompt": "\\ud800"}', b'{"prompt": 5}', b'{"prompt": []}', b'{"prompt": [1e400]}', b'{"prompt": [99999999999999999999]}',
    b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "temperature": Infinity}', b'{"prompt": "a", "n": 0}', b'{"prompt": "a", "n": true, "seed": 1e99}',
    b'{"prompt": "a", "top_k": 99999999999999999999}', b'{"prompt": "a", "stop": [""]}', b'{"prompt": "a", "stop": [5]}', b'{"prompt": "a", "max_tokens": -1}',
    b'{"prompt": "a", "\\ud800": 1, "stream": "perhaps"}', b'{"prompt": "a", "stream_options": {"include_usage": []}}', b"[" * 100_000, b'{"prompt": "a", "logprobs": 21}',
    b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', b'{"messages": [{"role": "tool"}], "chat_template_kwargs": {"enable_thinking": "\\udfff"}}',
]


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_malformed_bodies_are_refused_by_openais_error_object(server, path):
    for body in MALFORMED:
        answer = httpx.post(f"{server[1]}/v1/{path}", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, (body[:80], answer.status_code)
        error = answer.json()["error"]
        assert error["message"] and error["type"] == "invalid_request_error" and "\n" not in error["message"]
    assert httpx.get(f"{server[1]}/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert httpx.get(f"{server[1]}/v1/{path}").status_code == 405
    assert httpx.get(f"{server[1]}/health").json() == {"status": "ok", "running": 0, "waiting": 0}


def test_a_server_told_to_stop_finishes_what_it_began(toy, tmp_path):
    lm, tokenizer = toy
    lm.save_pretrained(tmp_path / "toy")
    tokenizer.save(str(tmp_path / "toy/tokenizer.json"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "flows.cli", "serve", str(tmp_path / "toy"), "--port", str(port), "--max-length", "1000", "--dtype", "bfloat16", "--prefix-memory", "1000000", "--quiet"], cwd=ROOT,
                               env=os.environ | {"GRISTMILL_API_KEY": "secret"})
    try:
        address = f"http://127.0.0.1:{port}"

        def up():
            assert process.poll() is None
            try:
                return httpx.get(f"{address}/health").status_code == 200
            except httpx.TransportError:
                return False

        until(up, 60)

        async def stop_amid_streams():
            async with async_client(address, api_key="secret") as talk:
                streams = [await talk.completions.create(model="toy", prompt=f"{i}", max_tokens=600, stream=True, extra_body={"ignore_eos": True}, logprobs=1) for i in range(8)]
                process.send_signal(signal.SIGTERM)
                return [[chunk async for chunk in stream] for stream in streams]

        for chunks in asyncio.run(stop_amid_streams()):
            assert chunks[-1].choices[0].finish_reason == "length"
            assert sum(len(c.choices[0].logprobs.tokens) for c in chunks if c.choices[0].logprobs) == 600
        process.wait(30)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")
    finally:
        process.kill()


def test_the_openapi_page_names_its_refusals(server):
    page = httpx.get(f"{server[1]}/openapi.json").json()
    for path in ("/v1/chat/completions", "/v1/completions"):
        statuses = set(page["paths"][path]["post"]["responses"])
        assert {"200", "400", "401", "404", "413", "429", "503"} <= statuses and "422" not in statuses
    assert json.dumps(page)


@pytest.mark.slow
@pytest.mark.parametrize("path, examples", [("/v1/chat/completions", 150), ("/v1/completions", 100), ("/tokenize", 40), ("/detokenize", 20), ("/v1/models/{model}", 10),
                                            *[(path, 5) for path in ("/v1/models", "/tokenizer_info", "/version", "/health", "/metrics")]])
def test_no_request_made_from_the_openapi_page_breaks_the_server(toy, path, examples):
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

    with served(toy, length=64, limits=Limits(tokens=8)) as (_, address):
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        (operation,) = [found.ok() for found in schema.get_all_operations() if found.ok().path == path]
        statuses = set()

        @settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def check(case):
            answer = case.call()
            statuses.add(answer.status_code)
            case.validate_response(answer, checks=[not_a_server_error, content_type_conformance, response_schema_conformance])

        check()
        assert statuses <= {200, 400, 404, 413} and httpx.get(f"{address}/health").status_code == 200
