"""Compiled loops on torch's threads: every task once, errors raised, forked children served, the same bits on one thread and two."""

import multiprocessing
import threading

import pytest
import torch

from kernels import team
from kernels.norms import rms_norm
from kernels.ssd import ssd


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("openmp", [True, False])
def test_every_task_once_in_order(openmp, monkeypatch):
    if not openmp:
        monkeypatch.setattr(team, "_openmp", lambda: None)
    seen = []
    assert team.together([lambda i=i: seen.append(i) or i * i for i in range(7)]) == [i * i for i in range(7)]
    assert sorted(seen) == list(range(7))


def test_this_torch_lends_its_threads():
    if team._openmp() is None:
        pytest.skip("torch runs on another OpenMP library")
    barrier = threading.Barrier(2, timeout=30)  # broken unless two threads wait at once
    assert len(set(team.together([lambda: (barrier.wait(), threading.get_ident())[1]] * 2))) == 2


def test_an_error_is_raised():
    with pytest.raises(ZeroDivisionError):
        team.together([lambda: 1, lambda: 1 / 0])


def _in_child(queue):
    queue.put(team.together([lambda: 1, lambda: 2]))


def test_forked_children_have_threads_of_their_own():
    team.together([lambda: 1, lambda: 2])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    assert queue.get(timeout=30) == [1, 2]
    child.join()


def test_one_thread_and_two_give_the_same_bits(two_threads):
    g = torch.Generator().manual_seed(0)
    x, dt, B = torch.randn(2, 300, 8, 32, generator=g), torch.rand(2, 300, 8, generator=g), torch.randn(2, 300, 4, 32, generator=g)
    wide, weight = torch.randn(2500, 256, generator=g), torch.rand(256, generator=g)

    def run():
        leaves = [t.clone().requires_grad_() for t in (x, dt, B, wide, weight)]
        y, _ = ssd(leaves[0], leaves[1], -torch.ones(8), leaves[2], leaves[2] * 2, torch.ones(8))
        loss = y.square().sum() + rms_norm(leaves[3], leaves[4], 1e-5).square().sum()
        return [y, *torch.autograd.grad(loss, leaves)]

    two = run()
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(run(), two))
