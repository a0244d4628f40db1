"""A synthesis job over `gristmill serve`'s own server: what the in-repo engine writes, the server writes too."""
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from tokenizers import Tokenizer

from generators.engines.choose import open_writer
from generators.engines.interface import EngineRecipe, Request, SamplingRecipe
from generators.engines.local import weights_digest
from generators.problems import PROBLEMS, ProblemsRecipe
from generators.run import GENERATE, GenerateRecipe
from model import HybridLM
from model.engine import Engine
from model.serving import Limits, create_app
from pipelines.recipe import load_recipe
from pipelines.stage import run_stage

SAMPLING = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "max_tokens": 40}


@pytest.fixture(scope="module")
def folder(untrained_folder):
    """An untrained model folder. Its tokenizer knows <think> and </think>, so budgets and reasoning work on what it babbles."""
    return untrained_folder(initializer_range=0.3)


@contextmanager
def served(folder, key=None):
    engine = Engine(HybridLM.from_pretrained(folder), Tokenizer.from_file(str(folder / "tokenizer.json")), max_slots=5, max_length=1024)
    server = uvicorn.Server(uvicorn.Config(create_app(engine, "toy", limits=Limits(queue=100), key=key), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def url(folder):
    with served(folder) as address:
        yield address


@pytest.mark.parametrize("thinking", [{"thinking": True, "thinking_budget": 9}, {"thinking": True}, {"thinking": False}])
def test_a_job_over_the_server_makes_the_rows_of_a_job_in_the_process(folder, url, thinking, tmp_path):
    problems = str(tmp_path / "p")
    run_stage(PROBLEMS, [], load_recipe(ProblemsRecipe, {"tasks": [{"name": "addition", "count": 9}, {"name": "counting", "count": 4}]}), problems)
    made = {}
    for kind, engine in {"local": {"model": str(folder)}, "openai": {"model": "toy", "kind": "openai", "url": url, "revision": weights_digest(folder)}}.items():
        recipe = load_recipe(GenerateRecipe, {"engine": engine, "sampling": SAMPLING | thinking, "samples": 1, "problems_per_part": 5, "seed": 3})
        made[kind] = run_stage(GENERATE, [problems], recipe, str(tmp_path / kind))
    local, other = made.values()
    assert local.scan_rejected().collect().equals(other.scan_rejected().collect()) and local.scan().collect().equals(other.scan().collect())
    assert local.rows_in == 13 and local.counters == other.counters
    answers = other.scan_rejected().collect()
    if thinking == {"thinking": True, "thinking_budget": 9}:
        assert set(answers["reasoning"].is_not_null()) == {True, False}  # budgets close thinking at a newline, or after a grace that not every sample lives to see


def test_samples_are_the_engines_with_the_next_seeds(folder, url):
    """The server is asked for one sample at a time: sample k has the seed s + k."""
    asked, sampling = [[{"role": "user", "content": text}] for text in ("a", "What is 1 + 2?")], SamplingRecipe(**SAMPLING, thinking=False)
    local, other = open_writer(EngineRecipe(model=str(folder))), open_writer(EngineRecipe(kind="openai", model="toy", url=url, concurrency=3))
    wanted = [[local.generate([conversation], [Request(seed=7 + k)], sampling)[0][0] for k in range(3)] for conversation in asked]
    assert other.generate(asked, [Request(seed=7, n=3)] * 2, sampling) == wanted


def test_the_key_is_sent(folder, monkeypatch):
    with served(folder, key="secret") as address:
        monkeypatch.setenv("MY_KEY", "secret")
        writer = open_writer(EngineRecipe(kind="openai", model="toy", url=address, api_key_env="MY_KEY"))
        assert writer.generate([[{"role": "user", "content": "a"}]], [Request(seed=1)], SamplingRecipe(max_tokens=3))[0][0].tokens <= 3
