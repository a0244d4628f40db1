"""A micro world for the tests of training: a tokenizer, problems, shards and a model of hidden size 32, made once a session."""

import random

import pyarrow as pa
import pytest

from generators.tasks import TASKS
from model import chat
from pipelines.mixture import Mixture, Source, Validation
from pipelines.recipe import Recipe
from pipelines.shards import tokenize
from pipelines.stage import Stage, run_stage
from pipelines.tokenizer import load_tokenizer, train_tokenizer
from training.setup import ModelSpec, fresh_model, save_model_folder

WORDS = "the mill grinds seven sacks of grain while water turns its wheel and 12 or 345 birds sing on the roof".split()
MICRO = {
    "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "mamba_num_heads": 2, "mamba_head_dim": 16,
    "ssm_state_size": 16, "n_routed_experts": 4, "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32, "moe_latent_size": 16,
    "mtp_depth": 1, "chunk_size": 16,
}


class Rows(Recipe):
    rows: tuple[dict, ...]


def _plan(inputs, config):
    return [{"rows": list(config.rows)}]


def _run(payload, config, output):
    output.read(len(payload["rows"]))
    output.write(pa.Table.from_pylist(payload["rows"]))


def write_dataset(folder, rows):
    """A closed dataset of the given rows; returns its URI."""
    run_stage(Stage(name="rows", version=1, plan=_plan, run=_run), [], Rows(rows=tuple(rows)), str(folder))
    return str(folder)


def problem_rows(tasks, count, seed=1):
    problems = [task.problem(seed, index) for task in tasks for index in range(count)]
    return [
        {"id": f"{p.id}-{n}", "task": p.task, "question": p.question, "reasoning": p.reasoning, "answer": p.answer, "messages": p.messages(), "text": p.text()}
        for n, p in enumerate(problems)
    ]


@pytest.fixture(scope="session")
def micro(tmp_path_factory):
    """Paths of the micro world: text, problems (datasets), tokenizer, shards, model (an untrained folder)."""
    root = tmp_path_factory.mktemp("micro")
    rng = random.Random(0)
    text = write_dataset(root / "text", [{"id": f"t{i:03d}", "text": " ".join(rng.choices(WORDS, k=40))} for i in range(80)])
    problems = write_dataset(root / "problems", problem_rows([TASKS["addition"].with_params({"digits": (1, 1)})], 60))
    tokenizer = train_tokenizer([text, problems], 330, root / "tokenizer", special_tokens=chat.SPECIAL_TOKENS)
    mixture = Mixture(
        name="micro", sequence_length=32, batch_size=4, validation=Validation(fraction=0.1),
        sources=(Source(name="text", dataset=text, weight=1, max_repetition=4), Source(name="problems", dataset=problems, weight=1, max_repetition=4)),
    )
    tokenize(mixture, tokenizer, str(root / "shards"))
    loaded = load_tokenizer(tokenizer)
    save_model_folder(fresh_model(ModelSpec(overrides=MICRO), loaded.get_vocab_size(), 3), loaded, root / "model")
    return {name: str(root / name) for name in ("text", "problems", "tokenizer", "shards", "model")}
