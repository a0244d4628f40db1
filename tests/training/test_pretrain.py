"""Pretraining: the loss falls, a killed run resumes to the same bits, folders are not mixed, a broken loss names its batch."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pipelines.errors import UserError
from pipelines.loader import TokenStream
from training.language_loss import language_loss
from training.pretrain import PretrainRecipe, pretrain
from training.setup import load_model

MICRO = {
    "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "mamba_num_heads": 2, "mamba_head_dim": 16,
    "ssm_state_size": 16, "n_routed_experts": 4, "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32, "moe_latent_size": 16,
    "mtp_depth": 1, "chunk_size": 16,
}


def recipe(micro, **changes):
    values = dict(shards=micro["shards"], model={"overrides": MICRO}, steps=6, checkpoint_every=2, precision="bf16", seed=4, optimizer={"lr": 1e-2})
    return PretrainRecipe(**values | changes)


def rows(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return (Path(folder) / "model" / "model.safetensors").read_bytes()


class Killed(Exception):
    pass


def killer(after):
    def progress(event):
        if event.done == after:
            raise Killed

    return progress


@pytest.mark.parametrize("precision", ["bf16", "nvfp4"])
def test_a_killed_run_resumes_to_the_same_bits(micro, tmp_path, precision):
    straight = pretrain(recipe(micro, precision=precision), str(tmp_path / "straight"))
    with pytest.raises(Killed):
        pretrain(recipe(micro, precision=precision), str(tmp_path / "killed"), killer(3))  # one step after the checkpoint at 2
    assert len(rows(tmp_path / "killed")) == 3 and not (tmp_path / "killed" / "done.json").exists()
    resumed = pretrain(recipe(micro, precision=precision), str(tmp_path / "killed"))
    assert weights(tmp_path / "straight") == weights(tmp_path / "killed")
    timeless = lambda row: {k: v for k, v in row.items() if "second" not in k}
    assert [timeless(r) for r in rows(tmp_path / "killed")] == [timeless(r) for r in rows(tmp_path / "straight")]
    assert straight.metrics == resumed.metrics and (straight.steps, straight.tokens) == (resumed.steps, resumed.tokens)


@pytest.mark.parametrize("precision", ["bf16", "nvfp4"])
def test_layers_run_again_in_the_backward_give_the_same_bits(micro, tmp_path, precision):
    """A run may even change its mind: recomputation is no part of what it is."""
    pretrain(recipe(micro, precision=precision), str(tmp_path / "kept"))
    with pytest.raises(Killed):
        pretrain(recipe(micro, precision=precision), str(tmp_path / "again"), killer(2))
    pretrain(recipe(micro, precision=precision, recompute="layers"), str(tmp_path / "again"))
    assert weights(tmp_path / "kept") == weights(tmp_path / "again")


def test_the_loss_falls_and_the_folder_is_complete(micro, tmp_path):
    result = pretrain(recipe(micro, steps=25, eval_every=25), str(tmp_path / "run"))
    found = rows(tmp_path / "run")
    assert found[-1]["lm_loss"] < found[0]["lm_loss"] - 1.0
    assert set(found[-1]["validation"]) == {"text", "problems"} and found[-1]["tokens"] == result.tokens
    assert {p.name for p in Path(result.model_path).iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    before = (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns
    assert pretrain(recipe(micro, steps=25, eval_every=25), str(tmp_path / "run")) == result
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns == before


def test_continued_training_starts_from_the_given_weights(micro, tmp_path):
    result = pretrain(recipe(micro, init_from=micro["model"], steps=1, optimizer={"lr": 1e-9}), str(tmp_path / "run"))
    before, after = load_model(micro["model"])[0].state_dict(), load_model(result.model_path)[0].state_dict()
    assert all(torch.allclose(before[name], after[name], atol=1.1e-3) for name in before)  # router biases move by 1e-3


def test_the_objective_is_the_definition(micro):
    """Main and MTP cross-entropies, token by token in float64, with masks and document ends."""
    lm, _ = load_model(micro["model"])
    batch = TokenStream(micro["shards"]).batch(0)
    ids, labels, seq = (torch.from_numpy(a) for a in (batch.input_ids, batch.labels, batch.seq_idx))
    mask = torch.from_numpy(batch.loss_mask).float()
    lm.train()
    terms = language_loss(lm, ids, labels, mask, seq, mtp_weight=0.3)
    hidden = lm.hidden(ids, seq_idx_BT=seq)
    logits = [lm.lm_head(h).double() for h in (hidden, *lm.mtp_hidden(hidden, ids, seq))]
    B, T = ids.shape
    for depth, logit in enumerate(logits):
        losses = [
            F.cross_entropy(logit[b, t], labels[b, t + depth]).item()
            for b in range(B) for t in range(T - depth)
            if mask[b, t + depth] and seq[b, t] == seq[b, t + depth]
        ]
        found = terms.main if depth == 0 else terms.mtp[depth - 1]
        assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert terms.total.item() == pytest.approx(terms.main.item() + 0.3 * terms.mtp[0].item() + terms.balance.item(), rel=1e-6)


def test_a_folder_of_another_run_is_refused(micro, tmp_path):
    pretrain(recipe(micro, steps=1), str(tmp_path / "run"))
    with pytest.raises(UserError, match="another run.*seed"):
        pretrain(recipe(micro, steps=1, seed=5), str(tmp_path / "run"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="not a training run"):
        pretrain(recipe(micro), str(tmp_path / "notes"))


def test_a_loss_that_is_not_finite_names_step_and_documents(micro, tmp_path):
    broken = load_model(micro["model"])
    with torch.no_grad():
        broken[0].norm_f.weight.fill_(3e38)
    from training.setup import save_model_folder

    save_model_folder(*broken, tmp_path / "broken")
    with pytest.raises(FloatingPointError, match=r"(nan|inf) at step 0; batch: \d+ documents: (text|problems)/"):
        pretrain(recipe(micro, init_from=str(tmp_path / "broken")), str(tmp_path / "run"))


def test_mistakes_are_named(micro, tmp_path):
    with pytest.raises(UserError, match="hidden_sise"):
        pretrain(recipe(micro, model={"overrides": {"hidden_sise": 3}}), str(tmp_path / "a"))
    with pytest.raises(UserError, match="plan .* has"):
        pretrain(recipe(micro, steps=10**6), str(tmp_path / "b"))
    with pytest.raises(UserError, match="shards"):
        pretrain(PretrainRecipe(), str(tmp_path / "c"))
