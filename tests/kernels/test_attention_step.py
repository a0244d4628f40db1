"""Attention over a cache against the plain softmax, in pieces, beside neighbours, over old numbers."""
import numpy as np
import pytest
import torch

from kernels.attention import causal_attention_reference
from kernels.attention_step import attention_step
from kernels.hybrid_step import Sizes
from kernels.skinny import padded


def run(q, k, v, keys, values, places, past):
    """Appends [B,T,.,D] to keys and values [S,J,L,D] in place; what the queries see, [B,T,H,D]."""
    batch, length, heads, width = q.shape
    rows = torch.cat([t.flatten(2) for t in (q, k, v)], 2)
    stride = padded(rows.shape[2])
    rows = torch.nn.functional.pad(rows, (0, stride - rows.shape[2])).contiguous()
    sizes = Sizes(**dict.fromkeys(Sizes._fields, 1) | dict(query_heads=heads, kv_heads=k.shape[2], head_dim=width, room=keys.shape[2]))
    flat = lambda t: (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).view(-1).numpy()
    out = attention_step(flat(rows), stride, np.arange(batch + 1) * length, np.array(places), np.array(past), flat(keys), flat(values), sizes)
    return torch.from_numpy(out).view(batch, length, heads, width)


@pytest.mark.parametrize("heads,kv_heads,width,dtype", [(4, 2, 32, torch.float32), (3, 1, 16, torch.float32), (2, 2, 64, torch.float32), (8, 2, 128, torch.float32),
                                                        (4, 1, 32, torch.bfloat16)])
def test_equals_softmax_and_its_pieces(heads, kv_heads, width, dtype):
    generator, length = torch.Generator().manual_seed(width), 150
    q = torch.randn(2, length, heads, width, generator=generator)
    k, v = (torch.randn(2, length, kv_heads, width, generator=generator).to(dtype).float() for _ in range(2))
    fresh = lambda: torch.full((3, kv_heads, 160, width), torch.nan, dtype=dtype)  # what others left there
    keys, values = fresh(), fresh()
    whole = run(q, k, v, keys, values, [2, 0], [0, 0])
    wanted = causal_attention_reference(q.double(), k.double(), v.double())
    torch.testing.assert_close(whole.double(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(keys[2, :, :length].float(), k[0].transpose(0, 1), atol=0, rtol=0)
    keys, values, past, pieces = fresh(), fresh(), 0, []
    for size in (1, 62, 1, 1, 70, 15):
        piece = slice(past, past + size)
        pieces.append(run(q[1:, piece], k[1:, piece], v[1:, piece], keys, values, [1], [past]))
        past += size
    assert torch.equal(torch.cat(pieces, 1)[0], whole[1]), "bit for bit"
