"""The one training loop: state, update, checkpoint cadence, metrics, resume. Pretraining, SFT and RL are step functions inside it.

A step function is `step(index, trainer) -> row`: it may do anything that is a stateless function of (weights, index), calls
`trainer.update(...)` zero or more times, and returns figures for metrics.jsonl. Checkpoints are taken between steps only,
so whatever a step does inside (several updates on one batch of rollouts, say) is repeated whole after a kill and ends in the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import UserError
from pipelines.progress import Progress, ProgressEvent
from training.allocator import keep_freed_memory
from training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from training.metrics import MetricsLog
from training.precision import PrecisionPolicy
from training.runs import RunFolder, TrainResult
from training.setup import TrainingRecipe

__all__ = ["Loss", "Trainer"]


@dataclass(frozen=True)
class Loss:
    """One micro-batch's scalar to differentiate, and where its tokens came from (asked for only when it is not finite)."""

    value: Tensor
    provenance: Callable[[], str] = lambda: "unknown batch"


StepFunction = Callable[[int, "Trainer"], dict[str, Any]]


class Trainer:
    """Weights + optimizer + counters of one run.

    lm         the model (model.lm.HybridLM), its products already under `policy`
    optimizer  torch optimizer whose learning rates are scaled by `schedule(step) -> factor in [0, 1]`
    steps      the run's length
    balance    move the routers' biases towards even load after every update
    """

    def __init__(
        self,
        folder: RunFolder,
        lm: Any,
        policy: PrecisionPolicy,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        *,
        recipe: TrainingRecipe,
        steps: int,
        balance: bool = True,
        progress: Progress,
        stage: str,
    ) -> None:
        if steps < 1:
            raise UserError(f"{stage}: a run needs at least one step, got {steps}")
        self.folder, self.lm, self.policy, self.optimizer, self.schedule = folder, lm, policy, optimizer, schedule
        for layer in lm.moe_layers():
            layer.aux_loss_coefficient = recipe.balance_coefficient
        lm.recompute = recipe.recompute == "layers"
        self.balance = balance
        self.steps, self.gradient_clip = steps, recipe.optimizer.gradient_clip
        self.checkpoint_every, self.keep = recipe.checkpoint_every, recipe.keep_checkpoints
        self.progress, self.stage = progress, stage
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.step = self.tokens = 0

    # -- one optimizer update ------------------------------------------------------------------------------------

    def update(self, losses: Iterable[Loss]) -> dict[str, float]:
        """Backward every micro-batch (gradients add up), clip, step, move the router biases.

        Losses come already scaled by their share of the update, and one at a time: each is differentiated before the next is computed.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total, layers = 0.0, list(self.lm.moe_layers())
        loads: list[Tensor | None] = [None] * len(layers)
        for loss in losses:
            value = loss.value.item()
            if not math.isfinite(value):
                raise FloatingPointError(f"{self.stage}: loss is {value} at step {self.step}; batch: {loss.provenance()}")
            loss.value.backward()
            total += value
            loads = [_added(before, layer.last_load_E) for before, layer in zip(loads, layers, strict=True)]
            for layer in layers:  # a layer that sits out the next forward (MTP, say) must not be counted again
                layer.last_load_E = layer.last_aux_loss = None
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.gradient_clip))
        if not math.isfinite(norm):
            raise FloatingPointError(f"{self.stage}: the gradient's norm is {norm} at step {self.step}")
        factor = self.schedule(self.step)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        self.optimizer.step()
        row = {"loss": total, "grad_norm": norm, "lr": self.peaks[0] * factor}
        worked = [(layer, load_E) for layer, load_E in zip(layers, loads, strict=True) if load_E is not None]
        for layer, load_E in worked if self.balance else ():
            layer.update_bias(load_E)
        if worked:
            row["max_violation"] = max(float(load_E.max() / load_E.float().mean()) - 1.0 for _, load_E in worked)
        return row

    # -- the run -------------------------------------------------------------------------------------------------

    def run(self, step_function: StepFunction, save_model: Callable[[], None], extra: dict[str, Any] | None = None) -> TrainResult:
        """Resume, step to the end, save the model, mark the run done.

        save_model  writes the model folder
        extra       facts for done.json beside the first and the last row of metrics.jsonl
        """
        keep_freed_memory()
        self.resume()
        log = MetricsLog(self.folder.metrics, keep_until=self.step)
        while self.step < self.steps:
            began = time.perf_counter()
            self.policy.set_step(self.step)
            self.lm.train()
            row = step_function(self.step, self)
            tokens = int(row.pop("tokens", 0))
            self.tokens += tokens
            seconds = time.perf_counter() - began
            log.write({"step": self.step, **row, "tokens": self.tokens, "seconds": round(seconds, 4), "tokens_per_second": round(tokens / seconds, 1)})
            self.step += 1
            self.progress(ProgressEvent(self.stage, self.step, self.steps, "steps", f"loss {row['loss']:.3f}" if "loss" in row else ""))
            if self.step == self.steps or (self.checkpoint_every and self.step % self.checkpoint_every == 0):
                self.save()
        log.close()
        save_model()
        return self.folder.finish(self.step, self.tokens, _summary(log.rows()) | (extra or {}))

    def save(self) -> None:
        save_checkpoint(self.folder.checkpoints, self.step, self.lm, self.optimizer, keep=self.keep, extra={"tokens": self.tokens, "run": self.folder.digest})

    def resume(self) -> None:
        path = latest_checkpoint(self.folder.checkpoints)
        if path is None:
            return
        self.step, extra = load_checkpoint(path, self.lm, self.optimizer)
        assert extra["run"] == self.folder.digest, "a checkpoint of another run inside this run's folder"
        self.tokens = extra["tokens"]


def _added(before: Tensor | None, load_E: Tensor | None) -> Tensor | None:
    if load_E is None:
        return before
    return load_E.detach().clone() if before is None else before + load_E


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """First and last row, without the clock: done.json must not differ between two equal runs."""
    timeless = [{key: value for key, value in row.items() if not key.endswith(("seconds", "per_second"))} for row in (rows[0], rows[-1])]
    return {"first": timeless[0], "last": timeless[1]}
