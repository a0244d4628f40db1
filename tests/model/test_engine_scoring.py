"""Prompts are scored as one full forward pass scores them, bit for bit alike however they are read."""
import numpy as np
import pytest
import torch
from engine_oracle import VOCABULARY, small_lm

from model.engine import Engine, SamplingParams, sampling, scoring

SHORT = {"max_tokens": 2, "temperature": 0, "ignore_eos": True}


def tokens(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(16, VOCABULARY, count).tolist()


def wanted(lm, ids: list[int]) -> torch.Tensor:
    """log softmax of one pass without a cache, of every position but the last, [T-1,V]."""
    with torch.no_grad():
        return lm(torch.tensor([ids]))[0, :-1].log_softmax(-1)


def test_scores_are_those_of_a_full_pass(tokenizer):
    lm, ids = small_lm(initializer_range=0.1), tokens(150, 1)
    output = Engine(lm, tokenizer, max_length=200).generate([ids], SamplingParams(prompt_logprobs=3, **SHORT))[0]
    reference = wanted(lm, ids)
    assert output.prompt_logprobs[0] is None and output.prompt_top_logprobs[0] is None and len(output.prompt_logprobs) == len(output.prompt_top_logprobs) == 150
    np.testing.assert_allclose(output.prompt_logprobs[1:], reference[range(149), ids[1:]], atol=1e-5)
    values, best = reference.topk(3)
    assert [[token for token, _ in top] for top in output.prompt_top_logprobs[1:]] == best.tolist()
    np.testing.assert_allclose([[value for _, value in top] for top in output.prompt_top_logprobs[1:]], values, atol=1e-5)
    for token, value, top in zip(ids[1:], output.prompt_logprobs[1:], output.prompt_top_logprobs[1:]):
        assert value == dict(top).get(token, value), "a token has one log-probability"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", [{}, {"prefill_tokens": 64}, {"prefill_tokens": 100, "prefix_bytes": 1 << 22}, {"max_slots": 2, "prefix_bytes": 1 << 22}, {"rows": 7}])
def test_scores_do_not_depend_on_how_prompts_are_read(tokenizer, monkeypatch, how, dtype):
    lm = small_lm()
    lm.compute_dtype = dtype
    shared = tokens(130, 2)
    prompts = [shared + tokens(n, n) for n in (1, 60, 170)] + [tokens(1, 3), tokens(2, 4), shared + tokens(60, 60)]
    scored = SamplingParams(prompt_logprobs=2, logprobs=True, n=2, seed=1, **SHORT)
    alone = [Engine(lm, tokenizer, max_slots=2, max_length=400).generate([prompt], scored)[0] for prompt in prompts]
    if "rows" in how:
        monkeypatch.setattr(scoring, "LOGIT_BYTES", how["rows"] * 4 * VOCABULARY)
    engine = Engine(lm, tokenizer, **{"max_slots": 5, "max_length": 400} | {key: value for key, value in how.items() if key != "rows"})
    engine.generate(prompts, SamplingParams(**SHORT))  # what follows could be taken from remembered prefixes
    for expected, got in zip(alone, engine.generate(prompts, scored)):
        assert (got.prompt_logprobs, got.prompt_top_logprobs) == (expected.prompt_logprobs, expected.prompt_top_logprobs)
        assert [o.logprobs for o in got.outputs] == [o.logprobs for o in expected.outputs]
    if engine.prefix_bytes:
        reused = engine.scheduler.prefixes.reused
        engine.generate(prompts, SamplingParams(**SHORT))
        assert engine.scheduler.prefixes.reused > reused, "a scored prompt is remembered too"


def test_equal_prompts_are_scored_for_those_who_ask(lm, tokenizer):
    ids = tokens(40, 5)
    each = [SamplingParams(**SHORT), SamplingParams(prompt_logprobs=0, **SHORT), SamplingParams(prompt_logprobs=1, **SHORT)]
    none, plain, top = Engine(lm, tokenizer, max_length=100).generate([ids] * 3, each)
    assert none.prompt_logprobs is None and plain.prompt_top_logprobs is None and plain.prompt_logprobs == top.prompt_logprobs
    assert [len(entry or []) for entry in top.prompt_top_logprobs] == [0] + [1] * 39


def test_logits_are_made_a_bounded_number_at_a_time(lm, tokenizer, monkeypatch):
    monkeypatch.setattr(scoring, "LOGIT_BYTES", 16 * 4 * VOCABULARY)
    widths, logits = [], lm.logits
    monkeypatch.setattr(lm, "logits", lambda hidden: widths.append(hidden.shape[:-1].numel()) or logits(hidden))
    Engine(lm, tokenizer, max_length=400, prefill_tokens=128).generate([tokens(300, 6)], SamplingParams(prompt_logprobs=0, **SHORT))
    assert max(widths) == 16 and sum(widths) == 299 + 1  # and the first new token; the second is chosen in the compiled step


def test_guessing_changes_no_score(tokenizer):
    lm = small_lm(pattern="M*", mtp_depth=1, mtp_pattern="*E")
    ids, scored = tokens(70, 7), SamplingParams(prompt_logprobs=1, **SHORT)
    plain, guessing = (Engine(lm, tokenizer, max_length=100, **how).generate([ids], scored)[0] for how in ({}, {"guesses": 2, "always_guess": True}))
    assert (plain.prompt_logprobs, plain.prompt_top_logprobs) == (guessing.prompt_logprobs, guessing.prompt_top_logprobs)


def test_scores_are_there_when_the_first_token_is(lm, tokenizer):
    engine = Engine(lm, tokenizer, max_length=300, prefill_tokens=64)
    request = engine.submit(tokens(200, 8), SamplingParams(prompt_logprobs=0, max_tokens=3, ignore_eos=True))
    while not (deltas := engine.step()):
        pass
    assert deltas[0].request is request and None not in request.output.prompt_logprobs[1:]
    with pytest.raises(ValueError, match="prompt_logprobs"):
        SamplingParams(prompt_logprobs=-1)


def test_one_long_row_sums_as_it_does_among_others():
    """By itself torch would give each thread a piece of it."""
    before = torch.get_num_threads()
    logits = torch.randn(5, 131_072, generator=torch.Generator().manual_seed(0)) * 8
    try:
        torch.set_num_threads(2)
        together = sampling.normalisers(logits)
        assert torch.equal(torch.cat([sampling.normalisers(row[None]) for row in logits]), together)
        torch.set_num_threads(1)
        assert torch.equal(sampling.normalisers(logits), together)
    finally:
        torch.set_num_threads(before)
