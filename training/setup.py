"""From a recipe to a model, an optimizer and a run: what pretraining, SFT and RL all need before their first step.

Every weight drawn here is a function of the recipe's seed alone, so that the same recipe gives the same first loss.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from tokenizers import Tokenizer

from model import chat
from model.config import HybridConfig
from model.lm import HybridLM
from pipelines.errors import UserError
from pipelines.recipe import Recipe
from pipelines.tokenizer import load_tokenizer
from training import optimizer as optimizers
from training import schedule as schedules
from training.precision import PrecisionPolicy

__all__ = [
    "ModelSpec", "OptimizerSpec", "ScheduleSpec", "TrainingRecipe", "fresh_model", "load_model", "make_optimizer", "make_schedule",
    "save_model_folder", "set_precision",
]


class ModelSpec(Recipe):
    """A fresh model: a named size of HybridConfig and changes to it (`overrides: {hidden_size: 96}`). The vocabulary is the tokenizer's."""

    size: Literal["tiny", "small", "medium", "nano", "super", "ultra"] = "tiny"
    overrides: dict[str, Any] = {}


class OptimizerSpec(Recipe):
    """AdamW; defaults are Nemotron 3's (betas 0.9/0.95, weight decay 0.1, clip 1.0) but for the rate, which is a tiny model's."""

    lr: PositiveFloat = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: NonNegativeFloat = 0.1
    gradient_clip: PositiveFloat = 1.0


class ScheduleSpec(Recipe):
    """Warmup, stable, decay (minus-sqrt, as Super and Ultra). Fractions of the run's steps; `floor` is the last rate over the peak."""

    warmup: NonNegativeFloat = 0.02
    decay: NonNegativeFloat = 0.4
    floor: NonNegativeFloat = 0.01


class TrainingRecipe(Recipe):
    """The keys pretraining, SFT and RL share."""

    precision: Literal["nvfp4", "bf16", "fp32"] = "nvfp4"
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    balance_coefficient: NonNegativeFloat = Field(1e-4, description="weight of the sequence-wise MoE balance loss")
    mtp_weight: NonNegativeFloat = Field(0.3, description="weight of the multi-token-prediction loss (0.3 Super, 0.1 Ultra)")
    recompute: Literal["none", "layers"] = Field("none", description="layers: keep each layer's input only and run it again in the backward; the same bits")
    checkpoint_every: NonNegativeInt = Field(100, description="steps between checkpoints; 0: only at the end")
    keep_checkpoints: PositiveInt = 1
    seed: NonNegativeInt = 0


def fresh_model(spec: ModelSpec, vocab_size: int, seed: int) -> HybridLM:
    """A model with weights drawn from `seed`."""
    make: Callable[..., HybridConfig] = getattr(HybridConfig, spec.size)
    try:
        return HybridLM(make(vocab_size=vocab_size, **spec.overrides), seed=seed)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.overrides: {error}") from None


def load_model(folder: str | Path, **how: torch.dtype | None) -> tuple[HybridLM, Tokenizer]:
    """A model folder's weights (fp32 masters, unless `how` says otherwise, as `HybridLM.from_pretrained` takes it) and tokenizer."""
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} is not a model folder: it has no config.json")
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"{folder} has no tokenizer.json")
    try:
        return HybridLM.from_pretrained(folder, **how), load_tokenizer(folder / "tokenizer.json")
    except ValueError as error:
        raise UserError(str(error)) from None


def save_model_folder(lm: HybridLM, tokenizer: Tokenizer, folder: Path) -> None:
    """A complete Hugging Face folder, by rename: it is there whole or not at all."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    lm.save_pretrained(temporary)
    tokenizer.save(str(temporary / "tokenizer.json"))
    (temporary / "chat_template.jinja").write_text(chat.CHAT_TEMPLATE, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def make_optimizer(recipe: TrainingRecipe, lm: HybridLM) -> torch.optim.Optimizer:
    """AdamW over the parameters that want a gradient."""
    spec = recipe.optimizer
    return optimizers.build(lm, spec.lr, spec.betas, spec.weight_decay)


def make_schedule(recipe: TrainingRecipe, steps: int) -> Callable[[int], float]:
    """Step -> factor of the peak rate."""
    spec = recipe.schedule
    return lambda step: schedules.wsd(step, steps, spec.warmup, spec.decay, spec.floor)


def set_precision(lm: HybridLM, recipe: str, seed: int = 0) -> PrecisionPolicy:
    """Hand every matrix product its format; the policy's `set_step` belongs before each training step."""
    return PrecisionPolicy(recipe, seed).apply(lm)
