"""GRPO against a literal float64 computation; rollouts, resume, and a trivial task learnt."""

import json
import math

import numpy as np
import pytest
import torch

from model import chat
from model.engine import Engine
from pipelines.errors import UserError
from training.environments import VerifiableTask
from training.rl.grpo import group_advantages, policy_loss, token_mismatch
from training.rl.rollout import collect, tensors
from training.rl.train import RlRecipe, rl, token_logprobs
from training.setup import load_model


@pytest.mark.parametrize("baseline", ["leave_one_out", "mean"])
def test_advantages_equal_the_definition(baseline):
    rng = np.random.default_rng(1)
    rewards = rng.integers(0, 2, (6, 5)) + 0.1 * rng.integers(0, 2, (6, 5))
    rewards[2] = 1.0
    found = group_advantages(torch.tensor(rewards), baseline=baseline)
    for p in range(6):
        group = [float(r) for r in rewards[p]]
        mean = sum(group) / 5
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / 4)
        assert bool(found.kept_P[p]) == (std > 1e-8)
        for g in range(5):
            others = (sum(group) - group[g]) / 4 if baseline == "leave_one_out" else mean
            expected = (group[g] - others) / (std + 1e-6) if std > 1e-8 else 0.0
            assert found.advantages_PG[p, g].item() == pytest.approx(expected, abs=1e-6)


def test_loss_and_its_gradient_equal_a_literal_computation():
    rng = np.random.default_rng(2)
    N, T = 4, 7
    new, old, engine = (rng.normal(-1.5, 0.6, (N, T)) for _ in range(3))
    advantage, mask = rng.normal(size=N), rng.integers(0, 2, (N, T))
    expected, gradient, clipped = 0.0, np.zeros((N, T)), 0
    for n in range(N):
        for t in range(T):
            if mask[n, t]:
                ratio = math.exp(new[n, t] - old[n, t])
                weight = min(math.exp(old[n, t] - engine[n, t]), 1.5)
                bounded = min(max(ratio, 0.8), 1.28)
                expected -= weight * min(ratio * advantage[n], bounded * advantage[n])
                if ratio * advantage[n] <= bounded * advantage[n]:
                    gradient[n, t] = -weight * ratio * advantage[n]
                else:
                    clipped += 1
    logprobs = torch.tensor(new, dtype=torch.float32, requires_grad=True)
    as32 = [torch.tensor(a, dtype=torch.float32) for a in (old, engine, advantage, mask)]
    found = policy_loss(logprobs, *as32, importance_cap=1.5)
    found.total.backward()
    assert clipped and int(found.clipped) == clipped
    assert found.total.item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(logprobs.grad.numpy(), gradient, rtol=2e-5, atol=1e-6)


def test_mismatch_is_one_for_equal_policies_and_grows_with_the_difference():
    logprobs, mask = torch.randn(3, 4), torch.tensor([[1.0, 1, 0, 0]] * 3)
    assert token_mismatch(logprobs, logprobs, mask).tolist() == [1.0] * 3
    shifted = torch.where(mask.bool(), logprobs + math.log(2), logprobs + 100)
    torch.testing.assert_close(token_mismatch(logprobs, shifted, mask), torch.full((3,), 2.0))


def test_rollouts_are_a_function_of_seed_and_step_and_the_trainer_agrees_with_the_engine(micro):
    lm, tokenizer = load_model(micro["model"])
    worlds = [VerifiableTask("addition"), VerifiableTask("comparison")]

    def play(step):
        return collect(
            Engine(lm, tokenizer, max_slots=8, max_length=128), lambda m: chat.encode_prompt(tokenizer, m), worlds,
            prompts=3, group=2, seed=5, step=step, max_tokens=12,
        )

    first, again, other = play(1), play(1), play(2)
    assert first.groups == again.groups and first.groups != other.groups
    assert first.environments == ["comparison", "addition", "comparison"]
    samples = [s for group in first.groups for s in group]
    batch = tensors(samples)
    with torch.no_grad():
        trainer = token_logprobs(lm, batch)
    torch.testing.assert_close(trainer, batch.engine_logprobs_NT, atol=2e-4, rtol=2e-4)
    for n, sample in enumerate(samples):
        assert batch.labels_NT[n][batch.mask_NT[n].bool()].tolist() == sample.response_ids


