"""Reinforcement learning: prompts, rollouts, verdicts, advantages, one (or a few) policy updates; again.

    recipe = RlRecipe(init_from="RUN/sft/model", environments=[{"task": "addition"}, {"task": "comparison"}])
    result = rl(recipe, "RUN/rl")

On-policy and synchronous: the engine samples with the weights the trainer holds. A checkpoint is weights + optimizer + step;
everything else of a step is recomputed from (seed, step), so a killed run resumes to the same bits.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from model import chat
from model.engine import Engine
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.progress import Progress, silent
from pipelines.recipe import Recipe
from training.environments import VerifiableTask
from training.loop import Loss, Trainer
from training.rl.grpo import group_advantages, policy_loss, token_mismatch
from training.rl.rollout import Rollouts, RolloutTensors, collect, length, tensors
from training.runs import RunFolder, TrainResult, model_digest
from training.setup import OptimizerSpec, ScheduleSpec, TrainingRecipe, load_model, make_optimizer, make_schedule, save_model_folder, set_precision

__all__ = ["EnvironmentSpec", "RlRecipe", "rl"]


class EnvironmentSpec(Recipe):
    """One world to learn in: a verifiable task by name, its difficulty, and what good form pays."""

    task: str
    params: dict[str, Any] = {}
    format_reward: NonNegativeFloat = 0.1


class RlRecipe(TrainingRecipe):
    """A GRPO run. Defaults are those of NVIDIA's Nemotron 3 Nano/Super configs where size does not matter: clip 0.2/0.28, KL 0 (there is
    no reference model at all), leave-one-out baseline, normalised advantages, token-level loss, truncated importance sampling with
    cap 5, frozen router, weight decay 0."""

    init_from: str = Field("", description="model folder to start from")
    environments: list[EnvironmentSpec] = []
    exclude_ids_from: str | None = Field(None, description="dataset of held-out problems, none of which may be asked")
    steps: PositiveInt = 20
    prompts: PositiveInt = Field(16, description="prompts a step")
    group: int = Field(8, ge=2, description="responses a prompt")
    max_tokens: PositiveInt = 96
    updates: PositiveInt = Field(1, description="optimizer updates on one step's rollouts; with more than one the clip works")
    micro_batch: PositiveInt = Field(64, description="sequences a forward pass")
    baseline: Literal["leave_one_out", "mean"] = "leave_one_out"
    normalize: bool = True
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.28
    importance_cap: PositiveFloat = 5.0
    mismatch_limit: PositiveFloat = Field(2.0, description="sequences whose token probability error exceeds this get no gradient")
    freeze_router: bool = True
    balance_experts: bool = Field(True, description="move expert biases after each update, as Nemotron 3 does")
    precision: Literal["nvfp4", "bf16", "fp32"] = "bf16"  # default W4A4 GRPO has a known convergence issue upstream
    optimizer: OptimizerSpec = OptimizerSpec(lr=3e-4, weight_decay=0.0)
    schedule: ScheduleSpec = ScheduleSpec(warmup=0.05, decay=0.0)
    checkpoint_every: int = Field(5, ge=0)


def rl(recipe: RlRecipe, out: str, progress: Progress = silent) -> TrainResult:
    """Run (or finish, or return) the RL run in folder `out`.

    Raises:
        UserError: no environments, an unknown task, a folder of another run.
        FloatingPointError: the loss is not finite; names the step and the environments.
    """
    if not recipe.init_from or not recipe.environments:
        raise UserError("rl needs init_from (a model folder) and environments (at least one)")
    held_out = Dataset.open(recipe.exclude_ids_from) if recipe.exclude_ids_from else None
    exclude = frozenset(held_out.scan(["id"]).collect()["id"].to_list()) if held_out else frozenset()
    environments = [
        VerifiableTask(entry.task, params=entry.params, format_reward=entry.format_reward, exclude=exclude) for entry in recipe.environments
    ]
    identity = {
        "kind": "rl",
        "recipe": recipe.model_dump(mode="json", exclude={"init_from", "exclude_ids_from", "checkpoint_every", "keep_checkpoints", "recompute"}),
        "inputs": {"model": model_digest(recipe.init_from), "held_out": held_out.digest if held_out else None},
    }
    folder = RunFolder(out, identity)
    if result := folder.finished():
        return result
    lm, tokenizer = load_model(recipe.init_from)
    policy = set_precision(lm, recipe.precision, recipe.seed)
    if recipe.freeze_router:
        freeze_routers(lm)

    def step(index: int, trainer: Trainer) -> dict[str, Any]:
        lm.eval()
        engine = Engine(lm, tokenizer, max_slots=min(512, recipe.prompts * recipe.group), max_length=1024)
        rollouts = collect(
            engine, lambda messages: chat.encode_prompt(tokenizer, messages), environments,
            prompts=recipe.prompts, group=recipe.group, seed=recipe.seed, step=index, max_tokens=recipe.max_tokens,
        )
        return figures(rollouts) | improve(recipe, trainer, rollouts)

    trainer = Trainer(
        folder, lm, policy, make_optimizer(recipe, lm), make_schedule(recipe, recipe.steps), recipe=recipe, steps=recipe.steps,
        balance=recipe.balance_experts, progress=progress, stage="rl",
    )
    return trainer.run(step, lambda: save_model_folder(lm, tokenizer, folder.model))


def improve(recipe: RlRecipe, trainer: Trainer, rollouts: Rollouts) -> dict[str, Any]:
    """The policy updates on one step's rollouts. Groups that all won or all lost teach nothing and are left out."""
    lm = trainer.lm
    groups = group_advantages(rollouts.rewards_PG, baseline=recipe.baseline, normalize=recipe.normalize)
    chosen = [p for p, kept in enumerate(groups.kept_P.tolist()) if kept]
    row: dict[str, Any] = {"groups_kept": len(chosen), "tokens": 0}
    if not chosen:
        return row
    samples = [sample for p in chosen for sample in rollouts.groups[p]]
    order = sorted(range(len(samples)), key=lambda n: length(samples[n]))  # micro-batches of like length: a third less padding
    batch = tensors([samples[n] for n in order])
    advantages_N = groups.advantages_PG[chosen].flatten()[order]
    rows = [slice(n, n + recipe.micro_batch) for n in range(0, len(advantages_N), recipe.micro_batch)]
    tokens = int(batch.mask_NT.sum())
    old: dict[int, Tensor] = {}  # the trainer's log-probabilities when the step began, by the first sequence of the micro-batch
    sums = {"clipped": 0.0, "ratio": 0.0, "mismatch": 0.0, "distrusted": 0.0}

    def losses(first: bool) -> Iterator[Loss]:
        for index in rows:
            part = batch.rows(index)
            logprobs_NT = token_logprobs(lm, part)
            if first:  # the first update's own forward pass is the old policy: no extra pass
                old[index.start] = logprobs_NT.detach()
            mismatch_N = token_mismatch(old[index.start], part.engine_logprobs_NT, part.mask_NT)
            trusted_N = mismatch_N <= recipe.mismatch_limit
            terms = policy_loss(
                logprobs_NT, old[index.start], part.engine_logprobs_NT, advantages_N[index], part.mask_NT * trusted_N[:, None],
                clip_low=recipe.clip_low, clip_high=recipe.clip_high, importance_cap=recipe.importance_cap,
            )
            sums["clipped"] += float(terms.clipped) / (tokens * recipe.updates)
            sums["ratio"] += float(terms.ratio_sum) / (tokens * recipe.updates)
            if first:
                sums["mismatch"] += float(mismatch_N.sum()) / len(advantages_N)
                sums["distrusted"] += int((~trusted_N).sum())
            yield Loss(terms.total / tokens, lambda index=index: f"rollouts of {sorted(set(rollouts.environments))}, sequences {index}")

    lm.train()
    for update in range(recipe.updates):
        row |= trainer.update(losses(update == 0))
    return row | {"tokens": tokens} | sums


