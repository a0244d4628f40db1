"""The compiled scan against the recurrence in float64: values and gradients, with documents, initial states, and sizes that are no whole vectors."""

import numpy as np
import pytest
import torch

from kernels import ssd as ssd_module
from kernels.ssd import ssd, ssd_reference, ssd_step
from kernels.ssd_scan import CHUNK

NAMES = ("x", "dt", "A", "B", "C", "D", "initial")


def inputs(length, groups=2, batch=2, heads=4, width=16, state=32, seed=0, decay=8.0):
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=g)
    uniform = lambda *shape: torch.rand(*shape, dtype=torch.float64, generator=g)
    tensors = (normal(batch, length, heads, width), uniform(batch, length, heads), -uniform(heads) * decay, normal(batch, length, groups, state),
               normal(batch, length, groups, state), normal(heads), normal(batch, heads, width, state))
    ids = torch.cumsum((uniform(batch, length) < 0.1).long(), 1)
    return tensors, ids, (normal(batch, length, heads, width), normal(batch, heads, width, state))


def graded(tensors, ids, weights, initial=True, run=ssd):
    leaves = [t.clone().requires_grad_() for t in tensors]
    y, last = run(*leaves[:6], seq_idx_BL=ids, initial_state_BHPN=leaves[6] if initial else None)
    ((y * weights[0].to(y.dtype)).sum() + (last * weights[1].to(y.dtype)).sum()).backward()
    return y, last, [leaf.grad for leaf in leaves]


def both(tensors, ids, weights, initial):
    return graded(tensors, ids, weights, initial, ssd_reference), graded([t.float() for t in tensors], ids, weights, initial)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("length, groups, width, state", [(3 * CHUNK + 13, 2, 16, 32), (CHUNK, 1, 48, 16), (7, 4, 8, 6), (1, 2, 64, 64), (2 * CHUNK + 1, 2, 80, 20)])
def test_scan_equals_recurrence(length, groups, width, state, packed, initial):
    tensors, ids, weights = inputs(length, groups, width=width, state=state)
    slow, fast = both(tensors, ids if packed else None, weights, initial)
    torch.testing.assert_close(fast[0], slow[0].float(), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(fast[1], slow[1].float(), rtol=1e-5, atol=2e-5)
    for name, mine, true in zip(NAMES, fast[2], slow[2]):
        if true is None:
            assert mine is None and name == "initial"
        else:
            assert (mine - true).abs().max() <= 5e-5 * max(true.abs().max(), 1.0), name


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("decay", [1.0, 16.0])
def test_bfloat16_inputs_cost_one_rounding(monkeypatch, decay, pairs):
    """Values and every gradient, that of log decay where it leaves next to nothing of the state too: within bfloat16's precision of float64 on the same inputs."""
    if not pairs:  # as on a machine that does not multiply them
        monkeypatch.setattr(ssd_module, "words_for", lambda dtype, *inner: np.empty(0, np.float32))
    tensors, ids, weights = inputs(3 * CHUNK + 13, width=64, state=32, decay=decay)
    rounded = tuple(t.bfloat16() if name in "xBC" else t for name, t in zip(NAMES, tensors))
    slow, fast = graded([t.double() for t in rounded], ids, weights, run=ssd_reference), graded(rounded, ids, weights)
    for name, mine, true in zip(("y", "last", *NAMES), (fast[0], fast[1], *fast[2]), (slow[0], slow[1], *slow[2])):
        assert (mine.double() - true).norm() <= 2**-7 * true.norm(), name


def test_strong_decay_gives_no_nan():
    """Decays far below the smallest float32 are zeros, not NaN."""
    tensors, ids, weights = inputs(64, decay=400.0)
    _, fast = both(tensors, None, weights, False)
    assert torch.isfinite(fast[0]).all() and all(torch.isfinite(g).all() for g in fast[2] if g is not None)


def test_memory_grows_with_length_alone():
    """All that torch allocates in a backward, at its peak, over length: the same bytes a position at 8 chunks as at 32, hence nothing of chunk x length."""
    def peak(length):
        tensors, _, _ = inputs(length, heads=8, width=16, state=16)
        leaves = [t.to(torch.float32, copy=True).requires_grad_() for t in tensors[:6]]
        y, _ = ssd(*leaves)
        slope = torch.ones_like(y)
        with torch.profiler.profile(profile_memory=True) as seen:
            torch.autograd.grad(y, leaves, slope)
        held = most = 0
        for event in seen.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                most = max(most, held)
        return most

    short, middle, long = (peak(chunks * CHUNK) for chunks in (8, 16, 32))
    assert 0 < long - middle == 2 * (middle - short)
    inputs_and_gradients = 4 * 2 * (2 * 8 * 16 + 2 * 2 * 16 + 4 * 8)  # bytes a position: x and dx of 8 heads, B and C's gradients, a few numbers a head
    assert (long - middle) / (16 * CHUNK) <= inputs_and_gradients


def test_steps_equal_recurrence():
    tensors, _, _ = inputs(9)
    expected, last = ssd_reference(*tensors[:6], initial_state_BHPN=tensors[6])
    x, dt, A, B, C, D, initial = (t.float() for t in tensors)
    states, rows = torch.full((5, *initial.shape[1:]), 7.0), torch.tensor([3, 1])
    states[rows] = initial
    y = torch.stack([ssd_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], D, states, rows) for t in range(9)], 1)
    torch.testing.assert_close(y, expected.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(states[rows], last.float(), rtol=1e-5, atol=1e-5)
    assert (states[[0, 2, 4]] == 7.0).all()
    ssd_step(x[:, 0], torch.zeros_like(dt[:, 0]), A, B[:, 0], C[:, 0], D, states, rows)
    torch.testing.assert_close(states[rows], last.float(), rtol=1e-5, atol=1e-5)