def recipe(micro, **changes):
    values = dict(
        init_from=micro["model"], environments=[{"task": "addition", "params": {"digits": [1, 1]}}, {"task": "comparison"}],
        steps=3, prompts=4, group=4, max_tokens=10, checkpoint_every=1, precision="fp32", seed=1,
    )
    return RlRecipe(**values | changes)


class Killed(Exception):
    pass


def killer(after):
    def progress(event):
        if event.done == after:
            raise Killed

    return progress


def test_a_killed_run_resumes_to_the_same_bits(micro, tmp_path, monkeypatch):
    monkeypatch.setattr(VerifiableTask, "verdict", _longer_is_better)
    straight = rl(recipe(micro), str(tmp_path / "straight"))
    with pytest.raises(Killed):
        rl(recipe(micro), str(tmp_path / "killed"), killer(2))
    resumed = rl(recipe(micro), str(tmp_path / "killed"))
    read = lambda name: (tmp_path / name / "model" / "model.safetensors").read_bytes()
    assert read("straight") == read("killed") != (tmp_path / ".." / micro["model"] / "model.safetensors").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2] and straight.metrics == resumed.metrics


def _longer_is_better(self, state):
    from training.environments import Outcome

    share = sum(c.isdigit() for c in state.response) / max(1, len(state.response))
    return Outcome(share, share > 0.5, "ok")


def test_reward_rises_on_a_trivial_world(micro, tmp_path, monkeypatch):
    """Reward = share of digits written: any policy gradient with the right sign finds it."""
    monkeypatch.setattr(VerifiableTask, "verdict", _longer_is_better)
    rl(recipe(micro, steps=10, prompts=4, group=16, optimizer={"lr": 3e-2, "weight_decay": 0.0}, checkpoint_every=0), str(tmp_path / "run"))
    rewards = [json.loads(line)["reward"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rewards[0] < 0.1 and sum(rewards[-2:]) / 2 > rewards[0] + 0.3, rewards


@pytest.mark.parametrize("balance", [False, True])
def test_routers_stay_frozen_and_biases_move_only_when_asked(micro, tmp_path, monkeypatch, balance):
    monkeypatch.setattr(VerifiableTask, "verdict", _longer_is_better)
    result = rl(recipe(micro, steps=1, balance_experts=balance), str(tmp_path / "run"))
    before, after = load_model(micro["model"])[0].state_dict(), load_model(result.model_path)[0].state_dict()
    routers = [name for name in before if name.endswith("gate.weight")]
    assert routers and all(torch.equal(before[name], after[name]) for name in routers)
    biases = [name for name in before if name.endswith("e_score_correction_bias") and name.startswith("layers")]
    assert biases and any(not torch.equal(before[name], after[name]) for name in biases) is balance
    assert not all(torch.equal(before[name], after[name]) for name in before)


def test_mistakes_are_named(micro, tmp_path):
    with pytest.raises(UserError, match="additon"):
        rl(recipe(micro, environments=[{"task": "additon"}]), str(tmp_path / "a"))
    with pytest.raises(UserError, match="environments"):
        rl(recipe(micro, environments=[]), str(tmp_path / "b"))


def test_several_updates_on_one_batch_move_the_ratio_and_micro_batches_do_not_change_the_gradient(micro, tmp_path, monkeypatch):
    monkeypatch.setattr(VerifiableTask, "verdict", _longer_is_better)
    rows = {}
    for name, changes in {"whole": {}, "micro": {"micro_batch": 3}, "twice": {"updates": 2}}.items():
        rl(recipe(micro, steps=1, optimizer={"lr": 1e-2, "weight_decay": 0.0}, **changes), str(tmp_path / name))
        rows[name] = json.loads((tmp_path / name / "metrics.jsonl").read_text())
    assert rows["whole"]["ratio"] == pytest.approx(1.0, abs=1e-6) and abs(rows["twice"]["ratio"] - 1.0) > 1e-4
    assert rows["whole"]["mismatch"] == pytest.approx(1.0, abs=1e-3) and rows["whole"]["distrusted"] == 0
    assert rows["micro"]["grad_norm"] == pytest.approx(rows["whole"]["grad_norm"], rel=2e-3)
