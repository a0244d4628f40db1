"""The stage `generate`: a model writes solutions to problems, a verifier checks each, what it accepts becomes documents.

Nothing is believed: a sample is kept only if its task's checker accepts it, and every refused one lies in rejected/ with the
checker's reason, so the share of accepted samples is a number anyone can recompute. A part is a fixed group of prompts and its
samples' seeds are a function of (recipe seed, problem id, sample), so results do not depend on what was interrupted, on how
many workers ran, or on the order of parts.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

import pyarrow as pa
import xxhash
from pydantic import Field

from generators.documents import LICENSE, REJECTED_SCHEMA, SYNTHETIC_SCHEMA, problem_of, table, task_named, text_digest
from generators.engines.choose import open_writer, weights_stamp
from generators.engines.interface import EngineRecipe, Request, Sample, SamplingRecipe, Writer
from generators.tasks import Problem
from model.chat import split_thinking
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.recipe import Recipe, digest_of
from pipelines.stage import PartOutput, Stage

_COLUMNS = ["id", "task", "question", "reasoning", "answer"]


class GenerateRecipe(Recipe):
    """How many samples of which problems, and how many to keep."""

    engine: EngineRecipe
    sampling: SamplingRecipe = SamplingRecipe()
    samples: Annotated[int, Field(gt=0)] = 4
    """Drawn per problem."""
    tasks: tuple[str, ...] = ()
    """Only problems of these tasks; all by default."""
    problems: Annotated[int, Field(gt=0)] | None = None
    """At most so many problems, in the order of the dataset; all by default."""
    max_accepted: Annotated[int, Field(gt=0)] | None = None
    """Kept per problem; further right samples are rejected as `quota.problem`."""
    distinct: bool = True
    """Keep one of several equal samples of a problem; the others are rejected as `duplicate.sample`."""
    quota: dict[str, Annotated[int, Field(gt=0)]] = {}
    """Kept per task; what is beyond is rejected as `quota.task`. Each part gets its share, so parts stay independent."""
    problems_per_part: Annotated[int, Field(gt=0)] = 256
    seed: int = 0


def plan(inputs: Sequence[str], config: GenerateRecipe) -> list[dict[str, Any]]:
    """Parts of `problems_per_part` problems; inputs are datasets of problems."""
    if not inputs:
        raise UserError("generate needs a dataset of problems")
    for name in {*config.tasks, *config.quota}:
        task_named(name)
    groups: list[dict[str, Any]] = []
    left = config.problems
    for uri in inputs:
        tasks = _rows(uri, config.tasks, ["task"]).column("task").to_pylist()[:left]
        left = None if left is None else left - len(tasks)
        groups += [{"problems": uri, "start": start, "stop": min(start + config.problems_per_part, len(tasks)),
                    "tasks": dict(sorted(Counter(tasks[start:start + config.problems_per_part]).items()))}
                   for start in range(0, len(tasks), config.problems_per_part)]
    for task, quota in config.quota.items():
        for group, share in zip(groups, _shares(quota, [group["tasks"].get(task, 0) for group in groups])):
            group.setdefault("quota", {})[task] = share
    return groups


def run(part: dict[str, Any], config: GenerateRecipe, output: PartOutput) -> None:
    rows = _rows(part["problems"], config.tasks, _COLUMNS).slice(part["start"], part["stop"] - part["start"]).to_pylist()
    writer = _writer(config.engine, weights_stamp(config.engine))
    requests = [Request(seed=request_seed(config.seed, row["id"]), n=config.samples) for row in rows]
    written = writer.generate([problem_of(row).prompt_messages() for row in rows], requests, config.sampling)
    room = dict(part.get("quota", {}))
    kept: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for row, request, samples in zip(rows, requests, written):
        problem, task = problem_of(row), task_named(row["task"])
        accepted: set[str] = set()
        for k, sample in enumerate(samples):
            verdict = task.check(problem, sample.text, truncated=sample.finish_reason == "length")
            document = sample_row(writer.name, config, row, problem, sample, request, k, verdict.ok)
            reason, detail = verdict.reason, f"expected {problem.answer}, got {document['answer'][:80]!r}"
            if verdict.ok:
                reason, detail = _surplus(config, document, accepted, room)
            right = int(verdict.ok)
            output.count(samples=1, tokens=sample.tokens, verified=right, **{f"samples.{row['task']}": 1, f"verified.{row['task']}": right})
            if reason:
                rejected.append({**document, "reason": reason, "detail": detail})
            else:
                kept.append(document)
                accepted.add(document["text"])
    output.read(sum(map(len, written)))
    output.write(table(kept, SYNTHETIC_SCHEMA), table(rejected, REJECTED_SCHEMA))


def request_seed(seed: int, problem_id: str) -> int:
    """The random stream of a problem's samples: 63 bits of (recipe seed, problem id)."""
    return xxhash.xxh3_64_intdigest(f"{seed}\n{problem_id}") >> 1


