"""What else clients of OpenAI's and vLLM's servers send and ask for, each beside what the engine does with the same parameters."""
import json

import httpx
import pytest
from test_server_clients import client, openai, served

from model import chat
from model.engine import Engine, SamplingParams

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}, {"role": "assistant", "reasoning_content": "A greeting.", "content": "Hello."},
         {"role": "user", "content": "2 + 2?"}]


@pytest.fixture(scope="module")
def server(toy):
    with served(toy, length=600) as running:
        yield running


@pytest.mark.parametrize("fields", [
    {"frequency_penalty": 1.5}, {"presence_penalty": -1}, {"extra_body": {"repetition_penalty": 1.4}}, {"logit_bias": {"40": 50, "41": 49.5}}, {"extra_body": {"min_p": 0.3}},
    {"extra_body": {"allowed_token_ids": [30, 31, 32]}}, {"logit_bias": {"2": 100}, "extra_body": {"min_tokens": 4}}, {"extra_body": {"stop_token_ids": [*range(20, 150)]}}, {"n": None},
    {"best_of": 1}, {"extra_body": {"ignore_eos": None}}, {"echo": None},
])
def test_fields_are_the_engines(server, toy, fields):
    names = {name: value for name, value in {**fields, **fields.get("extra_body", {})}.items() if name not in ("extra_body", "best_of", "echo") and value is not None}
    names |= {"logit_bias": {int(token): bias for token, bias in names["logit_bias"].items()}} if "logit_bias" in names else {}
    wanted = Engine(*toy, max_slots=1, max_length=600).generate(["abc"], SamplingParams(seed=5, max_tokens=20, **names))[0].outputs[0]
    got = client(server[1]).completions.create(model="toy", prompt="abc", seed=5, max_tokens=20, **fields)
    assert (got.choices[0].text, got.choices[0].finish_reason, got.usage.completion_tokens) == (wanted.text, wanted.finish_reason, len(wanted.token_ids))


@pytest.mark.parametrize("asked, matches", [
    ({"structured_outputs": {"choice": ["yes", "no (.)"]}}, lambda text: text in ("yes", "no (.)")), ({"structured_outputs": {"regex": "[ab]{3}c"}}, lambda text: len(text) == 4 and text[3] == "c"),
    ({"structured_outputs": {"json": {"type": "boolean"}}}, lambda text: isinstance(json.loads(text), bool)),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"enum": [1, 2]}}}}, lambda text: json.loads(text) in (1, 2)), ({"response_format": {"type": "text"}}, bool),
])
def test_grammars_of_either_endpoint(server, asked, matches):
    own = client(server[1])
    answers = own.completions.create(model="toy", prompt="a", max_tokens=30, n=3, seed=2, extra_body=asked).choices
    assert all(matches(choice.text) for choice in answers)
    answers = own.chat.completions.create(model="toy", messages=TURNS, max_tokens=30, n=3, seed=2, extra_body=asked).choices
    assert all(matches(choice.message.content or choice.message.reasoning_content) for choice in answers)


