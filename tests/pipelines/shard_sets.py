"""Small datasets, tokenizers and shard sets for the tests of mixtures, shards, loader and lineage."""

import random

import pyarrow as pa

from model.chat import SPECIAL_TOKENS
from pipelines.mixture import Mixture, Source, Validation
from pipelines.recipe import Recipe
from pipelines.shards import tokenize
from pipelines.stage import Stage, run_stage
from pipelines.tokenizer import train_tokenizer

WORDS = "the mill grinds seven sacks of grain while water turns its wheel and 12 or 345 birds sing <|im_end|> über naïve Straße".split()


class Rows(Recipe):
    name: str
    rows: tuple[dict, ...]
    parts: int = 1


def _plan(inputs, config):
    size = -(-len(config.rows) // config.parts)
    return [{"rows": config.rows[start : start + size]} for start in range(0, len(config.rows), size)]


def _run(payload, config, output):
    output.read(len(payload["rows"]))
    output.write(pa.Table.from_pylist(list(payload["rows"])))


ROWS = Stage(name="rows", version=1, plan=_plan, run=_run)


def dataset(folder, name, rows, parts=1, inputs=()):
    """A closed dataset of given rows; returns its URI."""
    run_stage(ROWS, list(inputs), Rows(name=name, rows=tuple(rows), parts=parts), str(folder / name), name=name)
    return str(folder / name)


def web_rows(n, seed=0):
    rng = random.Random(seed)
    rows = []
    for index in range(n):
        text = " ".join(rng.choices(WORDS, k=rng.randint(3, 60)))
        rows.append({"id": f"web{seed}-{index:04d}", "text": text, "language": rng.choice(["en", "de"]), "cluster_size": rng.choice([1, 1, 2, 5])})
    return rows


def problem_rows(n):
    rows = []
    for index in range(n):
        answer = f"<think>\n{index} and 2 make {index + 2}\n</think>\n{index + 2}"
        messages = [{"role": "user", "content": f"What is {index} + 2?"}, {"role": "assistant", "content": answer}]
        rows.append({"id": f"problem-{index:04d}", "messages": messages})
    return rows


def make(folder, *, web=120, problems=80, parts=3, out="shards", cluster=None, **values):
    """Datasets web and problems, a tokenizer and shards over them. Returns (mixture, tokenizer path, shard set)."""
    mixture = Mixture(
        **{
            "name": "small",
            "sequence_length": 32,
            "batch_size": 6,
            "validation": Validation(fraction=0.1),
            "sources": (
                Source(name="web", dataset=dataset(folder, "web", web_rows(web), parts), weight=45, max_repetition=3),
                Source(name="problems", dataset=dataset(folder, "problems", problem_rows(problems)), weight=55, max_repetition=3, format="chat"),
            ),
            **values,
        }
    )
    tokenizer = train_tokenizer([mixture.sources[0].dataset], 320, folder / "tokenizer", special_tokens=SPECIAL_TOKENS)
    return mixture, tokenizer, tokenize(mixture, tokenizer, str(folder / out), cluster, shard_bytes=8000)
