"""Hugging Face folders: bit-equal round trips, sharded files, and bad files named."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import HybridConfig, HybridLM
from model.checkpoint import disk_names

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.mark.parametrize("limit", [1, 3_000, 20_000])
def test_shards_are_written_by_size_and_load_bit_equal(folder, tmp_path_factory, limit):
    lm = HybridLM(CONFIG, seed=5)
    sharded, again = tmp_path_factory.mktemp("sharded"), tmp_path_factory.mktemp("again")
    lm.save_pretrained(sharded, dtype=torch.bfloat16, shard_bytes=limit)
    files = sorted(sharded.glob("model-*.safetensors"))
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    sizes = {file.name: sum(t.numel() * t.element_size() for t in load_file(file).values()) for file in files}
    assert len(files) > 1 and all(size <= limit or len(load_file(sharded / name)) == 1 for name, size in sizes.items())
    assert index["metadata"]["total_size"] == sum(sizes.values()) and set(index["weight_map"].values()) == set(sizes)
    loaded = HybridLM.from_pretrained(sharded, dtype=None)
    for name, tensor in lm.state_dict().items():
        wanted = tensor if name.endswith("e_score_correction_bias") else tensor.bfloat16()
        assert loaded.state_dict()[name].dtype == wanted.dtype and torch.equal(loaded.state_dict()[name], wanted), name
    loaded.save_pretrained(again, shard_bytes=limit)
    assert {f.name: f.read_bytes() for f in again.iterdir()} == {f.name: f.read_bytes() for f in sharded.iterdir()}


def test_a_save_leaves_nothing_of_an_earlier_one(folder):
    lm = HybridLM(CONFIG, seed=6)
    lm.save_pretrained(folder, shard_bytes=9_000)
    many = len(list(folder.iterdir()))
    lm.save_pretrained(folder, shard_bytes=40_000)
    assert not (folder / "model.safetensors").exists() and 4 <= len(list(folder.iterdir())) < many
    assert torch.equal(HybridLM.from_pretrained(folder).lm_head.weight, lm.lm_head.weight)
    lm.save_pretrained(folder)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_transformers_reads_our_shards(tmp_path):
    transformers = pytest.importorskip("transformers")
    lm = HybridLM(CONFIG, seed=7)
    lm.save_pretrained(tmp_path, shard_bytes=30_000)
    theirs, notes = transformers.NemotronHForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not notes["missing_keys"] and not notes["mismatched_keys"]
    assert torch.equal(theirs.lm_head.weight, lm.lm_head.weight)
    assert torch.equal(theirs.model.layers[1].mixer.experts.down_proj, lm.layers[1].mixer.experts.down_proj)


@pytest.mark.parametrize("shard", ["5GB", "30KB"])
def test_we_read_what_transformers_writes(tmp_path, shard):
    """Its config's spelling, its shards, its dtype; what it does not know (MTP) is not in its folders."""
    transformers = pytest.importorskip("transformers")
    config = replace(CONFIG, mtp_depth=0)
    HybridLM(config, seed=7).save_pretrained(tmp_path / "ours")
    theirs = transformers.NemotronHForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > (shard == "30KB")
    loaded = HybridLM.from_pretrained(tmp_path / "theirs", dtype=None)
    assert loaded.config == config and loaded.lm_head.weight.dtype == torch.bfloat16
    loaded.save_pretrained(tmp_path / "again")
    again, notes = transformers.NemotronHForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.bfloat16, output_loading_info=True)
    assert not notes["missing_keys"] and not notes["unexpected_keys"]
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_file_of_several_dtypes_keeps_them(folder, tmp_path_factory):
    kept = {"A_log": torch.float32, "D": torch.float64, "norm_f.weight": torch.float16}

    def change(tensors):
        for name in tensors:
            tensors[name] = tensors[name].to(next((dtype for end, dtype in kept.items() if name.endswith(end)), tensors[name].dtype if "e_score" in name else torch.bfloat16))

    rewrite(folder, change)
    again = tmp_path_factory.mktemp("again")
    HybridLM.from_pretrained(folder, dtype=None).save_pretrained(again)
    before, after = load_file(folder / "model.safetensors"), load_file(again / "model.safetensors")
    assert before.keys() == after.keys() and {str(tensor.dtype) for tensor in after.values()} == {"torch.float64", "torch.float32", "torch.float16", "torch.bfloat16"}
    assert all(tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_supers_tensors_have_the_released_names():
    """By kind, as counted from the configuration: 1040 of them are MTP's."""
    with torch.device("meta"):
        lm = HybridLM(HybridConfig.super())
    names = [name for name, _ in disk_names(lm)]
    body = 40 * 9 + 8 * 5 + 40 * (1 + 2 + 2 + 2 + 512 * 2) + 3  # M, *, E (norm, router, shared, latent, experts), and embeddings, norm_f, head
    assert len([name for name in names if name.startswith("mtp.")]) == 1040 and len(names) == len(set(names)) == body + 1040
    assert {"backbone.embeddings.weight", "backbone.norm_f.weight", "lm_head.weight", "backbone.layers.0.mixer.conv1d.bias", "backbone.layers.1.mixer.fc1_latent_proj.weight",
            "backbone.layers.1.mixer.experts.511.down_proj.weight", "backbone.layers.7.mixer.o_proj.weight", "backbone.layers.1.mixer.gate.e_score_correction_bias"} <= set(names)


def test_released_folders_load_as_they_are(tmp_path):
    """config.json as NVIDIA writes it for Nano and Super, bf16 shards, a tensor for each expert, float32 router biases."""
    lm = HybridLM(CONFIG, seed=8)
    lm.save_pretrained(tmp_path, dtype=torch.bfloat16, shard_bytes=15_000)
    released = {
        "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "auto_map": {"AutoConfig": "configuration_nemotron_h.NemotronHConfig"},
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1, "chunk_size": 128, "conv_kernel": 4, "eos_token_id": [2, 11], "expand": 2, "head_dim": 16,
        "hidden_dropout": 0.0, "hidden_size": 32, "hybrid_override_pattern": "ME*-", "initializer_range": 0.02, "intermediate_size": CONFIG.intermediate_size,
        "layer_norm_epsilon": 1e-05, "mamba_head_dim": 32, "mamba_hidden_act": "silu", "mamba_num_heads": 2, "mamba_proj_bias": False, "mamba_ssm_cache_dtype": "float32",
        "max_position_embeddings": 262144, "mlp_bias": False, "mlp_hidden_act": "relu2", "moe_intermediate_size": CONFIG.moe_intermediate_size,
        "moe_latent_size": CONFIG.moe_latent_size, "moe_shared_expert_intermediate_size": CONFIG.moe_shared_expert_intermediate_size, "n_group": 1, "n_groups": 1,
        "moe_shared_expert_overlap": False, "mtp_hybrid_override_pattern": "*E", "n_routed_experts": 4, "n_shared_experts": 1, "norm_eps": 1e-05, "norm_topk_prob": True,
        "num_attention_heads": 2, "num_experts_per_tok": 2, "num_hidden_layers": 4, "num_key_value_heads": CONFIG.num_key_value_heads, "num_logits_to_keep": 1,
        "num_nextn_predict_layers": 1, "pad_token_id": 0, "partial_rotary_factor": 1.0, "rescale_prenorm_residual": True, "residual_in_fp32": False, "rope_theta": 10000,
        "routed_scaling_factor": 2.5, "sliding_window": None, "ssm_state_size": 16, "tie_word_embeddings": False, "time_step_floor": 0.0001,
        "time_step_limit": [0.0, float("inf")], "time_step_max": 0.1, "time_step_min": 0.001, "topk_group": 1, "torch_dtype": "bfloat16", "use_bias": False,
        "use_cache": True, "use_conv_bias": True, "use_mamba_kernels": True, "vocab_size": 64,
    }
    (tmp_path / "config.json").write_text(json.dumps(released))
    loaded = HybridLM.from_pretrained(tmp_path, dtype=None)
    assert loaded.config.pattern == "ME*-" and loaded.config.mtp_depth == 2 and loaded.config.eos_token_id == 2
    assert loaded.layers[1].mixer.experts.up_proj.dtype == torch.bfloat16 and loaded.layers[1].mixer.gate.e_score_correction_bias.dtype == torch.float32
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(HybridLM.from_pretrained(tmp_path)(ids), HybridLM.from_pretrained(tmp_path)(ids))
    ultra = {k: v for k, v in released.items() if "override_pattern" not in k} | {
        "layers_block_type": ["mamba", "moe", "attention", "mlp"], "mtp_layers_block_type": ["attention", "moe"]}
    (tmp_path / "config.json").write_text(json.dumps(ultra))
    assert HybridLM.from_pretrained(tmp_path).config == loaded.config


def test_training_a_loaded_model_leaves_its_file_alone(folder):
    before = (folder / "model.safetensors").read_bytes()
    lm = HybridLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(1.0)
    assert (folder / "model.safetensors").read_bytes() == before
    assert not torch.equal(HybridLM.from_pretrained(folder).lm_head.weight, lm.lm_head.weight)


MEASURE = """
import json, os, re, sys, torch
from model import HybridLM

def resident(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

torch.set_num_threads(1)
HybridLM.from_pretrained(sys.argv[1])  # what loading needs besides weights
for folder in sys.argv[2:]:
    for dtype in (None, torch.float32):
        child = os.fork()  # each starts from the same memory: nothing freed by an earlier load can be used again
        if not child:
            open("/proc/self/clear_refs", "w").write("5")  # forget the peak
            before = resident("VmRSS")
            lm = HybridLM.from_pretrained(folder, dtype=dtype)
            size = sum(t.numel() * t.element_size() for t in lm.state_dict().values())
            print(json.dumps([os.path.basename(folder), str(dtype), (resident("VmHWM") - before) / size]), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_does_not_hold_weights_twice(folder, tmp_path):
    """The most memory a fresh process holds, over the model's own size: single file and shards, as stored and converted."""
    lm = HybridLM(replace(CONFIG, vocab_size=4096, hidden_size=512, n_routed_experts=48, moe_intermediate_size=512, moe_latent_size=512), seed=None)
    for tensor in lm.parameters():
        tensor.data.fill_(0.5)
    lm.save_pretrained(tmp_path / "one", dtype=torch.bfloat16)
    lm.save_pretrained(tmp_path / "shards", dtype=torch.bfloat16, shard_bytes=20_000_000)
    answer = subprocess.run([sys.executable, "-c", MEASURE, str(folder), str(tmp_path / "one"), str(tmp_path / "shards")], capture_output=True, text=True, check=True,
                            cwd=ROOT, timeout=60)
    rows = [json.loads(line) for line in answer.stdout.splitlines()]
    assert len(rows) == 4 and all(0.9 < grown < 1.2 for _, _, grown in rows), rows


@pytest.mark.parametrize("change, words", [
    (lambda t: t.pop("backbone.layers.1.mixer.experts.2.up_proj.weight"), "missing backbone.layers.1.mixer.experts.2.up_proj.weight"),
    (lambda t: t.pop("mtp.layers.0.eh_proj.weight"), "missing mtp.layers.0.eh_proj.weight"),
    (lambda t: t.update(stray=torch.zeros(1)), "unexpected stray"),
    (lambda t: t.update({"lm_head.weight": torch.zeros(3, 3)}), r"lm_head.weight has shape \[3, 3\], not \[64, 32\]"),
    (lambda t: t["backbone.layers.0.mixer.A_log"].fill_(float("nan")), "backbone.layers.0.mixer.A_log holds NaN"),
    (lambda t: t["backbone.layers.1.mixer.experts.3.down_proj.weight"].view(-1)[5:6].fill_(float("inf")), "experts.3.down_proj.weight holds NaN or inf"),
    (lambda t: t.update({"backbone.norm_f.weight": torch.ones(32, dtype=torch.int64)}), "norm_f.weight is of type I64, not one of F64, F32"),
    (lambda t: t.update({"backbone.norm_f.weight": torch.ones(32).to(torch.float8_e4m3fn)}), "norm_f.weight is of type F8_E4M3"),
])
def test_bad_tensors_are_named(folder, change, words):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=words) as caught:
        HybridLM.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_experts_of_two_dtypes_are_named(folder):
    rewrite(folder, lambda t: t.update({(k := "backbone.layers.1.mixer.experts.2.up_proj.weight"): t[k].bfloat16()}))
    with pytest.raises(ValueError, match="experts.2.up_proj.weight is bfloat16, other experts of its layer float32"):
        HybridLM.from_pretrained(folder, dtype=None)
    HybridLM.from_pretrained(folder)


