"""Reading prompts: in chunks, from remembered beginnings, and when memory allows; what is written stays the same."""
import numpy as np
import pytest
import torch
from engine_oracle import VOCABULARY, naive_greedy, small_lm
from hypothesis import given, settings
from hypothesis import strategies as st

from model.cache import Cache
from model.engine import Engine, SamplingParams
from model.engine.prefix import BLOCK

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


def tokens(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(16, VOCABULARY, count).tolist()


def test_decode_equals_chunks_equals_one_pass(lm):
    ids = torch.tensor([tokens(150, 1)])
    with torch.inference_mode():
        full = lm(ids)[0]
        one_by_one, chunked = Cache(lm, 1, 150), Cache(lm, 1, 150)
        decoded = torch.cat([lm(ids[:, t:t + 1], cache=one_by_one)[0] for t in range(150)])
        pieces = torch.cat([lm(piece, cache=chunked)[0] for piece in ids.split([64, 1, 63, 22], 1)])
    scale = full.abs().max()
    assert (decoded - full).abs().max() < 1e-5 * scale and (pieces - full).abs().max() < 1e-5 * scale


def test_long_prompts_are_read_in_bounded_steps_while_others_write(lm, tokenizer, monkeypatch):
    engine = Engine(lm, tokenizer, max_slots=3, max_length=600, prefill_tokens=128)
    widths, hidden = [], lm.hidden
    monkeypatch.setattr(lm, "hidden", lambda ids, **kw: widths.append(tuple(ids.shape)) or hidden(ids, **kw))
    watched = {"temperature": 0, "ignore_eos": True, "logprobs": True}  # greedy tokens alone would come from a call of their own
    short, long = (engine.submit(tokens(n, n), SamplingParams(max_tokens=new, **watched)) for n, new in ((5, 8), (500, 6)))
    while engine.busy:
        engine.step()
    assert max(a * b for a, b in widths) <= 128
    assert widths[:6] == [(1, 5), (1, 1), (1, 128), (1, 1), (1, 128), (1, 1)], "chunks alternate with everybody's next token"
    for request, new in ((short, 8), (long, 6)):
        assert request.output.outputs[0].token_ids == naive_greedy(lm, request.output.prompt_token_ids, new)


def test_a_chunked_prompt_survives_neighbours_leaving_and_can_be_cancelled(lm, tokenizer):
    engine = Engine(lm, tokenizer, max_slots=4, max_length=400, prefill_tokens=64)
    early = [engine.submit(tokens(4, i), SamplingParams(temperature=0, max_tokens=1 + i, ignore_eos=True)) for i in range(1, 3)]
    long = engine.submit(tokens(300, 9), SamplingParams(n=2, temperature=0, max_tokens=6, ignore_eos=True))
    dropped = engine.submit(tokens(300, 10), GREEDY)
    for _ in range(3):
        engine.step()
    engine.cancel(dropped)
    while engine.busy:
        engine.step()
    for request in early:
        output = request.output.outputs[0]
        assert output.token_ids == naive_greedy(lm, request.output.prompt_token_ids, len(output.token_ids))
    assert [o.token_ids for o in long.output.outputs] == [naive_greedy(lm, long.output.prompt_token_ids, 6)] * 2
    assert dropped.output.outputs[0].finish_reason == "abort"


@pytest.mark.parametrize("prefill", [128, 8192])
def test_shared_beginnings_are_read_once_and_change_nothing(lm, tokenizer, prefill):
    system = tokens(3 * BLOCK + 10, 4)
    asked = [system + tokens(n, 20 + n) for n in (5, 40, 90, 5, 150, 7)] + [system]
    plain = Engine(lm, tokenizer, max_slots=2, max_length=500).generate(asked, GREEDY)
    engine = Engine(lm, tokenizer, max_slots=2, max_length=500, prefix_bytes=1 << 24, prefill_tokens=prefill)
    for _ in range(2):
        assert [o.outputs[0].token_ids for o in engine.generate(asked, GREEDY)] == [o.outputs[0].token_ids for o in plain]
    store = engine.scheduler.prefixes
    assert store.reused > store.read and store.nbytes == sum(b.nbytes for b in store.blocks.values())
    turn = asked[4] + plain[4].outputs[0].token_ids + tokens(3, 1)  # the next turn of a conversation
    read = store.read
    assert engine.generate([turn], GREEDY)[0].outputs[0].token_ids == naive_greedy(lm, turn, 6)
    assert store.read - read < 2 * BLOCK


def test_remembered_bytes_are_bounded_and_weights_invalidate_them(tokenizer):
    lm = small_lm()
    engine = Engine(lm, tokenizer, max_slots=2, max_length=500, prefix_bytes=200_000)
    for seed in range(12):
        engine.generate([tokens(200, seed)], GREEDY)
    store = engine.scheduler.prefixes
    assert 0 < store.nbytes <= 200_000
    prompt = tokens(200, 11)
    before = store.reused
    engine.generate([prompt], GREEDY)
    assert store.reused > before
    with torch.no_grad():
        lm.layers[0].mixer.in_proj.weight.mul_(1.5)  # a trainer's step
    assert engine.generate([prompt], GREEDY)[0].outputs[0].token_ids == naive_greedy(lm, prompt, 6)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 140), st.integers(0, 3)), min_size=1, max_size=6), st.sampled_from([64, 100, 1000]), st.booleans())
