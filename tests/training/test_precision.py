"""Each product of each format against its definition: the readable quantizers, float64 sums, one rounding. And who gets which format."""

import pytest
import torch
from torch.nn import functional as F

from kernels import mxfp8, nvfp4
from model.config import HybridConfig
from model.lm import HybridLM
from training.precision import PrecisionPolicy, mxfp8_gemm, tail_layers

MICRO = dict(
    pattern="MEM*EMEME", hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32, mamba_num_heads=2, mamba_head_dim=32, ssm_state_size=16,
    n_groups=1, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, moe_shared_expert_intermediate_size=64, moe_latent_size=32,
    mtp_depth=1, vocab_size=64, chunk_size=16,
)


def operands(T, K, N, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(T, K, generator=g).bfloat16().requires_grad_()
    w = (torch.randn(N, K, generator=g) / K**0.5).requires_grad_()
    return x, w, torch.randn(T, N, generator=g).bfloat16()


def product(a, b):
    """bfloat16(alpha * a bᵀ) of two NVFP4Tensors, from float64 sums."""
    return ((a.operand().double() @ b.operand().double().T).float() * nvfp4.gemm_alpha(a.amax, b.amax)).bfloat16()


def same_but_for_ties(got, expected):
    """float32 sums of these products are exact but for a few: a value may round to its neighbour, rarely."""
    different = got.float() != expected.float()
    assert different.float().mean() < 2e-3
    assert torch.all((got.float() - expected.float()).abs() <= expected.float().abs() * 2**-7 + 1e-6 * expected.float().abs().max())


def nvfp4_gemm(policy=None, name="layers.0.mixer.in_proj"):
    return (policy or PrecisionPolicy("nvfp4", seed=5))._gemm("nvfp4", name)


@pytest.mark.parametrize("T,K,N", [(64, 48, 80), (50, 32, 36)])
def test_nvfp4_is_the_recipe_in_all_three_products(T, K, N):
    x, w, g = operands(T, K, N, T)
    gemm = nvfp4_gemm()
    dgrad_seed, wgrad_seed = gemm._seed("dgrad"), gemm._seed("wgrad")
    y = gemm(x, w)
    y.backward(g)
    xd, wd = x.detach(), F.pad(w.detach().bfloat16(), (0, 0, 0, -N % 16))
    w_q = nvfp4.quantize(wd, (16, 16))
    same_but_for_ties(y, product(nvfp4.quantize(xd), w_q)[:, :N])
    w_t = nvfp4.quantize(wd.T.contiguous(), (16, 16))
    same_but_for_ties(x.grad, product(nvfp4.quantize(F.pad(g, (0, -N % 16)), rounding="stochastic", seed=dgrad_seed), w_t))
    tokens = lambda t: F.pad(t, (0, 0, 0, -T % 16)).T.contiguous()
    g_q = nvfp4.quantize(tokens(g), rounding="stochastic", hadamard=True, seed=wgrad_seed)
    same_but_for_ties(w.grad, product(g_q, nvfp4.quantize(tokens(xd), hadamard=True)))
    assert (y.dtype, x.grad.dtype, w.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


def test_mxfp8_is_the_recipe_in_all_three_products():
    x, w, g = operands(72, 64, 96, 3)
    mxfp8_gemm(x, w).backward(g)
    value = lambda t: mxfp8.quantize(t.contiguous()).dequantize().double()
    xd, wd = x.detach(), w.detach().bfloat16()
    tokens = lambda t: F.pad(t, (0, 0, 0, -72 % 32)).T
    same_but_for_ties(mxfp8_gemm(x, w), (value(xd) @ value(wd).T).bfloat16())
    same_but_for_ties(x.grad, (value(g) @ value(wd.T).T).bfloat16())
    same_but_for_ties(w.grad, (value(tokens(g)) @ value(tokens(xd)).T).bfloat16())


@pytest.mark.parametrize("gemm", [mxfp8_gemm, nvfp4_gemm()])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_gemm_keeps_shape_and_dtype(gemm, dtype):
    x, w = torch.randn(2, 3, 32).to(dtype).requires_grad_(), torch.randn(64, 32, requires_grad=True)
    y = gemm(x, w)
    y.sum().backward()
    assert y.shape == (2, 3, 64) and y.dtype == dtype and x.grad.shape == x.shape and x.grad.dtype == dtype and w.grad.dtype == torch.float32
    error = (y.double() - x.double() @ w.double().T).norm() / (x.double() @ w.double().T).norm()
    assert error < (0.06 if gemm is mxfp8_gemm else 0.2)


def test_stochastic_gradients_are_unbiased():
    """Averaged over steps, dgrad is the product of the unrounded gradient with the quantized weight."""
    x, w, g = operands(16, 64, 64, 8)
    policy = PrecisionPolicy("nvfp4", seed=1)
    gemm = nvfp4_gemm(policy)
    total, steps = torch.zeros(16, 64, dtype=torch.float64), 300
    for step in range(steps):
        policy.set_step(step)
        total += torch.autograd.grad(gemm(x, w), x, g)[0].double()
    exact = g.double() @ nvfp4.quantize(w.detach().bfloat16(), (16, 16)).dequantize().double()
    one_step = torch.autograd.grad(gemm(x, w), x, g)[0].double()
    assert (total / steps - exact).norm() < 0.15 * (one_step - exact).norm()  # pure noise would fall to 1/sqrt(300) = 0.06


def test_random_bits_follow_from_seed_step_name_and_call():
    x, w, g = operands(32, 32, 32, 2)

    def gradients(seed, step, name="a", calls=1, evaluations=0):
        policy = PrecisionPolicy("nvfp4", seed=seed)
        gemm = nvfp4_gemm(policy, name)
        gemm(x, w)
        policy.set_step(step)
        with torch.no_grad():
            for _ in range(evaluations):
                gemm(x, w)
        for _ in range(calls):
            y = gemm(x, w)
        return torch.autograd.grad(y, x, g)[0]

    first = gradients(1, 7)
    assert torch.equal(first, gradients(1, 7)) and torch.equal(first, gradients(1, 7, evaluations=3))
    for other in (gradients(2, 7), gradients(1, 8), gradients(1, 7, name="b"), gradients(1, 7, calls=2)):
        assert not torch.equal(first, other)


def test_who_gets_which_format():
    lm = HybridLM(HybridConfig(**MICRO))
    rows = {row.module: row for row in PrecisionPolicy("nvfp4").describe(lm)}
    assert {name: row.precision for name, row in rows.items() if re_layer(name) in ("0", "1", "3", "8") or "." not in name or "mtp" in name} == {
        "layers.0.mixer.in_proj": "nvfp4", "layers.0.mixer.out_proj": "mxfp8",
        "layers.1.mixer.gate": "fp32", "layers.1.mixer.experts": "nvfp4",
        "layers.1.mixer.shared_experts.up_proj": "nvfp4", "layers.1.mixer.shared_experts.down_proj": "nvfp4",
        "layers.1.mixer.fc1_latent_proj": "bf16", "layers.1.mixer.fc2_latent_proj": "bf16",
        **{f"layers.3.mixer.{p}_proj": "bf16" for p in "qkvo"},
        "layers.8.mixer.gate": "fp32", "layers.8.mixer.experts": "bf16",
        **{f"layers.8.mixer.{p}": "bf16" for p in ("shared_experts.up_proj", "shared_experts.down_proj", "fc1_latent_proj", "fc2_latent_proj")},
        "lm_head": "bf16",
        "mtp.layers.1.mixer.gate": "fp32", "mtp.layers.0.eh_proj": "bf16", **{f"mtp.layers.0.mixer.{p}_proj": "bf16" for p in "qkvo"},
        "mtp.layers.1.mixer.experts": "bf16",
        **{f"mtp.layers.1.mixer.{p}": "bf16" for p in ("shared_experts.up_proj", "shared_experts.down_proj", "fc1_latent_proj", "fc2_latent_proj")},
    }
    assert "padded" in rows["layers.0.mixer.in_proj"].why  # 2*64 + 2*16 + 2 = 162 outputs
    assert sum(row.share for row in rows.values()) == pytest.approx(1)
    for recipe, expected in (("bf16", {"bf16", "fp32"}), ("fp32", {"fp32"})):
        assert {row.precision for row in PrecisionPolicy(recipe).describe(lm)} == expected
    with pytest.raises(ValueError, match="nvfp4, bf16, fp32"):
        PrecisionPolicy("fp8")


def re_layer(name):
    parts = name.split(".")
    return parts[1] if parts[0] == "layers" else None


def test_dimensions_that_blocks_do_not_divide_fall_back_and_say_so():
    lm = HybridLM(HybridConfig(**MICRO | {"moe_latent_size": 24, "mamba_num_heads": 3, "n_groups": 3, "mamba_head_dim": 16}))
    rows = {row.module: row for row in PrecisionPolicy("nvfp4").describe(lm)}
    for name in ("layers.1.mixer.experts", "layers.0.mixer.out_proj"):
        assert rows[name].precision == "bf16" and "bf16 because" in rows[name].why


@pytest.mark.parametrize("make,tail,shares", [
    (HybridConfig.super, 14, {"nvfp4": 0.657, "mxfp8": 0.093, "bf16": 0.206, "head": 0.044}),
    (HybridConfig.ultra, 16, {"nvfp4": 0.672, "mxfp8": 0.100, "bf16": 0.208, "head": 0.020}),
])
def test_nemotron_3s_shares_of_work(make, tail, shares):
    """Tail layers as NVIDIA ships them; shares of GEMM work without MTP, computed from the published configurations."""
    config = make(mtp_depth=0)
    assert tail_layers(len(config.pattern)) == tail
    with torch.device("meta"):
        lm = HybridLM(config)
    found = dict.fromkeys(shares, 0.0)
    for row in PrecisionPolicy("nvfp4").describe(lm):
        kind = "head" if row.module == "lm_head" else "bf16" if row.precision == "fp32" else row.precision
        found[kind] += row.share
    assert found == pytest.approx(shares, abs=0.006)


def test_a_model_trains_under_the_policy_repeatably_and_close_to_bf16():
    ids = torch.randint(0, 64, (2, 48), generator=torch.Generator().manual_seed(4))

    def gradient(recipe):
        lm = HybridLM(HybridConfig(**MICRO), seed=1)
        policy = PrecisionPolicy(recipe, seed=3).apply(lm)
        lm.train()
        policy.set_step(11)
        hidden = lm.hidden(ids)
        ahead = lm.mtp_hidden(hidden, ids)[0]
        loss = F.cross_entropy(lm.lm_head(hidden)[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten()) + lm.lm_head(ahead).float().square().mean()
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in lm.parameters() if p.grad is not None])

    (loss4, g4), (loss16, g16), (loss32, g32) = gradient("nvfp4"), gradient("bf16"), gradient("fp32")
    again, g4_again = gradient("nvfp4")
    assert again == loss4 and torch.equal(g4, g4_again)
    assert not torch.equal(g4, g16)
    assert abs(loss16 - loss32) < 0.02 and abs(loss4 - loss32) < 0.1
    assert F.cosine_similarity(g16, g32, dim=0) > 0.99 and F.cosine_similarity(g4, g32, dim=0) > 0.9
