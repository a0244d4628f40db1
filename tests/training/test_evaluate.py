"""Evaluation: figures that can be recomputed by hand, the same ones every time."""

import math

import pytest
import torch
import torch.nn.functional as F

from generators.tasks import TASKS
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.tokenizer import encode
from training import evaluate as room
from training.evaluate import ProblemSuite, TextSuite, evaluate, problems_of, token_bytes
from training.setup import load_model

PROBLEMS = ProblemSuite(name="sums", tasks={"addition": {"digits": [1, 1]}, "comparison": {}}, seed=9, per_task=6, max_tokens=8)


def test_the_same_figures_every_time(micro):
    suites = [PROBLEMS, {"kind": "text", "name": "text", "shards": micro["shards"]}]
    first = evaluate(micro["model"], suites, precision="fp32")
    assert first == evaluate(micro["model"], suites, precision="fp32")
    sums = first["sums"]
    assert sums["count"] == len(problems_of(PROBLEMS)) == sum(task["count"] for task in sums["tasks"].values())
    assert sums["accuracy"] == 0.0 and sum(sums["reasons"].values()) == sums["count"] and len(sums["samples"]) == 4
    assert sums["truncated"] == pytest.approx(sums["reasons"].get("format.truncated", 0) / sums["count"])


def test_accuracy_is_the_verifiers(micro, monkeypatch):
    """An engine that writes the right answer to every other problem scores one half."""
    suite = ProblemSuite(tasks={"addition": {}}, per_task=10)
    problems = problems_of(suite)

    class Oracle:
        def __init__(self, lm, tokenizer, **kwargs):
            self.tokenizer = tokenizer

        def generate(self, prompts, params):
            from model.engine import CompletionOutput, RequestOutput

            assert params.temperature == 0.0
            texts = [f"{p.reasoning}\n</think>\n{p.answer if n % 2 else 'none'}" for n, p in enumerate(problems)]
            ids = [encode(self.tokenizer, text, allow_special=True) for text in texts]
            return [RequestOutput(p, [CompletionOutput(0, t, i, finish_reason="stop")]) for p, t, i in zip(prompts, texts, ids, strict=True)]

    monkeypatch.setattr(room, "Engine", Oracle)
    found = evaluate(micro["model"], [suite])["problems"]
    half = len(problems) // 2 / len(problems)
    assert found["accuracy"] == half and found["standard_error"] == pytest.approx(math.sqrt(half * (1 - half) / len(problems)))
    assert 0 < found["thinking_tokens"] < found["response_tokens"]
    assert [sample["ok"] for sample in found["samples"]] == [True, False]


def test_sampled_accuracy_is_the_mean_share_of_right_draws(micro, monkeypatch):
    """Problem k of ten gets k % 5 right answers among four (four when k % 5 is 4): the mean share is one half."""
    suite = ProblemSuite(tasks={"addition": {}}, per_task=10, draws=4)
    problems = problems_of(suite)
    assert len(problems) == 10

    class Oracle:
        def __init__(self, lm, tokenizer, **kwargs):
            pass

        def generate(self, prompts, params):
            from model.engine import CompletionOutput, RequestOutput

            if not isinstance(params, list):
                return [RequestOutput(p, [CompletionOutput(0, "", [1], finish_reason="stop")]) for p in prompts]
            assert len({one.seed for one in params}) == 10 and all((one.n, one.temperature) == (4, 1.0) for one in params)
            texts = [[f"{p.reasoning}\n</think>\n{p.answer if n < k % 5 else 'none'}" for n in range(4)] for k, p in enumerate(problems)]
            drawn = [[CompletionOutput(n, t, [1], finish_reason="stop") for n, t in enumerate(group)] for group in texts]
            return [RequestOutput(p, group) for p, group in zip(prompts, drawn, strict=True)]

    monkeypatch.setattr(room, "Engine", Oracle)
    found = evaluate(micro["model"], [suite])["problems"]
    assert found["accuracy"] == 0.0 and found["sampled_accuracy"] == pytest.approx(0.5)
    assert found["sampled_standard_error"] == pytest.approx(math.sqrt(0.125 / 10))


def test_text_loss_equals_a_literal_computation(micro):
    lm, tokenizer = load_model(micro["model"])
    nats = tokens = size = 0
    for batch in Dataset.open(micro["text"]).batches(columns=["text"]):
        for text in batch.column("text").to_pylist()[:5]:
            ids = encode(tokenizer, text)
            for start in range(0, len(ids) - 1, 64):
                piece = torch.tensor(ids[start : start + 65])
                with torch.no_grad():
                    nats += float(F.cross_entropy(lm(piece[None, :-1])[0].double(), piece[1:], reduction="sum"))
                tokens += len(piece) - 1
                size += len(tokenizer.decode(piece[1:].tolist()).encode())
        break
    suite = TextSuite(documents=micro["text"], sequence_length=64, batch_size=tokens // 64 + 5, max_tokens=1)
    rows = room._document_batches(tokenizer, suite)
    first = next(rows)
    found = evaluate(micro["model"], [suite], precision="fp32")["text"]
    assert found["tokens"] == int(first[2].sum()) and found["tokens"] >= tokens
    literal = 0.0
    for ids, labels, mask in zip(*first[:3], strict=True):
        with torch.no_grad():
            losses = F.cross_entropy(lm(ids[None])[0].double(), labels, reduction="none")
        literal += float((losses * mask).sum())
    assert found["nats_per_token"] == pytest.approx(literal / found["tokens"], rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(literal / found["bytes"] / math.log(2), rel=1e-5)
    assert nats > 0 and size > 0


def test_token_bytes_add_up_to_the_text(micro):
    _, tokenizer = load_model(micro["model"])
    for text in ("the mill", "über naïve Straße 漢字 🙂", "12+34=46\n"):
        assert int(token_bytes(tokenizer)[encode(tokenizer, text)].sum()) == len(text.encode())
    assert token_bytes(tokenizer)[:16].sum() == 0


def test_a_dataset_of_problems(micro):
    suite = ProblemSuite(problems=micro["problems"])
    problems = problems_of(suite)
    assert len(problems) == len({p.id for p in problems}) > 20
    assert all(TASKS["addition"].check(p, p.response()).ok for p in problems)


def test_mistakes_are_named(micro, tmp_path):
    with pytest.raises(UserError, match="name a dataset"):
        evaluate(micro["model"], [ProblemSuite()])
    with pytest.raises(UserError, match="unknown task"):
        evaluate(micro["model"], [ProblemSuite(tasks={"sums": {}})])
    with pytest.raises(UserError, match="per_taks"):
        evaluate(micro["model"], [{"per_taks": 3}])
    with pytest.raises(UserError, match="not a model folder"):
        evaluate(str(tmp_path), [PROBLEMS])
