"""The chunked scan against the recurrence in float64, values and gradients, with documents, initial states and spans."""

import pytest
import torch

from kernels import ssd as ssd_room
from kernels import ssd_scan
from kernels.ssd import ssd, ssd_reference, ssd_step


@pytest.fixture(params=["chunked", "compiled scan"], autouse=True)
def form(request, monkeypatch):
    """Every test here holds for both fast forms."""
    monkeypatch.setattr(ssd_scan, "MOST_STATE", 0 if request.param == "chunked" else 1 << 20)
    return request.param


NAMES = ("x", "dt", "A", "B", "C", "D", "initial")


def inputs(length, groups=2, batch=2, heads=4, width=8, state=6, seed=0, decay=8.0):
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=g)
    uniform = lambda *shape: torch.rand(*shape, dtype=torch.float64, generator=g)
    tensors = (normal(batch, length, heads, width), uniform(batch, length, heads), -uniform(heads) * decay, normal(batch, length, groups, state),
               normal(batch, length, groups, state), normal(heads), normal(batch, heads, width, state))
    ids = torch.cumsum((uniform(batch, length) < 0.1).long(), 1)
    return tensors, ids, (normal(batch, length, heads, width), normal(batch, heads, width, state))


def both(tensors, ids, weights, initial, chunk):
    results = []
    for run, dtype, options in ((ssd_reference, torch.float64, {}), (ssd, torch.float32, {"chunk_size": chunk})):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in tensors]
        y, last = run(*leaves[:6], seq_idx_BL=ids, initial_state_BHPN=leaves[6] if initial else None, **options)
        ((y * weights[0].to(dtype)).sum() + (last * weights[1].to(dtype)).sum()).backward()
        results.append((y, last, [leaf.grad for leaf in leaves]))
    return results


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("length, chunk, groups", [(45, 16, 2), (32, 32, 1), (7, 32, 4), (1, 16, 2)])
def test_chunked_equals_recurrence(length, chunk, groups, packed, initial):
    tensors, ids, weights = inputs(length, groups)
    slow, fast = both(tensors, ids if packed else None, weights, initial, chunk)
    torch.testing.assert_close(fast[0], slow[0].float(), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(fast[1], slow[1].float(), rtol=1e-5, atol=2e-5)
    for name, mine, true in zip(NAMES, fast[2], slow[2]):
        if true is None:
            assert mine is None and name == "initial"
        else:
            assert (mine - true).abs().max() <= 5e-5 * max(true.abs().max(), 1.0), name


def test_spans_carry_states_and_gradients(monkeypatch):
    monkeypatch.setattr(ssd_room, "SPAN_ELEMENTS", 1)  # one chunk at a time
    tensors, ids, weights = inputs(70, seed=3)
    slow, fast = both(tensors, ids, weights, True, 16)
    torch.testing.assert_close(fast[0], slow[0].float(), rtol=1e-5, atol=2e-5)
    for name, mine, true in zip(NAMES, fast[2], slow[2]):
        assert (mine - true).abs().max() <= 5e-5 * max(true.abs().max(), 1.0), name


def test_strong_decay_gives_no_nan():
    """exp of an unmasked future gap would be inf, and inf * 0 NaN."""
    tensors, ids, weights = inputs(64, decay=400.0)
    _, fast = both(tensors, None, weights, False, 64)
    assert torch.isfinite(fast[0]).all() and all(torch.isfinite(g).all() for g in fast[2] if g is not None)


def test_memory_kept_for_backward_does_not_hold_masks():
    """Saved tensors grow with length, not with length x chunk."""
    def saved(chunk):
        total = []
        tensors, _, _ = inputs(256, heads=8, width=4)
        leaves = [t.to(torch.float32, copy=True).requires_grad_() for t in tensors]
        with torch.autograd.graph.saved_tensors_hooks(lambda t: total.append(t.numel()) or t, lambda t: t):
            ssd(*leaves[:6], chunk_size=chunk)
        return sum(total)
    assert saved(128) <= saved(32)


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
