"""Routing and experts for a few rows against the dense definition, in float32 and pairs of bfloat16."""
import numpy as np
import pytest
import torch

from kernels.experts import experts_reference
from kernels.experts_step import experts_step, mlp, route
from kernels.hybrid_step import Sizes
from kernels.skinny import pack, padded

EXPERTS, WIDTH, INNER = 6, 24, 40


def sizes(choices: int, normalised: bool = True) -> Sizes:
    other = dict.fromkeys(Sizes._fields, 1)
    return Sizes(**other | dict(hidden=WIDTH, experts=EXPERTS, choices=choices, normalised=int(normalised), expert_inner=INNER, expert_width=WIDTH))


def packed(pairs: bool, *matrices: torch.Tensor) -> np.ndarray:
    parts = [np.empty(padded(len(m)) * m.shape[1] // (1 + pairs), np.uint32 if pairs else np.float32) for m in matrices]
    for matrix, part in zip(matrices, parts):
        pack(matrix, part)
    return np.concatenate(parts)


def rows_of(x: torch.Tensor, pairs: bool) -> np.ndarray:
    return (x.bfloat16().view(torch.int32).numpy().view(np.uint32) if pairs else x.numpy()).reshape(-1)


@pytest.mark.parametrize("tokens,choices,pairs", [(1, 2, False), (7, 3, False), (32, 1, False), (5, 2, True)])
def test_equals_the_definition(tokens, choices, pairs):
    generator = torch.Generator().manual_seed(tokens)
    dtype = torch.bfloat16 if pairs else torch.float32
    x, up, down = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((tokens, WIDTH), (EXPERTS, INNER, WIDTH), (EXPERTS, WIDTH, INNER)))
    index = torch.stack([torch.randperm(EXPERTS, generator=generator)[:choices] for _ in range(tokens)])
    weight = torch.rand(tokens, choices, generator=generator)
    words = packed(pairs, *(m for pair in zip(up, down) for m in pair))

    def run(rows: slice) -> np.ndarray:
        count = len(range(*rows.indices(tokens)))
        return experts_step(words, 0, rows_of(x[rows], pairs), index[rows].numpy(), weight[rows].numpy(), sizes(choices)).reshape(count, WIDTH)

    got = run(slice(None))
    wanted = experts_reference(x.double(), up.double(), down.double(), index, weight.double()).numpy()
    np.testing.assert_allclose(got, wanted, rtol=2**-7 if pairs else 1e-5, atol=2.0 if pairs else 1e-3)  # sums of 40 squares of numbers about 25
    for row in range(tokens):
        assert np.array_equal(run(slice(row, row + 1))[0], got[row]), "alone as in a batch"


def test_mlp_equals_the_definition():
    generator = torch.Generator().manual_seed(2)
    x, up, down = torch.randn(5, WIDTH, generator=generator), torch.randn(INNER, WIDTH, generator=generator), torch.randn(WIDTH, INNER, generator=generator)
    got = mlp(packed(False, up, down), 0, padded(INNER) * WIDTH, rows_of(x, False), 5, WIDTH, INNER, WIDTH).reshape(5, -1)[:, :WIDTH]
    np.testing.assert_allclose(got, ((x.double() @ up.double().t()).relu().square() @ down.double().t()).numpy(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("normalised", [True, False])
def test_routes_as_the_model_does(normalised):
    generator = torch.Generator().manual_seed(3)
    x, weight, bias = torch.randn(9, WIDTH, generator=generator), torch.randn(EXPERTS, WIDTH, generator=generator), torch.randn(EXPERTS, generator=generator)
    small = np.concatenate([packed(False, weight), bias.numpy()])
    chosen, shares = route(x.numpy().reshape(-1), small, 0, 9, sizes(3, normalised), np.float32(2.5))
    scores = torch.sigmoid(x @ weight.t())
    wanted = torch.topk(scores + bias, 3)[1]
    assert np.array_equal(chosen, wanted.numpy())
    of = scores.gather(1, wanted)
    np.testing.assert_allclose(shares, (2.5 * of / (of.sum(-1, keepdim=True) if normalised else 1)).numpy(), rtol=1e-5)