def sample_row(writer: str, config: GenerateRecipe, row: Mapping[str, Any], problem: Problem, sample: Sample, request: Request, k: int,
               verified: bool) -> dict[str, Any]:
    """A sample as a synthetic document, whether or not it is right."""
    reasoning, answer = split_thinking(sample.text)
    response = sample.text if reasoning is None else f"<think>\n{reasoning}\n</think>\n{answer}"
    text = f"Question: {problem.question}\n{reasoning or ''}\nAnswer: {answer}"
    prompt = digest_of(problem.prompt_messages())
    return {
        "id": xxhash.xxh3_128_hexdigest(f"{writer}\n{prompt}\n{row['id']}\n{request.seed}\n{k}"), "text": text, "title": problem.question,
        "language": "en", "language_score": 1.0, "license": LICENSE, "source": "generators.run", "digest": text_digest(text),
        "messages": [*problem.prompt_messages(), {"role": "assistant", "content": response}], "task": problem.task,
        "question": problem.question, "reasoning": reasoning, "answer": answer, "generator": writer, "prompt_digest": prompt,
        "parents": [row["id"]], "verified": verified,
        "sampling": {"seed": request.seed, "sample": k, "temperature": config.sampling.temperature, "top_p": config.sampling.top_p,
                     "top_k": config.sampling.top_k, "max_tokens": config.sampling.max_tokens},
    }


def _surplus(config: GenerateRecipe, document: Mapping[str, Any], accepted: set[str], room: dict[str, int]) -> tuple[str, str]:
    """(reason, detail) for a right sample that is one too many; empty when it is wanted."""
    if config.distinct and document["text"] in accepted:
        return "duplicate.sample", "the same text was already accepted for this problem"
    if config.max_accepted is not None and len(accepted) >= config.max_accepted:
        return "quota.problem", f"{config.max_accepted} accepted already"
    if document["task"] in room:
        if not room[document["task"]]:
            return "quota.task", "this part's share of the task's quota is full"
        room[document["task"]] -= 1
    return "", ""


def _rows(uri: str, tasks: Sequence[str], columns: list[str]) -> pa.Table:
    import polars as pl

    frame = Dataset.open(uri).scan()
    missing = set(_COLUMNS) - set(frame.collect_schema().names())
    if missing:
        raise UserError(f"{uri}: no dataset of problems (column {sorted(missing)[0]} is missing)")
    if tasks:
        frame = frame.filter(pl.col("task").is_in(list(tasks)))
    return frame.select(columns).collect().to_arrow()


def _shares(quota: int, sizes: list[int]) -> list[int]:
    """The quota divided over parts in proportion to their problems, to the last one: differences of rounded running sums."""
    total, passed, shares = sum(sizes), 0, []
    for size in sizes:
        shares.append(quota * (passed + size) // total - quota * passed // total if total else 0)
        passed += size
    return shares


@lru_cache(maxsize=1)
def _writer(recipe: EngineRecipe, stamp: tuple) -> Writer:
    """One model a process, kept between parts; `stamp` tells weights apart that were written to the same folder."""
    return open_writer(recipe)


GENERATE = Stage(name="generate", version=1, plan=plan, run=run)
