"""The one-pass Mamba layer against its parts: convolution, recurrence and gated norm by their references."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kernels.conv import causal_conv_reference
from kernels.hybrid_step import Sizes
from kernels.mamba_step import mamba_step
from kernels.norms import gated_rms_norm_reference
from kernels.skinny import padded
from kernels.ssd import ssd_reference

BATCH, HEADS, WIDTH, GROUPS, SIZE, SLOTS = 3, 4, 8, 2, 16, 6
INNER, CHANNELS = HEADS * WIDTH, HEADS * WIDTH + 2 * GROUPS * SIZE
SIZES = Sizes(**dict.fromkeys(Sizes._fields, 1) | dict(mamba_heads=HEADS, mamba_width=WIDTH, state_size=SIZE, groups=GROUPS))


def run(projected, parameters, conv, ssm, rows, keep=False):
    """The kernel over [B,T,X]; with `keep`, also the inputs [B,3+T,C] and states [B,T,H,P,N] it leaves beside the cache."""
    batch, length, wide = projected.shape
    weight, bias, dt_bias, A_log, D, norm = parameters
    small = np.concatenate([t.float().reshape(-1).numpy() for t in (weight.squeeze(1).t(), bias, dt_bias, -A_log.exp(), D, norm)])
    flat = lambda t: (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).view(-1).numpy()
    inputs, states = conv.new_empty(batch, 3 + length, CHANNELS), ssm.new_empty(batch, length, *ssm.shape[1:])
    rows_M = F.pad(projected, (0, padded(wide) - wide)).contiguous()
    out = mamba_step(flat(rows_M), padded(wide), np.arange(batch + 1) * length, rows.numpy(), small, 0, flat(conv), flat(ssm), SIZES, np.float32(1e-5), keep,
                     flat(inputs), flat(states), 0)
    return torch.from_numpy(out).view(batch, length, INNER), inputs, states


def random_case(length: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(length)
    random = lambda *shape: torch.randn(*shape, generator=generator)
    projected, conv = random(BATCH, length, INNER + CHANNELS + HEADS), random(SLOTS, 3, CHANNELS).to(dtype)
    return projected, (random(CHANNELS, 1, 4), random(CHANNELS), random(HEADS), random(HEADS), random(HEADS), random(INNER)), conv, random(SLOTS, HEADS, WIDTH, SIZE)


@pytest.mark.parametrize("length,keep,dtype", [(1, False, torch.float32), (7, False, torch.float32), (1, True, torch.float32), (6, True, torch.float32),
                                               (1, False, torch.bfloat16)])
def test_equals_its_parts(length, keep, dtype):
    projected, parameters, conv, ssm = random_case(length, dtype)
    weight, bias, dt_bias, A_log, D, norm = parameters
    rows, conv_before, ssm_before = torch.tensor([5, 0, 2]), conv.clone(), ssm.clone()
    z, xBC, dt = projected.double().split([INNER, CHANNELS, HEADS], -1)
    mixed = causal_conv_reference(xBC, weight.squeeze(1).double(), bias.double(), state_BWC=conv_before[rows].double())
    x, B, C = mixed.split([INNER, GROUPS * SIZE, GROUPS * SIZE], -1)
    y, last = ssd_reference(x.unflatten(-1, (HEADS, WIDTH)), F.softplus(dt + dt_bias), -A_log.double().exp(), B.unflatten(-1, (GROUPS, SIZE)),
                            C.unflatten(-1, (GROUPS, SIZE)), D.double(), initial_state_BHPN=ssm_before[rows].double())
    wanted = gated_rms_norm_reference(y.flatten(-2), z, norm.double(), 1e-5, GROUPS)
    got, inputs, states = run(projected, parameters, conv, ssm, rows, keep)
    rounding = 1e-4 if dtype == torch.float32 else 2**-6
    torch.testing.assert_close(got.double(), wanted, atol=rounding, rtol=rounding)
    taken = torch.cat([conv_before[rows], projected[..., INNER:INNER + CHANNELS].to(dtype)], 1)
    if keep:
        assert torch.equal(conv, conv_before) and torch.equal(ssm, ssm_before) and torch.equal(inputs, taken)
        torch.testing.assert_close(states[:, -1].double(), last, atol=1e-4, rtol=1e-4)
    else:
        torch.testing.assert_close(ssm[rows].double(), last, atol=rounding, rtol=rounding)
        assert torch.equal(conv[rows], taken[:, -3:])
        others = [s for s in range(SLOTS) if s not in rows.tolist()]
        assert torch.equal(conv[others], conv_before[others]) and torch.equal(ssm[others], ssm_before[others])


def test_pieces_and_neighbours_change_no_bit():
    projected, parameters, conv, ssm = random_case(9, torch.float32)
    rows, other_conv, other_ssm = torch.tensor([1, 4, 3]), conv.clone(), ssm.clone()
    whole = run(projected, parameters, conv, ssm, rows)[0]
    pieces = torch.cat([run(piece, parameters, other_conv, other_ssm, rows[1:2])[0] for piece in projected[1:2].split([4, 1, 4], 1)], 1)
    assert torch.equal(pieces[0], whole[1]) and torch.equal(other_ssm[4], ssm[4]) and torch.equal(other_conv[4], conv[4])
