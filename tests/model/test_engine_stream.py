"""Streaming, cancelling and requests that come and go: what is streamed is what `generate` returns."""
import numpy as np
import pytest
from engine_oracle import naive_greedy, prompts

from model.engine import Engine, SamplingParams
from model.engine.stream import TextReader


def test_stream_joins_to_what_generate_returns(lm, tokenizer):
    params = SamplingParams(n=3, seed=4, max_tokens=40, logprobs=True, top_logprobs=2, stop=["e", "ab"])
    wanted = Engine(lm, tokenizer, max_slots=4, max_length=64).generate([[20, 30]], params)[0]
    engine = Engine(lm, tokenizer, max_slots=2, max_length=64)
    deltas = list(engine.stream([20, 30], params))
    for output in wanted.outputs:
        mine = [d for d in deltas if d.index == output.index]
        assert "".join(d.text for d in mine) == output.text
        assert [i for d in mine for i in d.token_ids] == output.token_ids
        np.testing.assert_allclose([p for d in mine for p in d.logprobs], output.logprobs, atol=1e-4)
        assert [[i for i, _ in top] for d in mine for top in d.top_logprobs] == [[i for i, _ in top] for top in output.top_logprobs]
        assert [d.finish_reason for d in mine][:-1] == [None] * (len(mine) - 1) and mine[-1].finish_reason == output.finish_reason
    assert not engine.busy and not engine._readers


def test_requests_come_and_go_between_steps(lm, tokenizer):
    engine = Engine(lm, tokenizer, max_slots=3, max_length=64)
    greedy = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    given, requests, seen = prompts(6, seed=8), [], {}
    while engine.busy or len(requests) < len(given):
        if len(requests) < len(given):
            requests.append(engine.submit(given[len(requests)], greedy))
        for delta in engine.step():
            seen.setdefault(id(delta.request), []).extend(delta.token_ids)
    for prompt, request in zip(given, requests):
        assert request.finished and request.output.outputs[0].token_ids == seen[id(request)] == naive_greedy(lm, prompt, 9)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_cancel_frees_the_slot_at_once(lm, tokenizer, steps):
    engine = Engine(lm, tokenizer, max_slots=1, max_length=64)
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    first, second = engine.submit([20], greedy), engine.submit([21], greedy)
    for _ in range(steps):
        engine.step()
    engine.cancel(first)
    deltas = engine.step()
    assert [d.finish_reason for d in deltas if d.request is first] == ["abort"]
    assert [len(d.token_ids) for d in deltas if d.request is second] == [1], "the freed slot writes in the same step"
    assert first.output.outputs[0].token_ids == naive_greedy(lm, [20], 12)[:steps]
    while engine.busy:
        engine.step()
    assert second.output.outputs[0].token_ids == naive_greedy(lm, [21], 12)
    engine.cancel(second)  # finished: nothing happens
    assert second.output.outputs[0].finish_reason == "length" and not engine.busy


def test_leaving_a_stream_cancels_it(lm, tokenizer):
    engine = Engine(lm, tokenizer, max_slots=2, max_length=64)
    stream = engine.stream([20], SamplingParams(ignore_eos=True, max_tokens=50))
    delta = next(stream)
    stream.close()
    assert delta.request.output.outputs[0].finish_reason == "abort" and not engine.busy and not engine._readers


def test_reader_holds_back_half_characters_and_beginnings_of_stop_strings(tokenizer):
    reader = TextReader(tokenizer, ("STOP",))
    pieces = [reader.push([i]) for i in tokenizer.encode("é SO STé").ids]
    assert pieces == ["", "é", " ", "", "SO", " ", "", "", "", "STé"]
    assert reader.push(tokenizer.encode("STO").ids) == "" and reader.finish("é SO STéSTO") == "STO"
    broken = TextReader(tokenizer)
    ids = [16 + 0xC3, 16 + ord("a"), 16 + 0xFF, 16 + ord("b")]
    assert "".join(broken.push([i]) for i in ids) == tokenizer.decode(ids)
