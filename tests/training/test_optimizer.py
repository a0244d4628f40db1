"""The optimizer against AdamW written out in float64, and which parameters decay."""

import pytest
import torch
from torch import nn

from model.config import HybridConfig
from model.lm import HybridLM
from training import optimizer

CONFIG = HybridConfig.tiny(vocab_size=64, hidden_size=32, mtp_depth=1)


def test_it_is_adamw():
    g = torch.Generator().manual_seed(1)
    module = nn.Linear(24, 16)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    adamw = optimizer.build(module, 1e-2)
    expected = {name: [p.detach().double(), 0.0, 0.0] for name, p in module.named_parameters()}
    for step in range(1, 6):
        for name, p in module.named_parameters():
            p.grad = torch.randn(p.shape, generator=g)
            w, m, v = expected[name]
            grad = p.grad.double()
            m, v = 0.9 * m + 0.1 * grad, 0.95 * v + 0.05 * grad**2
            w = w * (1 - 1e-2 * (0.1 if name == "weight" else 0.0))
            expected[name] = [w - 1e-2 * (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8), m, v]
        adamw.step()
    for name, p in module.named_parameters():
        assert torch.allclose(p.double(), expected[name][0], rtol=1e-6, atol=1e-6)


def test_what_decays_and_what_does_not():
    lm = HybridLM(CONFIG)
    names = {p: name for name, p in lm.named_parameters()}
    decayed, kept = ([names[p] for p in group["params"]] for group in optimizer.build(lm, 1e-3, weight_decay=0.3).param_groups)
    assert sorted(decayed + kept) == sorted(names.values())
    assert {name.rsplit(".", 1)[-1] for name in kept} == {"weight", "A_log", "D", "dt_bias", "bias"}
    assert all("norm" in name or not name.endswith("weight") for name in kept)
    assert not [name for name in decayed if "norm" in name or name.endswith(("bias", "A_log", "D"))]
    assert {"embeddings.weight", "lm_head.weight", "layers.1.mixer.experts.up_proj", "layers.0.mixer.in_proj.weight"} <= set(decayed)


def test_the_same_gradients_give_the_same_bits():
    def run():
        lm = HybridLM(CONFIG, seed=2)
        adamw = optimizer.build(lm, 1e-2)
        g = torch.Generator().manual_seed(3)
        for _ in range(3):
            for p in lm.parameters():
                p.grad = torch.randn(p.shape, generator=g)
            adamw.step()
        return torch.cat([p.detach().flatten() for p in lm.parameters()])

    assert torch.equal(run(), run())


def test_masters_are_float32():
    with pytest.raises(ValueError, match=r"weight is torch\.bfloat16"):
        optimizer.build(nn.Linear(4, 4).bfloat16(), 1e-3)
