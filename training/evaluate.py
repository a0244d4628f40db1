"""What a model can do, measured the same way after every stage: held-out problems answered greedily, held-out text scored.

    evaluate("RUN/sft/model", [ProblemSuite(name="reasoning", problems="RUN/heldout/problems"), TextSuite(name="text", shards="RUN/shards-1")])

Deterministic: greedy decoding, fixed order, no clock in the result. Whether the held-out questions leaked into training data is
pipelines.decontaminate's business; a share of problems whose answer was cut off is reported beside the accuracy, never hidden in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean, pstdev
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from generators.tasks import TASKS, Problem
from model import chat
from model.engine import Engine, SamplingParams
from model.lm import HybridLM
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.loader import TokenStream
from pipelines.progress import Progress, ProgressEvent, silent
from pipelines.recipe import Recipe
from pipelines.tokenizer import encode
from training.losses import token_losses
from training.setup import load_model, set_precision

__all__ = ["ProblemSuite", "TextSuite", "evaluate", "problems_of", "stream_text_loss"]


class ProblemSuite(Recipe):
    """Problems to answer: a dataset (columns task, question, answer, metadata), or tasks made from a seed kept for this purpose."""

    kind: Literal["problems"] = "problems"
    name: str = "problems"
    problems: str | None = Field(None, description="dataset of problems")
    tasks: dict[str, dict[str, Any]] = Field({}, description="or: task name -> difficulty parameters")
    seed: int = 0
    per_task: PositiveInt = 50
    max_tokens: PositiveInt = 128
    samples: int = Field(2, ge=0, description="transcripts kept per task")
    draws: int = Field(0, ge=0, description="answers sampled a problem at temperature 1, beside the greedy one: what RL optimises")


class TextSuite(Recipe):
    """Text to predict: the validation split of shards, or a dataset's `text` column cut into windows."""

    kind: Literal["text"] = "text"
    name: str = "text"
    shards: str | None = None
    sources: list[str] | None = Field(None, description="of the shards; default: all")
    documents: str | None = None
    sequence_length: PositiveInt = 256
    batch_size: PositiveInt = 16
    max_tokens: PositiveInt = Field(100_000, description="stop after this many; the same tokens for every model")


Suite = ProblemSuite | TextSuite


def evaluate(model_path: str, suites: Sequence[Suite | dict[str, Any]], *, precision: str = "bf16", progress: Progress = silent) -> dict[str, Any]:
    """Run suites over a model folder: {suite name: figures}.

    Raises:
        UserError: not a model folder, an unknown task, a suite that names nothing to evaluate.
    """
    parsed = [_suite(suite) for suite in suites]
    lm, tokenizer = load_model(model_path)
    set_precision(lm, precision)
    lm.eval()
    results: dict[str, Any] = {}
    for number, suite in enumerate(parsed):
        results[suite.name] = _text(lm, tokenizer, suite) if isinstance(suite, TextSuite) else _problems(lm, tokenizer, suite)
        progress(ProgressEvent("evaluate", number + 1, len(parsed), "suites", suite.name))
    return results


def _suite(suite: Suite | dict[str, Any]) -> Suite:
    if not isinstance(suite, dict):
        return suite
    from pipelines.recipe import load_recipe

    return load_recipe(TextSuite if suite.get("kind") == "text" else ProblemSuite, suite)


# -- problems --------------------------------------------------------------------------------------------------------


def problems_of(suite: ProblemSuite) -> list[Problem]:
    """The suite's problems, in order; one question once."""
    if suite.problems:
        columns = ["task", "question", "reasoning", "answer"]
        rows = [row for batch in Dataset.open(suite.problems).batches(columns=columns) for row in batch.to_pylist()]
        found = [Problem(**row) for row in rows]
    elif suite.tasks:
        found = [_task(name, params).problem(suite.seed, index) for name, params in suite.tasks.items() for index in range(suite.per_task)]
    else:
        raise UserError(f"suite {suite.name}: name a dataset of `problems`, or `tasks`")
    if unknown := sorted({problem.task for problem in found} - TASKS.keys()):
        raise UserError(f"suite {suite.name}: unknown task {unknown[0]!r}; there are {', '.join(sorted(TASKS))}")
    return list({problem.id: problem for problem in found}.values())


