"""The one-pass Mamba layer against its parts: convolution, recurrence and gated norm by their references."""
import pytest
import torch
import torch.nn.functional as F

from kernels.conv import causal_conv_reference
from kernels.mamba_step import constants, fits, mamba_step
from kernels.norms import gated_rms_norm_reference
from kernels.ssd import ssd_reference

BATCH, HEADS, WIDTH, GROUPS, SIZE, SLOTS = 3, 4, 8, 2, 16, 6
INNER, CHANNELS = HEADS * WIDTH, HEADS * WIDTH + 2 * GROUPS * SIZE


@pytest.mark.parametrize("length,keep,dtype", [(1, False, torch.float32), (1, True, torch.float32), (6, True, torch.float32), (1, False, torch.bfloat16)])
def test_equals_its_parts(length, keep, dtype):
    generator = torch.Generator().manual_seed(length)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    projected, conv = random(BATCH, length, INNER + CHANNELS + HEADS).to(dtype), random(SLOTS, 3, CHANNELS).to(dtype)
    weight, bias, dt_bias, A_log, D, norm = random(CHANNELS, 1, 4), random(CHANNELS), random(HEADS), random(HEADS), random(HEADS), random(INNER)
    ssm, rows = random(SLOTS, HEADS, WIDTH, SIZE), torch.tensor([5, 0, 2])
    conv_before, ssm_before = conv.clone(), ssm.clone()
    z, xBC, dt = projected.double().split([INNER, CHANNELS, HEADS], -1)
    mixed = causal_conv_reference(xBC, weight.squeeze(1).double(), bias.double(), state_BWC=conv_before[rows].double())
    x, B, C = mixed.split([INNER, GROUPS * SIZE, GROUPS * SIZE], -1)
    y, last = ssd_reference(x.unflatten(-1, (HEADS, WIDTH)), F.softplus(dt + dt_bias), -A_log.double().exp(), B.unflatten(-1, (GROUPS, SIZE)),
                            C.unflatten(-1, (GROUPS, SIZE)), D.double(), initial_state_BHPN=ssm_before[rows].double())
    wanted = gated_rms_norm_reference(y.flatten(-2), z, norm.double(), 1e-5, GROUPS)
    with torch.no_grad():
        assert fits(projected, conv)
        got, states = mamba_step(projected, constants(weight, bias, dt_bias, A_log, D, norm), conv, ssm, rows, groups=GROUPS, eps=1e-5, keep=keep)
    rounding = 1e-4 if dtype == torch.float32 else 2**-6
    torch.testing.assert_close(got.double(), wanted, atol=rounding, rtol=rounding)
    if keep:
        assert torch.equal(conv, conv_before) and torch.equal(ssm, ssm_before)
        torch.testing.assert_close(states[:, -1].double(), last, atol=1e-4, rtol=1e-4)
    else:
        assert states is None
        torch.testing.assert_close(ssm[rows].double(), last, atol=1e-4, rtol=1e-4)
        assert torch.equal(conv[rows], torch.cat([conv_before[rows], projected[..., INNER:INNER + CHANNELS]], 1)[:, 1:])
        others = [s for s in range(SLOTS) if s not in rows.tolist()]
        assert torch.equal(conv[others], conv_before[others]) and torch.equal(ssm[others], ssm_before[others])