def token_logprobs(lm: Any, batch: RolloutTensors) -> Tensor:
    """Log-probabilities of the labels under the model, float32 [N, T]; 0 outside the mask (whose head rows are never computed)."""
    hidden_NTD = lm.hidden(batch.input_ids_NT)
    where_NT = batch.mask_NT.bool()
    logits_KV = lm.lm_head(hidden_NTD[where_NT]).float()
    chosen_K = torch.log_softmax(logits_KV, -1).gather(1, batch.labels_NT[where_NT][:, None])[:, 0]
    return torch.zeros_like(batch.mask_NT).masked_scatter(where_NT, chosen_K)


def figures(rollouts: Rollouts) -> dict[str, Any]:
    """What the step's rollouts were like: reward, accuracy (also per environment), length, truncation."""
    per: dict[str, list[bool]] = defaultdict(list)
    samples = [sample for group in rollouts.groups for sample in group]
    for name, group in zip(rollouts.environments, rollouts.groups, strict=True):
        per[name] += [sample.outcome.ok for sample in group]
    count = len(samples)
    return {
        "reward": math.fsum(s.outcome.reward for s in samples) / count,
        "accuracy": sum(s.outcome.ok for s in samples) / count,
        "accuracy_by_task": {name: sum(oks) / len(oks) for name, oks in sorted(per.items())},
        "response_tokens": sum(len(s.response_ids) for s in samples) / count,
        "truncated": sum(s.truncated for s in samples) / count,
    }


def freeze_routers(lm: Any) -> None:
    """Routers keep choosing as they did after SFT: a policy gradient through top-k choices is noise that moves experts apart."""
    for layer in lm.moe_layers():
        layer.gate.weight.requires_grad_(False)