def _task(name: str, params: dict[str, Any]) -> Any:
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}; there are {', '.join(sorted(TASKS))}")
    try:
        return TASKS[name].with_params(params)
    except ValueError as error:
        raise UserError(str(error)) from None


def _problems(lm: HybridLM, tokenizer: Any, suite: ProblemSuite) -> dict[str, Any]:
    problems = problems_of(suite)
    prompts = [chat.encode_prompt(tokenizer, problem.prompt_messages()) for problem in problems]
    room = max(map(len, prompts)) + suite.max_tokens + 1
    engine = Engine(lm, tokenizer, max_slots=min(128, len(prompts)), max_length=room)
    outputs = engine.generate(prompts, SamplingParams(temperature=0.0, max_tokens=suite.max_tokens))
    drawn = _drawn(engine, problems, prompts, suite)
    rows: dict[str, list[dict[str, Any]]] = {}
    for problem, output in zip(problems, outputs, strict=True):
        written = output.outputs[0]
        truncated = written.finish_reason == "length"
        verdict = TASKS[problem.task].check(problem, written.text, truncated=truncated)
        rows.setdefault(problem.task, []).append({
            "id": problem.id, "question": problem.question, "answer": problem.answer, "response": written.text,
            "ok": verdict.ok, "reason": verdict.reason, "truncated": truncated, "tokens": len(written.token_ids),
            "thinking_tokens": _thinking_tokens(written.token_ids, tokenizer.token_to_id(chat.END_THINK)),
            **({"drawn": drawn[problem.id]} if drawn else {}),
        })
    everything = [row for group in rows.values() for row in group]
    return {
        "kind": "problems",
        **_figures(everything),
        "tasks": {task: _figures(group) for task, group in sorted(rows.items())},
        "samples": [_sample(task, row) for task, group in sorted(rows.items()) for row in _telling(group, suite.samples)],
    }


def _drawn(engine: Engine, problems: Sequence[Problem], prompts: Sequence[list[int]], suite: ProblemSuite) -> dict[str, float]:
    """Share of right answers among `suite.draws` samples at temperature 1, by problem; each problem has a stream of its own."""
    if not suite.draws:
        return {}
    params = [
        SamplingParams(n=suite.draws, temperature=1.0, max_tokens=suite.max_tokens, seed=int(problem.id[:15], 16) ^ suite.seed) for problem in problems
    ]
    shares = {}
    for problem, output in zip(problems, engine.generate(prompts, params), strict=True):
        checks = (TASKS[problem.task].check(problem, one.text, truncated=one.finish_reason == "length") for one in output.outputs)
        shares[problem.id] = fmean(verdict.ok for verdict in checks)
    return shares


def _figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy with its binomial standard error, the share cut off, mean lengths in tokens, reasons of refusal.

    With `draws`, also `sampled_accuracy`: the mean over problems of the share of right samples, and its standard error.
    """
    accuracy = fmean(row["ok"] for row in rows)
    reasons: dict[str, int] = {}
    for row in rows:
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    return {
        "count": len(rows),
        "accuracy": accuracy,
        "standard_error": math.sqrt(accuracy * (1 - accuracy) / len(rows)),
        "truncated": fmean(row["truncated"] for row in rows),
        "response_tokens": fmean(row["tokens"] for row in rows),
        "thinking_tokens": fmean(row["thinking_tokens"] for row in rows),
        "reasons": dict(sorted(reasons.items())),
        **_sampled([row["drawn"] for row in rows if "drawn" in row]),
    }


def _sampled(shares: list[float]) -> dict[str, float]:
    if not shares:
        return {}
    return {"sampled_accuracy": fmean(shares), "sampled_standard_error": pstdev(shares) / math.sqrt(len(shares))}


def _thinking_tokens(token_ids: list[int], end_thinking: int) -> int:
    """Tokens written before thinking was closed; all of them if it never was."""
    return token_ids.index(end_thinking) if end_thinking in token_ids else len(token_ids)


def _telling(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first right and the first wrong answers, in turn: a reader wants to see both."""
    right, wrong = [r for r in rows if r["ok"]], [r for r in rows if not r["ok"]]
    mixed = [row for pair in zip(right, wrong) for row in pair] + right[len(wrong) :] + wrong[len(right) :]
    return mixed[:count]