def test_any_mix_of_prompts(shapes, prefill, remember):
    lm, tokenizer = _mix()
    asked = [tokens(BLOCK * family, 100 + family) + tokens(length, length) for length, family in shapes]
    engine = Engine(lm, tokenizer, max_slots=3, max_length=400, prefill_tokens=prefill, prefix_bytes=500_000 * remember)
    short = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    assert [o.outputs[0].token_ids for o in engine.generate(asked, short)] == [naive_greedy(lm, p, 2) for p in asked]


def _mix(made=[]):  # noqa: B006  (made once)
    from engine_oracle import byte_tokenizer

    if not made:
        made.append((small_lm(), byte_tokenizer()))
    return made[0]


def test_admission_waits_for_memory(lm, tokenizer):
    cache = Cache(lm, 1, 64)
    each = cache.bytes_of(10 + 6)
    assert each == sum(t[0].nbytes for s in cache.layers if s is not None and hasattr(s, "ssm") for t in (s.conv, s.ssm)) + \
        16 * sum(2 * s.keys.shape[1] * s.keys.shape[3] * 4 for s in cache.layers if s is not None and hasattr(s, "keys"))
    engine = Engine(lm, tokenizer, max_slots=8, max_length=64, memory=2 * each)
    requests = [engine.submit(tokens(10, i), GREEDY) for i in range(5)]
    most = 0
    while engine.busy:
        engine.step()
        most = max(most, len(engine.scheduler.running))
    assert most == 2
    assert all(r.output.outputs[0].token_ids == naive_greedy(lm, r.output.prompt_token_ids, 6) for r in requests)
    with pytest.raises(ValueError, match="memory"):
        Engine(lm, tokenizer, max_slots=8, max_length=64, memory=each).submit(tokens(40, 1), SamplingParams(max_tokens=23))


def test_weights_swapped_between_steps_are_recorded_per_token(tokenizer):
    lm, other = small_lm(), small_lm()
    engine = Engine(lm, tokenizer, max_slots=2, max_length=64)
    new = {name: value * (1.3 if "lm_head" in name else 1.0) + 0.0 for name, value in other.state_dict().items()}
    new["lm_head.weight"] = new["lm_head.weight"].roll(1, 0)
    request = engine.submit([20, 21], SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    for _ in range(3):
        engine.step()
    before = list(request.sequences[0].prompt_ids), engine.scheduler.written(request.sequences[0])[0]
    assert engine.swap_weights(new) == 1
    while engine.busy:
        engine.step()
    output = request.output.outputs[0]
    assert output.weights_versions == [0, 0, 0, 1, 1, 1] and output.token_ids[:3] == before[1]
    other.load_state_dict(new)
    assert output.token_ids[3:] == naive_greedy(other, before[0] + before[1], 3), "only the head changed, so the states are those of the new weights too"
    with pytest.raises(ValueError, match="no such parameter"):
        engine.swap_weights({"nothing": torch.zeros(1)})
    with pytest.raises(ValueError, match="shape"):
        engine.swap_weights({"lm_head.weight": torch.zeros(1)})


@pytest.mark.parametrize("starts", [[0, 0], [70, 70], [3, 90]])
def test_chunks_behind_a_context_equal_masked_attention(starts):
    """Two rows, a chunk of 40 positions each, the second one shorter; plain softmax over all that may be seen is the oracle."""
    from model import HybridConfig
    from model.attention import Attention
    from model.cache import Step

    config = HybridConfig.tiny(vocab_size=64, pattern="*", num_attention_heads=4, num_key_value_heads=2)
    layer, generator = Attention(config), torch.Generator().manual_seed(sum(starts))
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 8
    x = torch.randn(2, 140, config.hidden_size, generator=generator)
    cache = Cache(config, 2, 140)
    (state,) = cache.layers
    with torch.inference_mode():
        full = layer(x)
        for row, start in enumerate(starts):
            if start:
                step = Step(cache, 1, start, [row], None)
                layer(x[row:row + 1, :start], state=state, step=step)
                step.close(cache)
        step = Step(cache, 2, 40, None, [40, 25])
        got = layer(torch.stack([x[row, start:start + 40] for row, start in enumerate(starts)]), state=state, step=step)
    for row, (start, real) in enumerate(zip(starts, (40, 25))):
        torch.testing.assert_close(got[row, :real], full[row, start:start + real], atol=1e-5, rtol=1e-5)
