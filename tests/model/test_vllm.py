"""Our exported checkpoints in vLLM (`make vllm`): greedy outputs equal our engine's, dense and with experts, which on CPU come from our plugin."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from model import HybridConfig, HybridLM
from model.engine import Engine, SamplingParams

pytestmark = pytest.mark.vllm
ROOT = Path(__file__).resolve().parents[2]
PEER = ROOT / ".venv-vllm"
SMALL = dict(vocab_size=512, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32, mamba_num_heads=4, mamba_head_dim=32, ssm_state_size=16,
             n_groups=2, n_routed_experts=8, initializer_range=0.08)
MODELS = {
    "dense": dict(pattern="M-M*-M", mtp_depth=0),
    "experts": dict(pattern="MEM*E", moe_latent_size=None, mtp_depth=0),
    "latent": dict(pattern="MEM*E-E", mtp_depth=2),  # as Super: experts in a latent space, and MTP weights, which vLLM's base model leaves out
}
PROMPTS = [[5, 9, 2, 7, 11], list(range(3, 60)), [400] * 9, list(range(200, 331)), [1]]
TOKENS = 32


class Ids:
    """A tokenizer for prompts that are token ids already."""

    def token_to_id(self, token):
        return None

    def decode_batch(self, rows, skip_special_tokens=True):
        return ["" for _ in rows]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for seed, (name, shape) in enumerate(MODELS.items()):
        made[name] = tmp_path_factory.mktemp(name)
        HybridLM(HybridConfig.tiny(**SMALL | shape), seed=seed).save_pretrained(made[name], shard_bytes=100_000)
    return made


@pytest.fixture(scope="module", params=["eager", "compiled"])
def theirs(request, folders):
    """vLLM's tokens by model, from one process of its own environment."""
    if not (PEER / ".ready").exists():
        pytest.skip("vLLM is not installed in .venv-vllm (make vllm)")
    asked = json.dumps({"prompts": PROMPTS, "max_tokens": TOKENS, "dtype": "float32", "eager": request.param == "eager"})
    ran = subprocess.run([PEER / "bin/python", ROOT / "tests/peers/run_vllm.py", *map(str, folders.values())], input=asked, capture_output=True, text=True, cwd=ROOT,
                         env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert ran.returncode == 0, ran.stderr[-3000:]
    answers = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("ANSWERS "))[8:])
    return {name: answers[str(folder)] for name, folder in folders.items()}


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_our_engines(theirs, folders, name):
    engine = Engine(HybridLM.from_pretrained(folders[name]), Ids(), max_slots=8, max_length=256)
    ours = [output.outputs[0].token_ids for output in engine.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True))]
    assert theirs[name] == ours
    assert len({tuple(tokens) for tokens in ours}) == len(PROMPTS)  # the models say different things about different prompts
