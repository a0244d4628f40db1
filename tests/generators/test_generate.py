"""Generation: what the checker accepts is kept, everything else has a reason, and an interruption changes no byte."""
import json
import shutil

import httpx
import pytest
import torch

import generators.run as generate
from generators.engines.choose import open_writer
from generators.engines.interface import EngineRecipe, Request, Sample, SamplingRecipe
from generators.engines.openai import OpenAIWriter
from generators.problems import PROBLEMS, ProblemsRecipe
from generators.run import GENERATE, GenerateRecipe, request_seed
from generators.tasks import TASKS
from model import HybridLM
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.recipe import load_recipe
from pipelines.stage import run_stage


@pytest.fixture(scope="module")
def problems(tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("problems") / "p")
    run_stage(PROBLEMS, [], load_recipe(ProblemsRecipe, {"tasks": [{"name": "addition", "count": 30}, {"name": "counting", "count": 20}]}), out)
    return out


class Scripted:
    """A writer whose samples are right, wrong, unfinished or repeated, as the random stream says."""

    name = "scripted@1"
    calls = 0

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers

    def generate(self, conversations, requests, sampling):
        Scripted.calls += 1
        return [[self.write(c[-1]["content"], (r.seed + k) % 4) for k in range(r.n)] for c, r in zip(conversations, requests)]

    def write(self, question: str, kind: int) -> Sample:
        right = self.answers[question]
        texts = [f"steps\n</think>\n{right}", f"steps\n</think>\n{right}0", "steps without end", f"other steps\n</think>\n{right}"]
        return Sample(texts[kind], "length" if kind == 2 else "stop", 5)


@pytest.fixture
def scripted(problems, monkeypatch):
    answers = dict(Dataset.open(problems).scan(["question", "answer"]).collect().iter_rows())
    monkeypatch.setattr(generate, "_writer", lambda recipe, stamp: Scripted(answers))


def recipe(**changes) -> GenerateRecipe:
    return load_recipe(GenerateRecipe, {"engine": {"model": "scripted"}, "samples": 4, "problems_per_part": 8, "seed": 3, **changes})


def test_accepted_and_refused_with_lineage(problems, scripted, tmp_path):
    made = run_stage(GENERATE, [problems], recipe(), str(tmp_path / "g"))
    source = Dataset.open(problems)
    kept, refused = made.scan().collect(), made.scan_rejected().collect()
    assert made.rows_in == 4 * source.rows == made.counters["samples"]
    assert made.rows == 2 * source.rows == made.counters["verified"]  # four neighbouring streams: each kind once
    assert made.reasons == {"answer.wrong": source.rows, "format.truncated": source.rows}
    assert set(kept["verified"]) == {True} and set(refused["verified"]) == {False}
    assert kept["id"].n_unique() == kept.height
    ids = set(source.scan(["id"]).collect()["id"])
    for row in kept.to_dicts():
        assert row["generator"] == "scripted@1" and row["parents"][0] in ids
        assert row["sampling"]["seed"] == request_seed(3, row["parents"][0])
        assert row["messages"][1]["content"].startswith("<think>\n") and row["messages"][0]["content"] == row["question"]
        problem = generate.problem_of(row)
        assert TASKS[row["task"]].check(problem, row["messages"][1]["content"]).ok


def test_interrupted_run_ends_with_the_same_bytes(problems, scripted, tmp_path):
    whole = run_stage(GENERATE, [problems], recipe(), str(tmp_path / "a"))
    calls, real = Scripted.calls, Scripted.generate

    def dies(self, *arguments):
        if Scripted.calls - calls >= 3:
            raise KeyboardInterrupt
        return real(self, *arguments)

    Scripted.generate = dies
    try:
        with pytest.raises(KeyboardInterrupt):
            run_stage(GENERATE, [problems], recipe(), str(tmp_path / "b"))
    finally:
        Scripted.generate = real
    assert not Dataset.exists(str(tmp_path / "b"))
    assert run_stage(GENERATE, [problems], recipe(), str(tmp_path / "b")).digest == whole.digest
    assert Scripted.calls - calls == len(whole.meta["parts"]), "finished parts are not written again"


def test_quotas_and_limits(problems, scripted, tmp_path):
    made = run_stage(GENERATE, [problems], recipe(quota={"addition": 11}, max_accepted=1), str(tmp_path / "g"))
    kept = made.scan(["task", "parents"]).collect()
    assert kept.filter(task="addition").height == 11
    assert kept["parents"].list.first().n_unique() == kept.height
    assert {"quota.task", "quota.problem"} <= set(made.reasons)
    some = run_stage(GENERATE, [problems], recipe(tasks=["counting"], problems=5), str(tmp_path / "h"))
    assert some.rows_in == 20 and set(some.scan(["task"]).collect()["task"]) == {"counting"}


def test_equal_samples_are_kept_once(problems, scripted, tmp_path, monkeypatch):
    monkeypatch.setattr(Scripted, "write", lambda self, question, kind: Sample(f"same\n</think>\n{self.answers[question]}", "stop", 3))
    made = run_stage(GENERATE, [problems], recipe(), str(tmp_path / "g"))
    assert made.rows * 3 == made.reasons["duplicate.sample"]
    assert run_stage(GENERATE, [problems], recipe(distinct=False), str(tmp_path / "h")).rejected_rows == 0


