"""The engine against a loop of full forward passes, against itself alone and in a batch, and against the softmax."""
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_oracle import SPACE, VOCABULARY, naive_greedy, prompts
from scipy import stats

from model import HybridConfig
from model.engine import Engine, SamplingParams, sampling
from model.engine.budget import ThinkingBudget


def test_greedy_equals_full_forward_passes(lm, tokenizer):
    given = prompts(9)
    wanted = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    outputs = Engine(lm, tokenizer, max_slots=4, max_length=64).generate(given, wanted)  # fewer slots than prompts: refill and moves
    assert [o.outputs[0].token_ids for o in outputs] == [naive_greedy(lm, p, 12) for p in given]
    assert all(o.outputs[0].finish_reason == "length" for o in outputs)


def test_many_rounds_a_call_write_what_single_ones_do(lm, tokenizer, monkeypatch):
    """More requests than slots, ended by stop tokens and by their limits, on one thread and on two."""
    given = prompts(9, seed=31)
    each = [SamplingParams(temperature=0, max_tokens=3 + 7 * i, stop_token_ids=list(range(16 + i, 60, 9))) for i in range(9)]
    written = []
    monkeypatch.setattr("kernels.bits.PARALLEL_ELEMENTS", 1)
    for rounds, threads in ((1, 1), (16, 1), (16, 2)):
        monkeypatch.setattr("model.engine.engine.ROUNDS", rounds)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        outputs = [o.outputs[0] for o in Engine(lm, tokenizer, max_slots=4, max_length=128).generate(given, each)]
        written.append([(o.token_ids, o.finish_reason, o.stop_reason) for o in outputs])
    assert written[0] == written[1] == written[2]
    assert {reason for _, reason, _ in written[0]} == {"length", "stop"}


def test_same_sample_alone_and_in_any_batch(lm, tokenizer):
    given = prompts(7, seed=1)
    rng = np.random.default_rng(2)
    each = [SamplingParams(n=int(rng.integers(1, 4)), temperature=t, top_k=k, top_p=p, max_tokens=int(rng.integers(3, 25)), seed=i, logprobs=True)
            for i, (t, k, p) in enumerate([(1, 0, 1), (0.7, 5, 1), (1.3, 0, 0.8), (0, 0, 1), (1, 40, 0.9), (2.0, 0, 0.99), (1, 1, 1)])]
    together = Engine(lm, tokenizer, max_slots=5, max_length=64).generate(given, each)
    engine = Engine(lm, tokenizer, max_slots=3, max_length=64)
    for prompt, params, output in zip(given, each, together):
        alone = engine.generate([prompt], params)[0]
        assert [o.token_ids for o in alone.outputs] == [o.token_ids for o in output.outputs]
        assert [o.logprobs for o in alone.outputs] == [o.logprobs for o in output.outputs], "bit for bit"
    one = engine.generate([given[0]], SamplingParams(n=3, seed=0, max_tokens=20))[0].outputs
    assert len({tuple(o.token_ids) for o in one}) == 3, "samples of one request differ"


def test_calls_repeat_bit_for_bit_and_unseeded_requests_differ(lm, tokenizer):
    wanted = SamplingParams(max_tokens=16, logprobs=True)
    first, second = (Engine(lm, tokenizer, max_slots=4, max_length=64, seed=3).generate([[20]] * 6, wanted) for _ in range(2))
    assert [o.outputs for o in first] == [o.outputs for o in second]
    assert len({tuple(o.outputs[0].token_ids) for o in first}) == 6


@pytest.mark.parametrize("how", [{"temperature": 0.5, "top_k": 20}, {"temperature": 1.0}, {"temperature": 0.0}])
def test_logprobs_are_the_models_own(lm, tokenizer, how):
    prompt = prompts(1, seed=4)[0]
    sample = Engine(lm, tokenizer, max_length=64).generate([prompt], SamplingParams(max_tokens=10, seed=1, logprobs=True, top_logprobs=3, **how))[0].outputs[0]
    ids = torch.tensor([prompt + sample.token_ids])
    with torch.no_grad():
        reference = lm(ids)[0].log_softmax(-1)
    wanted = [float(reference[len(prompt) - 1 + i, t]) for i, t in enumerate(sample.token_ids)]
    np.testing.assert_allclose(sample.logprobs, wanted, atol=1e-4)
    values, tokens = reference[len(prompt) - 1:-1].topk(3)
    assert [[token for token, _ in top] for top in sample.top_logprobs] == tokens.tolist()
    np.testing.assert_allclose([[value for _, value in top] for top in sample.top_logprobs], values, atol=1e-4)