def _sample(task: str, row: dict[str, Any]) -> dict[str, Any]:
    return {"task": task} | {key: row[key] for key in ("id", "question", "answer", "response", "ok", "reason")}


# -- text ------------------------------------------------------------------------------------------------------------


def _text(lm: HybridLM, tokenizer: Any, suite: TextSuite) -> dict[str, Any]:
    if suite.shards:
        stream = TokenStream(suite.shards, split="validation", sources=suite.sources, batch_size=suite.batch_size)
        figures = stream_text_loss(lm, stream, tokenizer, suite.max_tokens)
    elif suite.documents:
        figures = _losses(lm, _document_batches(tokenizer, suite), tokenizer, suite.max_tokens)
    else:
        raise UserError(f"suite {suite.name}: name `shards` or `documents` to score")
    return {"kind": "text"} | figures


def stream_text_loss(lm: HybridLM, stream: TokenStream, tokenizer: Any, max_tokens: int) -> dict[str, Any]:
    """Mean loss over a stream's first `max_tokens` predicted tokens."""
    batches = (stream.batch(step) for step in range(stream.steps))
    arrays = ((b.input_ids, b.labels, b.loss_mask, b.seq_idx) for b in batches)
    return _losses(lm, (tuple(torch.from_numpy(a) for a in group) for group in arrays), tokenizer, max_tokens)


def _document_batches(tokenizer: Any, suite: TextSuite) -> Iterator[tuple[Tensor, ...]]:
    """Each document in windows of its own, the last one padded."""
    T, rows = suite.sequence_length, []
    for batch in Dataset.open(suite.documents or "").batches(columns=["text"]):
        for text in batch.column("text").to_pylist():
            ids = encode(tokenizer, text)
            for start in range(0, len(ids) - 1, T):
                piece = ids[start : start + T + 1]
                row = np.zeros((4, T), np.int64)
                row[0, : len(piece) - 1], row[1, : len(piece) - 1], row[2, : len(piece) - 1] = piece[:-1], piece[1:], 1
                row[3, len(piece) - 1 :] = 1
                rows.append(row)
                if len(rows) == suite.batch_size:
                    yield tuple(torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
                    rows = []
    if rows:
        yield tuple(torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))


@torch.no_grad()
def _losses(lm: HybridLM, batches: Iterable[tuple[Tensor, ...]], tokenizer: Any, max_tokens: int) -> dict[str, Any]:
    """Nats a token and bits a byte (bytes of the predicted tokens' text) over the first `max_tokens` or so, whole batches."""
    lengths_V, training = token_bytes(tokenizer), lm.training
    lm.eval()
    nats, tokens, size = 0.0, 0, 0
    for input_ids_BT, labels_BT, mask_BT, seq_idx_BT in batches:
        chosen_BT = mask_BT > 0
        hidden_BTD = lm.hidden(input_ids_BT, seq_idx_BT=seq_idx_BT)
        losses_K = token_losses(hidden_BTD[chosen_BT], lm.lm_head.weight, labels_BT[chosen_BT])
        nats += float(losses_K.double().sum())
        tokens += int(chosen_BT.sum())
        size += int(lengths_V[labels_BT[chosen_BT]].sum())
        if tokens >= max_tokens:
            break
    lm.train(training)
    if not tokens:
        raise UserError("there is no text to score")
    loss = nats / tokens
    return {"tokens": tokens, "bytes": size, "nats_per_token": loss, "perplexity": math.exp(min(loss, 700)), "bits_per_byte": nats / size / math.log(2)}


def token_bytes(tokenizer: Any) -> Tensor:
    """UTF-8 bytes each token of a byte-level BPE stands for [V] (one character of its spelling a byte); special tokens 0."""
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    lengths = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.int64)
    for spelling, token_id in tokenizer.get_vocab().items():
        lengths[token_id] = 0 if spelling in special else len(spelling)
    return lengths