def test_shares_add_up():
    for quota, sizes in ((10, [3, 3, 3]), (2, [1] * 7), (5, [0, 4, 0, 1])):
        shares = generate._shares(quota, sizes)
        assert sum(shares) == quota and all(s == 0 for s, size in zip(shares, sizes) if size == 0)


@pytest.fixture(scope="module")
def folder(untrained_folder):
    """A real (untrained) model folder."""
    return untrained_folder()


def test_the_in_repo_engine_writes_the_same_twice(problems, folder, tmp_path):
    wanted = recipe(engine={"model": str(folder)}, sampling={"max_tokens": 12}, problems=6, samples=2, problems_per_part=4)
    one, two = (run_stage(GENERATE, [problems], wanted, str(tmp_path / name)) for name in "ab")
    assert one.digest == two.digest and one.rows_in == 12
    refused = one.scan_rejected().collect()
    assert set(refused["generator"]) == {f"toy@{weights(folder)}"}
    assert str(folder.parent) not in json.dumps(one.meta["config"]), "no path of a machine in what identifies a dataset"


def weights(folder) -> str:
    from generators.engines.local import weights_digest

    return weights_digest(folder)


def test_local_mistakes(folder, tmp_path):
    with pytest.raises(UserError, match="no model folder"):
        open_writer(EngineRecipe(model=str(tmp_path / "none")))
    with pytest.raises(UserError, match="they changed"):
        open_writer(EngineRecipe(model=str(folder), revision="0" * 12))
    writer = open_writer(EngineRecipe(model=str(folder), max_length=8))
    with pytest.raises(UserError, match="no room"):
        writer.generate([[{"role": "user", "content": "a long question"}]], [Request(seed=1)], SamplingRecipe())


def test_new_weights_in_the_same_folder_are_loaded(folder, tmp_path):
    copy = tmp_path / "toy"
    shutil.copytree(folder, copy)
    engine = EngineRecipe(model=str(copy))
    first = generate._writer(engine, generate.weights_stamp(engine)).name
    lm = HybridLM.from_pretrained(copy)
    with torch.no_grad():
        lm.norm_f.weight.mul_(2)
    lm.save_pretrained(copy)
    assert generate._writer(engine, generate.weights_stamp(engine)).name != first


# ---- OpenAI-compatible servers

def served(handler, **changes) -> OpenAIWriter:
    return OpenAIWriter(EngineRecipe(kind="openai", model="m", url="http://server/v1", revision="r1", **changes), httpx.MockTransport(handler))


def reply(content="<think>\na\n</think>\n4", finish="stop", **message):
    return httpx.Response(200, json={"choices": [{"message": {"content": content, **message}, "finish_reason": finish}], "usage": {"completion_tokens": 3}})


def test_requests_carry_seeds_and_come_back_in_order():
    seen = []

    def handler(request):
        body = json.loads(request.content)
        seen.append(body)
        return reply(f"<think>\n</think>\n{body['messages'][0]['content']}/{body['seed']}")

    conversations = [[{"role": "user", "content": str(i)}] for i in range(5)]
    writer = served(handler, concurrency=3)
    out = writer.generate(conversations, [Request(seed=10 * i, n=2) for i in range(5)], SamplingRecipe(temperature=0.5, top_k=7, thinking_budget=9))
    assert writer.name == "m@r1"
    assert [[s.text.split("\n")[-1] for s in row] for row in out] == [[f"{i}/{10 * i}", f"{i}/{10 * i + 1}"] for i in range(5)]
    assert seen[0]["temperature"] == 0.5 and seen[0]["top_k"] == 7 and seen[0]["thinking_token_budget"] == 9


def test_passing_faults_are_retried_and_reasoning_is_put_back(monkeypatch):
    monkeypatch.setattr("generators.engines.openai._FIRST_PAUSE", 0.001)
    answers = [httpx.Response(429, headers={"retry-after": "0.001"}), httpx.Response(503), "broken", reply("4", reasoning_content="2+2=4")]

    def handler(request):
        answer = answers.pop(0)
        if answer == "broken":
            raise httpx.ReadError("connection lost")
        return answer

    assert served(handler).generate([[{"role": "user", "content": "q"}]], [Request(seed=1)], SamplingRecipe()) == [[Sample("<think>\n2+2=4\n</think>\n4", "stop", 3)]]
    assert not answers


@pytest.mark.parametrize("answer,message", [
    (httpx.Response(400, text="no such\nmodel"), "refuses the request: HTTP 400: no such model"),
    (httpx.Response(500, text="oops"), "does not answer after 3 attempts: HTTP 500"),
    (httpx.Response(200, text="<html>"), "other than a chat completion"),
    (httpx.Response(200, json={"choices": []}), "other than a chat completion"),
])
def test_lasting_faults_are_one_line(monkeypatch, answer, message):
    monkeypatch.setattr("generators.engines.openai._FIRST_PAUSE", 0.001)
    with pytest.raises(UserError, match=message) as error:
        served(lambda request: answer, retries=2).generate([[{"role": "user", "content": "q"}]], [Request(seed=1, n=3)], SamplingRecipe())
    assert "\n" not in str(error.value)


def test_engine_recipe_knows_its_kind():
    for bad in ({"kind": "openai"}, {"kind": "local", "url": "http://x"}):
        with pytest.raises(UserError, match="url"):
            load_recipe(EngineRecipe, {"model": "m", **bad})