@pytest.mark.parametrize("temperature,top_k,top_p", [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.7), (1.4, 12, 0.8)])
def test_sampling_follows_the_truncated_softmax(temperature, top_k, top_p):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, 40).astype(np.float32)
    count = 20_000
    uniform = sampling.uniforms(np.full(count, sampling.stream_key(11, 2), np.uint64), np.arange(count, dtype=np.uint64))
    drawn = sampling.sample(torch.from_numpy(np.tile(logits, (count, 1))), torch.full((count,), temperature), torch.full((count,), top_k),
                            torch.full((count,), top_p, dtype=torch.float64), torch.from_numpy(uniform))[0].numpy()
    order = np.argsort(-logits)
    scaled = logits.astype(np.float64)[order] / temperature  # oracle in float64, by sorting
    keep = np.arange(40) < (top_k or 40)
    weights = np.where(keep, np.exp(scaled - scaled.max()), 0)
    weights /= weights.sum()
    keep &= np.cumsum(weights) - weights < top_p
    weights = np.where(keep, weights, 0) / weights[keep].sum()
    observed = np.bincount(drawn, minlength=40)[order]
    assert observed[~keep].sum() == 0
    assert stats.chisquare(observed[keep], weights[keep] * count).pvalue > 1e-3


def test_nucleus_wider_than_the_first_look():
    """A flat distribution over 1000 tokens: top-p 0.5 keeps 500 of them, more than the 128 looked at first."""
    logits = torch.linspace(0, 1e-3, 1000).expand(4000, 1000)
    uniform = torch.from_numpy(sampling.uniforms(np.arange(4000, dtype=np.uint64), np.zeros(4000, np.uint64)))
    drawn = sampling.sample(logits, torch.ones(4000), torch.zeros(4000, dtype=torch.long), torch.full((4000,), 0.5, dtype=torch.float64), uniform)[0]
    assert 495 <= int(drawn.min()) <= 503 and int(drawn.max()) == 999


def test_ties_and_extremes():
    logits = torch.zeros(3, 8)
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    drawn = sampling.sample(logits, torch.ones(3), torch.full((3,), 1), torch.ones(3, dtype=torch.float64), uniform)[0]
    assert drawn.tolist() == [0, 4, 7], "tokens tied with the smallest kept one stay"
    certain = torch.full((1, 8), -torch.inf)
    certain[0, 3] = 0.0
    for u in (0.0, 1 - 2**-53):
        assert sampling.sample(certain, torch.ones(1), torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.float64), torch.tensor([u], dtype=torch.float64))[0].item() == 3


def test_uniforms_are_uniform_and_streams_unrelated():
    keys = np.array([sampling.stream_key(s, k) for s in range(100) for k in range(4)], dtype=np.uint64)
    assert len(set(keys.tolist())) == 400
    table = np.stack([sampling.uniforms(keys, np.full(400, t, np.uint64)) for t in range(50)])
    assert stats.kstest(table.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]) < 0.03
    assert sampling.stream_key(0, 1) != sampling.stream_key(1, 0) != sampling.stream_key((1 << 64) + 1, 0)


class Scripted(torch.nn.Module):
    """A stand-in model that writes a fixed line of tokens (token i of the script after i tokens beyond the prompt)."""

    def __init__(self, script: list[int], prompt_length: int, config) -> None:
        super().__init__()
        self.script, self.prompt_length, self.config = script, prompt_length, config
        self.unchanging, self.packed = nullcontext, lambda: None

    def logits(self, hidden):
        return hidden

    def hidden(self, ids, *, cache, slots=None, lengths=None, tentative=False):
        batch, width = ids.shape
        rows = list(range(batch)) if slots is None else slots
        new = torch.tensor([width] * batch if lengths is None else lengths)
        cache.lengths[rows] += new
        out = torch.zeros(batch, width, VOCABULARY)
        for i, row in enumerate(rows):
            out[i, int(new[i]) - 1, self.script[min(int(cache.lengths[row]) - self.prompt_length, len(self.script) - 1)]] = 9.0
        return out


