"""The compiled step: the same bits however tokens are grouped; weights that change are packed again; what it cannot run, the modules do."""
import pytest
import torch
import torch.nn.functional as F

from model import Cache, HybridConfig, HybridLM

CONFIG = HybridConfig.tiny(vocab_size=96, hidden_size=64, pattern="ME*-ME", mamba_num_heads=4, mamba_head_dim=16, n_groups=2, intermediate_size=70,
                           num_attention_heads=4, num_key_value_heads=2, head_dim=16, initializer_range=0.2)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def made(dtype=torch.float32, **changes) -> HybridLM:
    from dataclasses import replace

    return HybridLM(replace(CONFIG, **changes), seed=4, compute_dtype=dtype).eval()


def ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 96, (batch, length), generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"moe_latent_size": None, "norm_topk_prob": False}])
def test_grouping_changes_no_bit(dtype, changes):
    """Together, alone, ragged, in pieces, by one thread or two."""
    lm, tokens = made(dtype, **changes), ids(5, 300)
    cache = Cache(lm, 5, 300)
    together = torch.cat([lm(tokens[:, :290], cache=cache), *(lm(tokens[:, t:t + 1], cache=cache) for t in range(290, 300))], 1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        cache = Cache(lm, 5, 300)
        assert torch.equal(torch.cat([lm(tokens[:, :290], cache=cache), *(lm(tokens[:, t:t + 1], cache=cache) for t in range(290, 300))], 1), together)
    finally:
        torch.set_num_threads(threads)
    cache = Cache(lm, 3, 300)
    pieces = torch.cat([lm(piece, cache=cache, slots=[1]) for piece in tokens[2:3].split([1, 100, 1, 163, 5, 30], 1)], 1)
    assert torch.equal(pieces[0], together[2])
    ragged = lm(tokens[3:], cache=cache, slots=[2, 0], lengths=[40, 300])
    assert torch.equal(ragged[0, :40], together[3, :40]) and torch.equal(ragged[1], together[4])
    exact = made(**changes)(tokens)  # the modules, in float32
    wrong, scale = (together - exact).abs(), exact.abs().max()
    if dtype == torch.float32:
        assert wrong.max() < 1e-5 * scale
    else:
        assert wrong.median() < 0.01 * scale, "most; where rounding turns a router's choice, all is different"


def test_changed_weights_are_packed_again():
    lm, tokens = made(), ids(2, 12)
    lm(tokens, cache=Cache(lm, 2, 12))
    for name, change in (("layers.1.mixer.experts.down_proj", lambda p: p.mul_(2)), ("layers.0.mixer.A_log", lambda p: p.add_(1)),
                         ("layers.1.mixer.gate.e_score_correction_bias", lambda p: p.copy_(torch.linspace(1, 0, len(p)))),
                         ("lm_head.weight", lambda p: p.neg_()), ("norm_f.weight", lambda p: setattr(p, "data", p.data + 1))):
        before = lm(tokens, cache=Cache(lm, 2, 12))
        change(lm.state_dict(keep_vars=True)[name])
        after = lm(tokens, cache=Cache(lm, 2, 12))
        assert not torch.allclose(after, before), name
        assert (after - lm(tokens)).abs().max() < 1e-4, name


def test_other_products_and_training_take_the_modules():
    lm, tokens = made(), ids(2, 9)
    assert lm.packed() is lm.packed() is not None
    lm.layers[0].mixer.in_proj.gemm = lambda x, w: F.linear(x, w) * 0.5
    assert lm.packed() is None
    cache = Cache(lm, 2, 16)
    halved = torch.cat([lm(piece, cache=cache) for piece in tokens.split([5, 1, 3], 1)], 1)
    assert (halved - lm(tokens)).abs().max() < 1e-5
    lm.hidden(tokens[:, :3], cache=cache, tentative=True)
    cache.accept([1, 3])
    assert cache.lengths.tolist() == [10, 12]
    lm.layers[0].mixer.in_proj.gemm = F.linear
    lm.train()
    with torch.enable_grad():
        assert lm.packed() is None
    assert "_packed" not in lm.__dict__, "the copy is given back"


def test_what_does_not_fit_is_named():
    lm, cache = made(), Cache(made(), 3, 8)
    for arguments, message in (({"slots": [0, 0]}, "different"), ({"slots": [0, 3]}, "different"), ({"lengths": [9, 1]}, "lengths"), ({}, "max_length")):
        with pytest.raises(ValueError, match=message):
            lm(ids(2, 9 if not arguments else 8), cache=cache, **arguments)
    assert cache.lengths.tolist() == [0, 0, 0] and cache.ssm.isfinite().all()
