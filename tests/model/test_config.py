"""Shapes of the released models, both spellings of config.json, and clear errors."""

import json

import pytest
import torch

from model import HybridConfig, HybridLM


def counts(config):
    """Total and active parameters, MTP left out, counted on the meta device."""
    with torch.device("meta"):
        lm = HybridLM(config)
    total = sum(p.numel() for name, p in lm.named_parameters() if not name.startswith("mtp."))
    routed = sum(p.numel() for name, p in lm.named_parameters() if not name.startswith("mtp.") and ".mixer.experts." in name)
    mtp = sum(p.numel() for name, p in lm.named_parameters() if name.startswith("mtp."))
    return total, total - routed + routed * config.num_experts_per_tok // config.n_routed_experts, lm.lm_head.weight.numel(), mtp


@pytest.mark.parametrize("name, total, active, uncounted, mtp, layers", [
    ("nano", 31.578e9, 3.580e9, 0, 0, (23, 23, 6)),        # active with embedding and head
    ("super", 120.669e9, 12.77e9, 0, 2.94e9, (40, 40, 8)),  # the same
    ("ultra", 549.3e9, 54.98e9, 1, 11.22e9, (48, 48, 12)),  # with the head only
])
def test_released_sizes(name, total, active, uncounted, mtp, layers):
    config = getattr(HybridConfig, name)()
    counted, used, embedding, ahead = counts(config)
    assert counted == pytest.approx(total, rel=3e-3)
    assert used - uncounted * embedding == pytest.approx(active, rel=3e-3)
    assert ahead == pytest.approx(mtp, rel=3e-3)
    assert tuple(config.pattern.count(c) for c in "ME*") == layers


def test_supers_published_active_parameters_leave_the_routers_out():
    config = HybridConfig.super()
    routers = config.pattern.count("E") * config.n_routed_experts * config.hidden_size
    assert counts(config)[1] - routers == pytest.approx(12.7e9, rel=3e-3)


@pytest.mark.parametrize("config", [HybridConfig.tiny(), HybridConfig.small(), HybridConfig.nano(), HybridConfig.super(), HybridConfig.ultra(mtp_depth=3)])
def test_hf_round_trip(config):
    written = json.loads(json.dumps(config.to_hf()))
    assert HybridConfig.from_hf(written) == config
    old = {k: v for k, v in written.items() if not k.endswith("layers_block_type")}
    assert HybridConfig.from_hf(old) == config
    new = {k: v for k, v in written.items() if not k.endswith("hybrid_override_pattern")}
    assert HybridConfig.from_hf(new) == config
    nvidia = {"linear_attention": "mamba", "full_attention": "attention"}
    for key in ("layers_block_type", "mtp_layers_block_type"):
        if key in new:
            new[key] = [nvidia.get(layer, layer) for layer in new[key]]
    assert HybridConfig.from_hf(new) == config


def test_transformers_reads_and_writes_our_config(tmp_path):
    transformers = pytest.importorskip("transformers")
    for config in (HybridConfig.tiny(), HybridConfig.nano()):
        (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
        theirs = transformers.NemotronHConfig.from_pretrained(tmp_path)
        assert theirs.hybrid_override_pattern == config.pattern
        theirs.save_pretrained(tmp_path)
        assert HybridConfig.from_hf(json.loads((tmp_path / "config.json").read_text())) == config
    assert HybridConfig.from_hf({"model_type": "nemotron_h", "hybrid_override_pattern": "ME*-"}).moe_intermediate_size == transformers.NemotronHConfig().moe_intermediate_size


@pytest.mark.parametrize("changes, words", [
    (dict(pattern="MXE"), "pattern"), (dict(pattern=""), "pattern"), (dict(hidden_size=0), "hidden_size"), (dict(hidden_size="64"), "hidden_size"),
    (dict(num_attention_heads=5, num_key_value_heads=2), "num_key_value_heads"), (dict(mamba_num_heads=6, n_groups=4), "n_groups"),
    (dict(num_experts_per_tok=9), "num_experts_per_tok"), (dict(mtp_depth=-1), "mtp_depth"), (dict(moe_latent_size=0), "moe_latent_size"),
])
def test_impossible_shapes_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        HybridConfig.tiny(**changes)


@pytest.mark.parametrize("changes, words", [
    (dict(model_type="llama"), "llama"), (dict(tie_word_embeddings=True), "tie_word_embeddings"), (dict(use_bias=True), "use_bias"),
    (dict(n_group=4), "n_group"), (dict(time_step_limit=[0.001, 0.1]), "time_step_limit"), (dict(hybrid_override_pattern=None, layers_block_type=["rnn"]), "rnn"),
    (dict(hybrid_override_pattern=None, layers_block_type=None), "layers_block_type"), (dict(num_nextn_predict_layers=3), "num_nextn_predict_layers"),
])
def test_unsupported_checkpoints_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        HybridConfig.from_hf(HybridConfig.tiny().to_hf() | changes)