def scripted(tokenizer, text: str, prompt: str, **params):
    config = replace(HybridConfig.tiny(vocab_size=VOCABULARY), pattern="M")
    ids = tokenizer.encode(prompt).ids
    lm = Scripted(tokenizer.encode(text).ids, len(ids), config)
    return Engine(lm, tokenizer, max_slots=2, max_length=200).generate([prompt], SamplingParams(temperature=0, **{"max_tokens": 100, **params}))[0].outputs[0]


@pytest.mark.parametrize("text,budget,grace,expected", [
    ("one\ntwo\nthree\n", 6, 20, "one\ntwo\n</think>"),            # the first newline after the budget (6 tokens: "\none\nt") ends thinking
    ("one two three four\n", 5, 4, "one two </think>"),             # no newline in time: cut at budget + grace = 9 (the prompt's newline counts)
    ("a</think>done", 50, 4, "a</think>"),                          # closes by itself: left alone
    ("one\n", 0, 4, "</think>"),                                    # nothing to think: the prompt's own newline is enough
])
def test_thinking_budget(tokenizer, text, budget, grace, expected):
    out = scripted(tokenizer, text, "<|im_start|>assistant\n<think>\n", thinking_budget=budget, thinking_grace=grace, max_tokens=30)
    assert out.text.startswith(expected) and out.text.count("</think>") == 1
    natural = text.startswith("a</think>")
    assert out.forced_positions == ([] if natural else [len(tokenizer.encode(expected).ids) - 1])


def test_thinking_that_starts_later_and_multi_token_ends():
    newline = np.zeros(50, bool)
    newline[9] = True
    budget = ThinkingBudget(2, think_id=12, end_ids=[20, 13])
    budget.enable(newline)
    budget.start(1, [3, 4], 2, 100)
    slots = np.array([1])
    written = []
    for sampled in (5, 12, 6, 7, 8, 9, 6, 6, 6):
        rows, forced = budget.forced(slots)
        token = np.array([forced[0] if len(rows) else sampled])
        budget.update(slots, token, rows)
        written.append(int(token[0]))
    assert written == [5, 12, 6, 7, 8, 9, 20, 13, 6]


def test_stop_strings_and_tokens(tokenizer):
    out = scripted(tokenizer, "alpha END omega<|im_end|>", "x", stop=["END", "omega"])
    assert (out.text, out.finish_reason, out.stop_reason) == ("alpha ", "stop", "END")
    out = scripted(tokenizer, "alpha<|im_end|>", "x")
    assert (out.text, out.finish_reason, out.stop_reason, out.token_ids[-1]) == ("alpha", "stop", 11, 11)
    out = scripted(tokenizer, "ab cd", "x", stop_token_ids=[SPACE])
    assert (out.text, out.stop_reason) == ("ab", SPACE)
    out = scripted(tokenizer, "naïve é!", "x", stop="é")
    assert out.text == "naïve " and out.stop_reason == "é"


def test_room_and_errors(lm, tokenizer):
    engine = Engine(lm, tokenizer, max_slots=2, max_length=16)
    assert len(engine.generate([[20] * 10], SamplingParams(ignore_eos=True))[0].outputs[0].token_ids) == 6
    for prompt, message in (([], "empty"), ([20] * 16, "no room"), ([VOCABULARY], "outside"), ("", "empty")):
        with pytest.raises(ValueError, match=message):
            engine.generate([prompt])
    for bad in ({"n": 0}, {"temperature": -1}, {"top_p": 0}, {"top_k": -2}, {"max_tokens": 0}, {"stop": ""}):
        with pytest.raises(ValueError):
            SamplingParams(**bad)
    assert engine.generate([[20]], SamplingParams(max_tokens=3))[0].outputs[0].token_ids, "still works after errors"


def test_training_mode_is_given_back(lm, tokenizer):
    lm.train()
    Engine(lm, tokenizer, max_slots=2, max_length=32).generate([[20]], SamplingParams(max_tokens=2))
    assert lm.training
    lm.eval()


def test_abort_frees_the_slot(lm, tokenizer):
    engine = Engine(lm, tokenizer, max_slots=2, max_length=64)
    kept, dropped = (engine.request([20 + i], SamplingParams(temperature=0, max_tokens=10, ignore_eos=True))[0] for i in range(2))
    engine.scheduler.add(dropped)
    engine.scheduler.add(kept)
    engine.scheduler.step()
    dropped.aborted = True
    while engine.scheduler.busy:
        engine.scheduler.step()
    assert dropped.output.finish_reason == "abort"
    assert kept.output.token_ids == naive_greedy(lm, kept.prompt_ids, 10)
