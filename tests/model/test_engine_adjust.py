"""Biases, penalties and tokens kept out, against the formulas on full forward passes; and without a trace in anybody else's sample."""
import numpy as np
import pytest
import torch
from engine_oracle import VOCABULARY, prompts

from model import chat
from model.engine import Engine, SamplingParams

EOS = {chat.SPECIAL_TOKENS.index(chat.EOS), chat.SPECIAL_TOKENS.index(chat.IM_END)}


def greedy(lm, prompt, new, change):
    """Greedy decoding by full passes; `change(logits, written)` is float64 numpy."""
    written = []
    with torch.no_grad():
        for _ in range(new):
            logits = lm(torch.tensor([prompt + written]))[0, -1].double().numpy()
            written.append(int(change(logits, written).argmax()))
    return written


def penalised(prompt, repetition=1.0, frequency=0.0, presence=0.0):
    def change(logits, written):
        for token in set(prompt) | set(written):
            logits[token] = logits[token] / repetition if logits[token] > 0 else logits[token] * repetition
        for token in set(written):
            logits[token] -= frequency * written.count(token) + presence
        return logits

    return change


@pytest.mark.parametrize("how", [{"frequency_penalty": 0.9}, {"presence_penalty": 1.5}, {"repetition_penalty": 1.8}, {"presence_penalty": -1.0, "frequency_penalty": 0.5, "repetition_penalty": 0.8}])
def test_penalties_are_the_formulas(lm, tokenizer, how):
    given = prompts(4, seed=8)
    outputs = Engine(lm, tokenizer, max_slots=3, max_length=64).generate(given, SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, **how))
    plain = Engine(lm, tokenizer, max_length=64).generate(given, SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    short = {name.removesuffix("_penalty"): value for name, value in how.items()}
    assert [o.outputs[0].token_ids for o in outputs] == [greedy(lm, p, 20, penalised(p, **short)) for p in given]
    assert any(a.outputs[0].token_ids != b.outputs[0].token_ids for a, b in zip(outputs, plain))


def test_bias_and_allowed_tokens(lm, tokenizer):
    given, bias = prompts(3, seed=9), {20: 5.0, 30: -100.0, 40: 4.5}

    def change(logits, written):
        for token, value in bias.items():
            logits[token] += value
        return logits

    def only(logits, written):
        return np.where(np.isin(np.arange(VOCABULARY), [50, 60, 70]), logits, -np.inf)

    engine = Engine(lm, tokenizer, max_slots=2, max_length=64)
    for params, wanted in ((SamplingParams(logit_bias=bias, temperature=0, max_tokens=8, ignore_eos=True), change),
                           (SamplingParams(allowed_token_ids=[50, 60, 70], temperature=0, max_tokens=8, ignore_eos=True), only)):
        assert [o.outputs[0].token_ids for o in engine.generate(given, params)] == [greedy(lm, p, 8, wanted) for p in given]
    drawn = engine.generate(given, SamplingParams(allowed_token_ids=[50, 60], n=4, max_tokens=10, seed=1, logprobs=True))
    assert {token for o in drawn for s in o.outputs for token in s.token_ids} == {50, 60}
    ids = given[0] + drawn[0].outputs[0].token_ids
    with torch.no_grad():
        reference = lm(torch.tensor([ids]))[0].log_softmax(-1)
    np.testing.assert_allclose(drawn[0].outputs[0].logprobs, [reference[i - 1, ids[i]] for i in range(len(given[0]), len(ids))], atol=1e-4, err_msg="the model's own")


def test_a_sample_does_not_end_before_min_tokens(lm, tokenizer):
    ends = SamplingParams(logit_bias=dict.fromkeys(EOS, 100.0), min_tokens=5, max_tokens=9, seed=3, stop_token_ids=[33])
    for output in Engine(lm, tokenizer, max_length=64).generate([[20], [21, 22]], ends):
        (sample,) = output.outputs
        assert len(sample.token_ids) == 6 and sample.token_ids[-1] in EOS and not ({33, *EOS} & {*sample.token_ids[:-1]}) and sample.finish_reason == "stop"


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_min_p_leaves_out_the_unlikely(lm, tokenizer, temperature):
    prompt, share = [20, 21, 22], 0.2
    drawn = Engine(lm, tokenizer, max_length=64).generate([prompt], SamplingParams(n=300, min_p=share, temperature=temperature, max_tokens=1, seed=4))[0]
    with torch.no_grad():
        p = (lm(torch.tensor([prompt]))[0, -1].double() / temperature).softmax(-1)
    kept = torch.nonzero(p >= share * p.max())[:, 0].tolist()
    assert {o.token_ids[0] for o in drawn.outputs} == set(kept) and 1 < len(kept) < VOCABULARY


def test_neighbours_are_not_touched_and_samples_repeat(lm, tokenizer):
    given = prompts(6, seed=10)
    each = [SamplingParams(seed=i, max_tokens=12, logprobs=True, n=1 + i % 2, **how) for i, how in enumerate(
        [{}, {"logit_bias": {25: 8.0}}, {"min_p": 0.1}, {"frequency_penalty": 1.0, "temperature": 0.5}, {"allowed_token_ids": [30, 31, 2]}, {"temperature": 0}])]
    together = Engine(lm, tokenizer, max_slots=4, max_length=64).generate(given, each)
    for prompt, params, output in zip(given, each, together):
        alone = Engine(lm, tokenizer, max_slots=2, max_length=64).generate([prompt], params)[0]
        assert [(o.token_ids, o.logprobs) for o in alone.outputs] == [(o.token_ids, o.logprobs) for o in output.outputs]


def test_what_makes_no_sense_is_refused(lm, tokenizer):
    for bad in ({"min_tokens": 9, "max_tokens": 8}, {"min_tokens": -1}, {"logit_bias": {1: float("nan")}}, {"frequency_penalty": 3}, {"presence_penalty": float("nan")},
                {"repetition_penalty": 0}, {"min_p": 1.1}, {"allowed_token_ids": []}, {"min_tokens": 1, "regex": "a"}, {"allowed_token_ids": [1], "json_schema": {}}):
        with pytest.raises(ValueError):
            SamplingParams(**bad)
    engine = Engine(lm, tokenizer, max_length=32)
    for bad in ({"logit_bias": {VOCABULARY: 1.0}}, {"allowed_token_ids": [-1]}):
        with pytest.raises(ValueError, match=r"must lie in 0\.\.271"):
            engine.submit([20], SamplingParams(**bad))
    nothing_left = SamplingParams(allowed_token_ids=[min(EOS)], min_tokens=3, max_tokens=4)
    assert engine.generate([[20]], nothing_left)[0].outputs[0].token_ids, "whatever it is: the engine lives"
