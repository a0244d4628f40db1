"""The GPU twin of the SSD scan, interpreted, against the recurrence in float64: values, gradients, documents, states, and the decoding step."""

import pytest
import torch

from kernels.ssd import ssd, ssd_reference, ssd_step

NAMES = ("x", "dt", "A", "B", "C", "D", "initial")
pytestmark = pytest.mark.usefixtures("gpu")


@pytest.fixture(autouse=True)
def short_chunks(gpu, monkeypatch):
    from kernels.triton import ssd as twin

    monkeypatch.setattr(twin, "CHUNK", {torch.float32: 16, torch.bfloat16: 16})
    monkeypatch.setattr(twin, "SLICE", 32)


def inputs(length, groups=2, batch=2, heads=4, width=8, state=6, seed=0, decay=8.0):
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=g)
    uniform = lambda *shape: torch.rand(*shape, dtype=torch.float64, generator=g)
    tensors = (normal(batch, length, heads, width), uniform(batch, length, heads), -uniform(heads) * decay, normal(batch, length, groups, state),
               normal(batch, length, groups, state), normal(heads), normal(batch, heads, width, state))
    ids = torch.cumsum((uniform(batch, length) < 0.1).long(), 1)
    return tensors, ids, (normal(batch, length, heads, width), normal(batch, heads, width, state))


def graded(run, dtype, tensors, ids, weights, initial):
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in tensors]
    y, last = run(*leaves[:6], seq_idx_BL=ids, initial_state_BHPN=leaves[6] if initial else None)
    ((y * weights[0].to(dtype)).sum() + (last * weights[1].to(dtype)).sum()).backward()
    return y.detach(), last.detach(), [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("length, groups, packed, initial", [(45, 2, True, True), (32, 1, False, True), (7, 4, True, False), (1, 2, False, False), (33, 2, False, False)])
def test_scan_equals_recurrence(length, groups, packed, initial):
    tensors, ids, weights = inputs(length, groups)
    slow = graded(ssd_reference, torch.float64, tensors, ids if packed else None, weights, initial)
    fast = graded(ssd, torch.float32, tensors, ids if packed else None, weights, initial)
    torch.testing.assert_close(fast[0], slow[0].float(), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(fast[1], slow[1].float(), rtol=1e-5, atol=2e-5)
    for name, mine, true in zip(NAMES, fast[2], slow[2]):
        if true is None:
            assert mine is None and name == "initial"
        else:
            assert (mine - true).abs().max() <= 5e-5 * max(true.abs().max(), 1.0), name


def test_strong_decay_gives_no_nan():
    tensors, ids, weights = inputs(40, decay=400.0)
    y, last, slopes = graded(ssd, torch.float32, tensors, ids, weights, True)
    assert all(torch.isfinite(t).all() for t in (y, last, *slopes))


def test_bf16_slices_of_a_wider_tensor():
    """x, B and C as the mixer hands them over: slices of one tensor, bfloat16; the arithmetic stays float32."""
    (_, dt, A, _, _, D, _), ids, weights = inputs(21)
    wide = torch.randn(2, 21, 4 * 8 + 2 * 2 * 6, generator=torch.Generator().manual_seed(5)).bfloat16()

    def run(form, dtype):
        leaf = wide.to(dtype, copy=True).requires_grad_()
        x, B, C = leaf.split([32, 12, 12], -1)
        y, last = form(x.unflatten(-1, (4, 8)), dt.float(), A.float(), B.unflatten(-1, (2, 6)), C.unflatten(-1, (2, 6)), D.float(), seq_idx_BL=ids)
        ((y * weights[0]).sum() + (last * weights[1]).sum()).backward()
        return y.detach(), last.detach(), leaf.grad.float()

    for mine, true in zip(run(ssd, torch.bfloat16)[:2], run(ssd_reference, torch.float32)[:2]):
        torch.testing.assert_close(mine, true, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(run(ssd, torch.bfloat16)[2], run(ssd_reference, torch.float32)[2], rtol=2**-8, atol=1e-4)


def test_gradients_are_the_same_bits_again():
    tensors, ids, weights = inputs(40)
    one, two = (graded(ssd, torch.float32, tensors, ids, weights, True)[2] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_step_continues_a_scan(dtype):
    """Three sequences in the slots 4, 0 and 2; the other slots keep their bits."""
    tensors, _, _ = inputs(5, batch=3, width=24)
    x, dt, A, B, C, D, initial = (t.float() for t in tensors)
    x, B, C = (t.to(dtype) for t in (x, B, C))
    rows = torch.tensor([4, 0, 2])
    slots = torch.randn(5, *initial.shape[1:], generator=torch.Generator().manual_seed(1))
    before = slots.clone()
    slots[rows] = initial
    true, last = ssd_reference(x, dt, A, B, C, D, initial_state_BHPN=initial)
    for t in range(5):
        y = ssd_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], D, slots, rows)
        torch.testing.assert_close(y, true[:, t], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(slots[rows], last, rtol=1e-5, atol=2e-5)
    assert torch.equal(slots[[1, 3]], before[[1, 3]])
