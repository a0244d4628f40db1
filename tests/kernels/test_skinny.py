"""Products of a few rows: right, and the same bits whatever the other rows, the span of panels and the position in the batch."""
import numpy as np
import pytest
import torch

from kernels.skinny import PANEL, pack, padded, product, turn


def run(x: torch.Tensor, weight: torch.Tensor, pairs: bool, cuts: tuple[int, ...] = ()) -> np.ndarray:
    outputs, inputs = weight.shape
    words = np.empty(padded(outputs) * (inputs // 2 if pairs else inputs), np.uint32 if pairs else np.float32)
    pack(weight, words)
    rows = x.bfloat16().view(torch.int32).numpy().view(np.uint32) if pairs else x.numpy()
    out = np.full(len(x) * padded(outputs), np.nan, np.float32)
    edges = [0, *cuts, padded(outputs) // PANEL]
    for a, b in zip(edges, edges[1:]):
        product(words, 0, rows.reshape(-1), len(x), rows.shape[1], a, b, out, padded(outputs))
    return out.reshape(len(x), -1)[:, :outputs]


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("outputs,inputs", [(32, 2), (200, 96), (5, 64)])
def test_equals_the_definition_and_itself_alone(pairs, outputs, inputs):
    generator = torch.Generator().manual_seed(outputs)
    x, weight = torch.randn(21, inputs, generator=generator), torch.randn(outputs, inputs, generator=generator)
    whole = run(x, weight, pairs)
    exact = (x.bfloat16().double() @ weight.bfloat16().double().t() if pairs else x.double() @ weight.double().t()).numpy()
    np.testing.assert_allclose(whole, exact, rtol=1e-5, atol=1e-5 * inputs**0.5)
    for count in range(1, 22):
        assert np.array_equal(run(x[21 - count:], weight, pairs), whole[21 - count:]), f"{count} rows"
    if outputs > PANEL:
        assert np.array_equal(run(x, weight, pairs, cuts=(1, 4)), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_turn_transposes(dtype):
    source, target = torch.randn(40 * 20, generator=torch.Generator().manual_seed(1)).to(dtype), np.zeros(16 * 20 + 3, np.float32)
    turn_here(source.view(torch.uint16).numpy() if dtype == torch.bfloat16 else source.numpy(), target)
    wanted = source.float().as_strided((16, 16), (20, 1), 7).t()
    assert np.array_equal(np.lib.stride_tricks.as_strided(target[3:], (16, 16), (80, 4)), wanted.numpy())


def turn_here(source: np.ndarray, target: np.ndarray) -> None:
    from numba import njit

    njit(lambda source, target: turn(source, 7, 20, target, 3, 20))(source, target)
