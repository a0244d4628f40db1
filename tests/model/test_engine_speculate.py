"""Guessing ahead changes when tokens come, never which."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_oracle import VOCABULARY, naive_greedy, prompts, small_lm
from scipy import stats

from kernels.ssd import ssd_reference
from kernels.ssd_draft import ssd_draft
from model.cache import Cache
from model.engine import Engine, SamplingParams
from model.engine.speculate import Payoff


@pytest.fixture(scope="module")
def guessing_lm():
    return small_lm(mtp_depth=2, mtp_pattern="*E")


def test_draft_states_equal_the_recurrence():
    generator = torch.Generator().manual_seed(3)
    batch, length, heads, width, groups, size = 3, 5, 4, 8, 2, 16
    x, B, C = (torch.randn(batch, length, *shape, generator=generator) for shape in ((heads, width), (groups, size), (groups, size)))
    dt, A, D = torch.rand(batch, length, heads, generator=generator), -torch.rand(heads, generator=generator), torch.randn(heads, generator=generator)
    state = torch.randn(6, heads, width, size, generator=generator)
    kept, rows = state.clone(), torch.tensor([4, 0, 3])
    y, states = ssd_draft(x, dt, A, B, C, D, state, rows)
    assert torch.equal(state, kept)
    for n in range(1, length + 1):
        wanted_y, wanted = ssd_reference(x[:, :n].double(), dt[:, :n].double(), A.double(), B[:, :n].double(), C[:, :n].double(), D.double(),
                                         initial_state_BHPN=state[rows].double())
        torch.testing.assert_close(states[:, n - 1].double(), wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(y[:, :n].double(), wanted_y, atol=1e-5, rtol=1e-5)


def test_accepting_some_equals_having_read_only_those(lm):
    ids = torch.randint(16, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
    counts = [1, 3, 4]
    with torch.inference_mode():
        cache = Cache(lm, 3, 16)
        lm.hidden(ids[:, :5], cache=cache)
        tentative = lm.hidden(ids[:, 5:], cache=cache, tentative=True)
        cache.accept(counts)
        assert cache.lengths.tolist() == [6, 8, 9]
        after = lm(torch.full((3, 1), 20), cache=cache)
        torch.testing.assert_close(tentative, lm.hidden(ids)[:, 5:], atol=1e-5, rtol=1e-5)
        for row, count in enumerate(counts):
            alone = lm(torch.cat([ids[row:row + 1, :5 + count], torch.tensor([[20]])], 1))[0, -1]
            torch.testing.assert_close(after[row, 0], alone, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("guesses", [1, 3])
def test_greedy_is_plain_decoding(guessing_lm, tokenizer, guesses, monkeypatch):
    """In one compiled call a round, on one thread or two, and (as soon as anything but tokens is asked for) in several: the same tokens and guesses."""
    given, accepted = prompts(7, seed=12), []
    wanted = [naive_greedy(guessing_lm, p, 15) for p in given]
    monkeypatch.setattr("kernels.bits.PARALLEL_ELEMENTS", 1)
    for threads, more in ((1, {}), (2, {}), (1, {"logprobs": True})):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        engine = Engine(guessing_lm, tokenizer, max_slots=3, max_length=64, guesses=guesses, always_guess=True)
        outputs = engine.generate(given, SamplingParams(temperature=0, max_tokens=15, ignore_eos=True, **more))
        assert [o.outputs[0].token_ids for o in outputs] == wanted
        accepted.append(engine.scheduler.drafter.payoff.acceptance_length)
    assert 1 <= accepted[0] == accepted[1] == accepted[2] <= guesses + 1


def test_every_kind_of_request_is_served_alike(guessing_lm, tokenizer):
    """Sampling, truncation, stop strings, budgets, logprobs, several samples: token for token what the plain engine writes."""
    given = [*prompts(6, seed=13), tokenizer.encode("<think>\n").ids]
    each = [SamplingParams(n=3, seed=1, max_tokens=20), SamplingParams(seed=2, temperature=0.6, top_k=9, max_tokens=25), SamplingParams(seed=3, max_tokens=1),
            SamplingParams(seed=4, top_p=0.8, max_tokens=30, stop=["e", "1"]), SamplingParams(seed=5, logprobs=True, max_tokens=11),
            SamplingParams(seed=6, max_tokens=40, stop_token_ids=list(range(30, 60))), SamplingParams(seed=7, thinking_budget=5, thinking_grace=3, max_tokens=20)]
    plain = Engine(guessing_lm, tokenizer, max_slots=4, max_length=64).generate(given, each)
    guessed = Engine(guessing_lm, tokenizer, max_slots=4, max_length=64, guesses=2, always_guess=True).generate(given, each)
    for a, b in zip(plain, guessed):
        for x, y in zip(a.outputs, b.outputs):
            assert (x.token_ids, x.text, x.finish_reason, x.stop_reason, x.forced_positions) == \
                (y.token_ids, y.text, y.finish_reason, y.stop_reason, y.forced_positions)
            if x.logprobs:
                np.testing.assert_allclose(x.logprobs, y.logprobs, atol=1e-4)


def test_good_guesses_are_taken(tokenizer, guessing_lm, monkeypatch):
    """With guesses that are right, a round writes all of them; the tokens are the same ones."""
    prompt, new = [40, 41, 42], 24
    wanted = naive_greedy(guessing_lm, prompt, new + 4)
    engine = Engine(guessing_lm, tokenizer, max_slots=1, max_length=64, guesses=3, always_guess=True)
    drafter = engine.scheduler.drafter

    def oracle(first, hidden, tokens, counts, choose):
        written = int(engine.scheduler.slots.written[0])
        drafter.tokens_SK[0] = wanted[written:written + 3]

    monkeypatch.setattr(drafter, "guess", oracle)
    wants = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, logprobs=True)  # what only tokens are asked of is guessed by compiled code
    output = engine.generate([prompt], wants)[0].outputs[0]
    assert output.token_ids == wanted[:new] and drafter.payoff.acceptance_length > 3.8


def test_sampled_distribution_is_the_models(tokenizer):
    """Pairs of the second and third token (one guessed, one perhaps) on a small vocabulary, against the exact probabilities."""
    lm = small_lm(mtp_depth=2, mtp_pattern="*E", pattern="M*")
    allowed = list(range(20, 24))
    with torch.no_grad():
        lm.lm_head.weight *= 0.5
        head = lm.lm_head.weight[allowed].clone()
        lm.lm_head.weight.zero_()
        lm.lm_head.weight[allowed] = head
        exact = np.zeros((4, 4))
        first = lm(torch.tensor([[30]]))[0, -1].double().softmax(-1)
        for i in range(VOCABULARY):
            exact_i = lm(torch.tensor([[30, i]]))[0, -1].double().softmax(-1)
            if i in allowed:
                exact[allowed.index(i)] = (first[i] * exact_i[allowed]).numpy()
    engine = Engine(lm, tokenizer, max_slots=256, max_length=8, guesses=2, always_guess=True, seed=5)
    drawn = [o.token_ids for o in engine.generate([[30]], SamplingParams(n=6000, seed=3, max_tokens=2, ignore_eos=True))[0].outputs]
    seen = np.zeros((4, 4))
    for a, b in drawn:
        if a in allowed and b in allowed:
            seen[allowed.index(a), allowed.index(b)] += 1
    others, expected = len(drawn) - seen.sum(), exact * len(drawn)
    assert stats.chisquare([*seen.ravel(), others], [*expected.ravel(), len(drawn) - expected.sum()]).pvalue > 1e-3


def test_guessing_stops_where_it_does_not_pay_and_is_tried_again():
    good, bad = Payoff(), Payoff()
    for payoff, tokens in ((good, 2.4), (bad, 1.1)):
        took = []
        for _ in range(2400):
            guess = payoff.next(1)
            took.append(guess)
            payoff.note(1, guess, 1.8 if guess else 1.0, tokens if guess else 1)
        share = np.mean(took[2 * Payoff.FIRST:])
        assert share > 0.97 if tokens > 2 else share < 0.03
    assert sum(took[2 * Payoff.FIRST:]) > 0, "the loser is probed"


def test_models_without_the_block_say_so(lm, tokenizer):
    with pytest.raises(ValueError, match="multi-token-prediction"):
        Engine(lm, tokenizer, guesses=2)
    mamba = replace(small_lm(mtp_depth=2).config, mtp_pattern="M")
    with pytest.raises(ValueError, match="Mamba"):
        Engine(type(lm)(mamba), tokenizer, guesses=1)