@pytest.mark.parametrize("wrong", [
    {"structured_outputs": {"choice": ["a"], "regex": "a"}}, {"structured_outputs": {}}, {"structured_outputs": {"choice": []}}, {"structured_outputs": {"regex": "("}},
    {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, {"structured_outputs": {"regex": "a"}, "min_tokens": 1}, {"min_tokens": 17}, {"best_of": 2},
    {"logit_bias": {"x": 1}}, {"logit_bias": {"-1": 1}}, {"logit_bias": {"5": "much"}}, {"allowed_token_ids": []}, {"presence_penalty": 3}, {"repetition_penalty": 0},
])
def test_what_does_not_go_together_is_refused(server, wrong):
    answer = httpx.post(f"{server[1]}/v1/completions", json={"prompt": "a", **wrong})
    assert answer.status_code == 400 and answer.json()["error"]["message"]
    assert httpx.get(f"{server[1]}/health").json() == {"status": "ok", "running": 0, "waiting": 0}


def test_usage_in_every_chunk(server):
    chunks = list(client(server[1]).completions.create(model="toy", prompt="abc", max_tokens=5, stream=True, extra_body={"ignore_eos": True, "stream_options": {"continuous_usage_stats": True}}))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 5 and all(chunk.choices for chunk in chunks) and {chunk.usage.prompt_tokens for chunk in chunks} == {3}


@pytest.mark.parametrize("kwargs, how", [({}, {}), ({"truncate_history_thinking": False}, {"truncate_history_thinking": False}), ({"reasoning_budget": 9}, {"reasoning_budget": 9}),
                                         ({"enable_thinking": False, "nobody": 1}, {"enable_thinking": False}), (None, {})])
def test_the_templates_variables_reach_it(server, monkeypatch, kwargs, how):
    prompts, submit = [], server[0].submit
    monkeypatch.setattr(server[0], "submit", lambda prompt, params: (prompts.append(prompt), submit(prompt, params))[1])
    client(server[1]).chat.completions.create(model="toy", messages=TURNS, max_tokens=1, extra_body={"chat_template_kwargs": kwargs})
    renamed = [{"reasoning" if key == "reasoning_content" else key: value for key, value in turn.items()} for turn in TURNS]  # as newer vLLMs call it
    client(server[1]).chat.completions.create(model="toy", messages=renamed, max_tokens=1, extra_body={"chat_template_kwargs": kwargs})
    assert prompts == [chat.encode(server[0].tokenizer, TURNS, add_generation_prompt=True, **how)[0]] * 2


def test_models_and_version(server):
    own = client(server[1])
    assert own.models.retrieve("toy") == own.models.list().data[0]
    with pytest.raises(openai.NotFoundError, match="no model 'x/y'"):
        own.models.retrieve("x/y")
    assert httpx.get(f"{server[1]}/version").json()["version"]


def test_tokens_and_back(server, toy):
    def post(path, **body):
        answer = httpx.post(f"{server[1]}/{path}", json=body)
        return answer.json() if answer.status_code == 200 else answer.status_code

    text = "naïve <|im_end|>"
    ids = toy[1].encode(text).ids
    assert post("tokenize", prompt=text, add_special_tokens=False) == {"count": len(ids), "max_model_len": 600, "tokens": ids} and 11 in ids
    assert post("tokenize", prompt="ab", return_token_strs=True)["token_strs"] == ["a", "b"] and post("tokenize", prompt="")["count"] == 0
    assert post("detokenize", tokens=ids) == {"prompt": text} and post("detokenize", tokens=[]) == {"prompt": ""}
    assert post("tokenize", messages=TURNS)["tokens"] == chat.encode_prompt(toy[1], TURNS)
    tool = {"type": "function", "function": {"name": "stop"}}
    shown = post("tokenize", messages=TURNS, tools=[tool], chat_template_kwargs={"enable_thinking": False}, add_generation_prompt=False)["tokens"]
    assert shown == chat.encode(toy[1], TURNS, tools=[tool], enable_thinking=False)[0]
    assert [post("tokenize"), post("tokenize", prompt="a", messages=TURNS), post("tokenize", prompt="a", model="other"),
            post("detokenize", tokens=[-1]), post("tokenize", messages=[])] == [400, 400, 404, 400, 400]
    info = httpx.get(f"{server[1]}/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"], info["chat_template"]) == ("<s>", "</s>", chat.CHAT_TEMPLATE)


def test_only_what_watchers_ask_is_open(toy):
    with served(toy, key="secret") as (_, address):
        statuses = {path: httpx.get(f"{address}/{path}").status_code for path in ("health", "metrics", "version", "openapi.json", "docs", "tokenizer_info", "v1/models", "other")}
        assert statuses == {"health": 200, "metrics": 200, "version": 200, "openapi.json": 200, "docs": 200, "tokenizer_info": 401, "v1/models": 401, "other": 401}
        assert httpx.post(f"{address}/tokenize", json={"prompt": "a"}, headers={"Authorization": "Bearer secret"}).json()["count"] == 1