@pytest.mark.parametrize("change, words", [
    (lambda index, first: index["weight_map"].update({first: "../elsewhere.safetensors"}), "outside its folder"),
    (lambda index, first: index["weight_map"].update({first: "model-00009-of-00009.safetensors"}), "model-00009-of-00009.safetensors does not exist"),
    (lambda index, first: index["weight_map"].update(stray=index["weight_map"][first]), "lacks stray, which the index says it holds"),
    (lambda index, first: index["weight_map"].pop(first), "holds backbone.embeddings.weight, which the index lacks"),
    (lambda index, first: index.pop("weight_map"), "is not a safetensors index"),
    (lambda index, first: index.update(weight_map=[1]), "is not a safetensors index"),
])
def test_bad_indexes_are_named(tmp_path, change, words):
    HybridLM(CONFIG, seed=5).save_pretrained(tmp_path, shard_bytes=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    change(index, next(iter(index["weight_map"])))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=words):
        HybridLM.from_pretrained(tmp_path)


def test_bad_folders_are_named(folder, tmp_path_factory):
    with pytest.raises(ValueError, match="config.json"):
        HybridLM.from_pretrained(tmp_path_factory.mktemp("empty"))
    whole = (folder / "model.safetensors").read_bytes()
    for cut in (0, 7, 100, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="not a safetensors file"):
            HybridLM.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"not a safetensors file at all")
    with pytest.raises(ValueError, match="not a safetensors file"):
        HybridLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="does not exist"):
        HybridLM.from_pretrained(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="not a JSON object"):
        HybridLM.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        HybridLM.from_pretrained(folder)
