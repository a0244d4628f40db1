"""Our logits and gradients against transformers' NemotronHForCausalLM, through the checkpoint folder, on random weights."""

import json

import pytest
import torch

from model import HybridConfig, HybridLM

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.models.nemotron_h")

SHAPE = dict(vocab_size=160, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16, mamba_num_heads=8, mamba_head_dim=16, ssm_state_size=16,
             n_groups=2, chunk_size=16, intermediate_size=96, n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=48,
             moe_shared_expert_intermediate_size=96, routed_scaling_factor=2.5, initializer_range=0.11)


def pair(tmp_path, pattern, seed=0, **changes):
    """The same random model, ours and transformers'."""
    from transformers import NemotronHForCausalLM

    lm = HybridLM(HybridConfig(**SHAPE | dict(pattern=pattern) | changes), seed=seed)
    with torch.no_grad():
        for moe in lm.moe_layers():
            moe.gate.e_score_correction_bias.uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(7))
    lm.save_pretrained(tmp_path)
    theirs, report = NemotronHForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"], report
    for layer in theirs.model.layers:
        if hasattr(layer.mixer, "time_step_limit"):
            layer.mixer.time_step_limit = (0.0, float("inf"))  # transformers clamps dt where the released models do not (transformers#48989)
    return lm.eval(), theirs.eval()


@pytest.mark.parametrize("pattern, latent", [("M", None), ("*", None), ("-", None), ("E", None), ("E", 32), ("MEM*E-ME", None), ("MEMEM*EME", 32)])
def test_logits(tmp_path, pattern, latent):
    lm, theirs = pair(tmp_path, pattern, moe_latent_size=latent)
    ids = torch.randint(0, 160, (2, 45), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, expected = lm(ids), theirs(ids, use_cache=False).logits
    assert expected.std() > 0.3
    assert (ours - expected).abs().max() < 1e-4


@pytest.mark.parametrize("pattern, latent", [("MEM*E-ME", 32), ("M*ME-", None)])
def test_gradients(tmp_path, pattern, latent):
    lm, theirs = pair(tmp_path, pattern, moe_latent_size=latent)
    ids = torch.randint(0, 160, (2, 40), generator=torch.Generator().manual_seed(2))
    lm.train()
    torch.nn.functional.cross_entropy(lm(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    logits = theirs(ids, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    expected = dict(theirs.named_parameters())
    checked = 0
    for name, parameter in lm.named_parameters():
        their_name = name if name.startswith("lm_head") else f"model.{name}"
        true = expected[their_name].grad
        assert (parameter.grad - true).abs().max() <= 1e-4 * true.abs().max() + 1e-7, name
        checked += 1
    assert checked == len(expected)


def test_greedy_tokens(tmp_path):
    from model import Cache

    lm, theirs = pair(tmp_path, "MEM*EME", moe_latent_size=32)
    ids = torch.randint(3, 160, (2, 9), generator=torch.Generator().manual_seed(3))
    expected = theirs.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    cache, tokens = Cache(lm, 2, 40), ids
    with torch.no_grad():
        logits = lm(ids, cache=cache)
        for _ in range(20):
            following = logits[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, following], 1)
            logits = lm(following, cache=cache)
    assert torch.equal(tokens, expected)


def test_greedy_tokens_in_bfloat16_where_it_can_tell(tmp_path):
    """Both round differently; where the best token leads by more than that, it is the same."""
    lm, theirs = pair(tmp_path, "M*-M-")  # no router: a flipped choice of experts is another model
    ids = torch.randint(3, 160, (4, 45), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        exact = theirs(ids, use_cache=False).logits
        lm.compute_dtype, theirs = torch.bfloat16, theirs.to(torch.bfloat16)
        ours, expected = lm(ids), theirs(ids, use_cache=False).logits.float()
    first, second = exact.topk(2, -1)[0].unbind(-1)
    safe = first - second > 0.15 * exact.std()
    assert safe.float().mean() > 0.5
    assert torch.equal(ours.argmax(-1)[safe], expected.argmax(-1)[safe])


def test_gradients_of_packed_documents_are_the_sum_of_each_alone():
    lm = HybridLM(HybridConfig(**SHAPE, pattern="M*E-M", moe_latent_size=32), seed=1)
    ids = torch.randint(0, 160, (1, 70), generator=torch.Generator().manual_seed(5))
    sizes = [33, 1, 36]
    seq_idx = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))[None]
    slope = torch.randn(1, 70, 160, generator=torch.Generator().manual_seed(6))
    packed = torch.autograd.grad((lm(ids, seq_idx_BT=seq_idx) * slope).sum(), list(lm.parameters()))
    parts = zip(ids.split(sizes, 1), slope.split(sizes, 1), strict=True)
    alone = torch.autograd.grad(sum((lm(part) * own).sum() for part, own in parts), list(lm.parameters()))
    for (name, _), mine, true in zip(lm.named_parameters(), packed, alone, strict=True):
        assert (mine - true).abs().max() <= 1e-4 * true.abs().max() + 1e-6, name


def test_mtp_tensors_are_what_the_released_checkpoints_call_them(tmp_path):
    from safetensors import safe_open

    config = HybridConfig(**SHAPE, pattern="ME", moe_latent_size=32, mtp_depth=2)
    HybridLM(config).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = {name for name in file.keys() if name.startswith("mtp.")}  # noqa: SIM118 (a safetensors handle is no mapping)
    attention = {f"mtp.layers.0.{n}.weight" for n in ("eh_proj", "enorm", "hnorm", "norm", "mixer.q_proj", "mixer.k_proj", "mixer.v_proj", "mixer.o_proj")}
    moe = {f"mtp.layers.1.{n}.weight" for n in ("norm", "final_layernorm", "mixer.gate", "mixer.shared_experts.up_proj", "mixer.shared_experts.down_proj",
                                                "mixer.fc1_latent_proj", "mixer.fc2_latent_proj")}
    experts = {f"mtp.layers.1.mixer.experts.{e}.{n}.weight" for e in range(6) for n in ("up_proj", "down_proj")}
    assert names == attention | moe | experts | {"mtp.layers.1.mixer.gate.e_score_correction_bias"}
    assert json.loads((tmp_path / "config.json").read_text())["num_nextn_predict_layers"] == 1
