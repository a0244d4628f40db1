"""Experts for a handful of tokens against the dense definition, in float32 and bfloat16."""
import pytest
import torch

from kernels.experts import experts, experts_reference
from kernels.experts_step import MOST_TOKENS, experts_step, fits


@pytest.mark.parametrize("tokens,choices,dtype", [(1, 2, torch.float32), (7, 3, torch.float32), (MOST_TOKENS, 1, torch.float32), (5, 2, torch.bfloat16)])
def test_equals_the_definition(tokens, choices, dtype):
    generator = torch.Generator().manual_seed(tokens)
    x, up, down = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((tokens, 24), (6, 40, 24), (6, 24, 40)))
    index = torch.stack([torch.randperm(6, generator=generator)[:choices] for _ in range(tokens)])
    weight = torch.rand(tokens, choices, generator=generator)
    assert fits(x, up, down)
    wanted = experts_reference(x.double(), up.double(), down.double(), index, weight.double())
    got = experts_step(x, up, down, index, weight)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), wanted, atol=1e-3 if dtype == torch.float32 else 0.0, rtol=1e-5 if dtype == torch.float32 else 2**-7)
    with torch.no_grad():
        assert torch.equal(experts(x, up, down, index, weight), got), "decoding takes this path"
    for row in range(tokens):
        assert torch.equal(experts_step(x[row:row + 1], up, down, index[row:row + 1], weight[row:row + 1])[0], got[row]), "alone as in a batch"
