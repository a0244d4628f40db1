"""Hugging Face folders: bit-equal round trips, sharded files, and bad files named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import HybridConfig, HybridLM

CONFIG = HybridConfig.tiny(vocab_size=64, hidden_size=32, pattern="ME*-", mamba_num_heads=2, mamba_head_dim=32, ssm_state_size=16, n_routed_experts=4,
                           num_attention_heads=2, head_dim=16)


@pytest.fixture
def folder(tmp_path):
    HybridLM(CONFIG, seed=5).save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_round_trip_is_bit_equal(folder, tmp_path_factory):
    lm = HybridLM(CONFIG, seed=5)
    loaded = HybridLM.from_pretrained(folder)
    assert loaded.config == CONFIG and list(loaded.state_dict()) == list(lm.state_dict())
    for name, tensor in lm.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    again = tmp_path_factory.mktemp("again")
    loaded.save_pretrained(again)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (again / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_bf16_files_stay_bf16_when_asked(folder, tmp_path_factory):
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    HybridLM.from_pretrained(folder).save_pretrained(first, dtype=torch.bfloat16)
    loaded = HybridLM.from_pretrained(first, dtype=None)
    assert loaded.lm_head.weight.dtype == torch.bfloat16 and loaded.layers[1].mixer.gate.e_score_correction_bias.dtype == torch.float32
    loaded.save_pretrained(second)
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    loaded.compute_dtype = torch.bfloat16
    with torch.no_grad():
        assert torch.isfinite(loaded(torch.arange(10)[None])).all()


def test_sharded_checkpoints_load(folder):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = HybridLM.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), HybridLM(CONFIG, seed=5).state_dict().values()))
    index["weight_map"][names[0]] = "../elsewhere.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="outside its folder"):
        HybridLM.from_pretrained(folder)


@pytest.mark.parametrize("change, words", [
    (lambda t: t.pop("backbone.layers.1.mixer.experts.2.up_proj.weight"), "missing backbone.layers.1.mixer.experts.2.up_proj.weight"),
    (lambda t: t.pop("mtp.layers.0.eh_proj.weight"), "missing mtp.layers.0.eh_proj.weight"),
    (lambda t: t.update(stray=torch.zeros(1)), "unexpected stray"),
    (lambda t: t.update({"lm_head.weight": torch.zeros(3, 3)}), r"lm_head.weight has shape \[3, 3\], not \[64, 32\]"),
    (lambda t: t["backbone.layers.0.mixer.A_log"].fill_(float("nan")), "backbone.layers.0.mixer.A_log holds NaN"),
    (lambda t: t["backbone.layers.1.mixer.experts.3.down_proj.weight"].view(-1)[5:6].fill_(float("inf")), "experts.3.down_proj.weight holds NaN or inf"),
])
def test_bad_tensors_are_named(folder, change, words):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=words):
        HybridLM.from_pretrained(folder)


def test_bad_folders_are_named(folder, tmp_path_factory):
    with pytest.raises(ValueError, match="config.json"):
        HybridLM.from_pretrained(tmp_path_factory.mktemp("empty"))
    (folder / "model.safetensors").write_bytes(b"not a safetensors file at all")
    with pytest.raises(ValueError, match="not a safetensors file"):
        HybridLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="does not exist"):
        HybridLM.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        HybridLM.from_pretrained(folder)
