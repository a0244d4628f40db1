"""Layers run again in the backward: losses and gradients are the same bits, what is kept between is a layer's input."""

import pytest
import torch

from model import HybridConfig, HybridLM
from training.language_loss import language_loss
from training.precision import PrecisionPolicy

MICRO = dict(pattern="ME*-MEM*E", hidden_size=64, num_attention_heads=4, num_key_value_heads=1, head_dim=32, mamba_num_heads=2, mamba_head_dim=32,
             ssm_state_size=16, n_groups=1, intermediate_size=96, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=64,
             moe_shared_expert_intermediate_size=64, moe_latent_size=32, mtp_depth=2, vocab_size=64)


def updates(precision, recompute):
    """Two micro-batches of packed documents: their losses, the gradients' sum, and the most bytes kept for a backward."""
    lm = HybridLM(HybridConfig(**MICRO), seed=1).train()
    PrecisionPolicy(precision, seed=3).apply(lm).set_step(7)
    lm.recompute = recompute
    g = torch.Generator().manual_seed(5)
    losses, most = [], 0
    for _ in range(2):
        ids = torch.randint(0, 64, (2, 48), generator=g)
        documents = torch.cumsum((torch.rand(2, 48, generator=g) < 0.1).long(), 1)
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.__setitem__(t.data_ptr(), t.nbytes) or t, lambda t: t):
            loss = language_loss(lm, ids, ids.roll(-1, 1), torch.ones(ids.shape), documents, mtp_weight=0.3).total
        loss.backward()
        losses.append(loss.item())
        most = max(most, sum(kept.values()))
    loads = [moe.last_load_E for moe in lm.moe_layers()]
    return losses, {name: parameter.grad for name, parameter in lm.named_parameters()}, loads, most


@pytest.mark.parametrize("precision", ["fp32", "bf16", "nvfp4"])
def test_same_bits_in_less_memory(precision):
    losses, gradients, loads, most = updates(precision, False)
    again, gradients_again, loads_again, less = updates(precision, True)
    assert losses == again and all(torch.equal(a, b) for a, b in zip(loads, loads_again, strict=True))
    assert gradients.keys() == gradients_again.keys() and all(torch.equal(gradients[name], gradients_again[name]) for name in gradients)
    assert less < most
