"""Pretraining, and continued pretraining: token shards in, model folder out.

    recipe = PretrainRecipe(shards="RUN/shards-1", model={"size": "tiny"}, precision="nvfp4")
    result = pretrain(recipe, "RUN/pretrain")          # run the same line again after a kill: it ends in the same bits

The loss is next-token cross-entropy + mtp_weight * multi-token prediction + sequence-wise expert balance; expert biases move
after every update. Which tokens a step sees is TokenStream's stateless order.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from pipelines.errors import UserError
from pipelines.loader import TokenStream
from pipelines.mixture import load_mixture
from pipelines.progress import Progress, silent
from pipelines.shardset import ShardSet
from pipelines.tokenizer import tokenizer_digest
from training.evaluate import stream_text_loss
from training.language_loss import language_loss
from training.loop import Loss, Trainer
from training.runs import RunFolder, TrainResult, model_digest
from training.setup import ModelSpec, TrainingRecipe, fresh_model, load_model, make_optimizer, make_schedule, save_model_folder, set_precision

__all__ = ["PretrainRecipe", "pretrain"]


class PretrainRecipe(TrainingRecipe):
    """What a pretraining run is. Paths (shards, init_from) are no part of its identity; what they hold is."""

    shards: str = Field("", description="token shards (a folder written by `gristmill tokenize`)")
    mixture: str | None = Field(None, description="a mixture file to plan the shards by, in place of theirs (other weights, `after` an earlier plan)")
    model: ModelSpec = ModelSpec()
    init_from: str | None = Field(None, description="model folder to continue from; `model` is then ignored")
    steps: PositiveInt | None = Field(None, description="default: every step the shards' plan has")
    eval_every: NonNegativeInt = Field(0, description="steps between looks at the validation stream; 0: never")
    eval_tokens: PositiveInt = Field(16_384, description="validation tokens a look, per source")


def pretrain(recipe: PretrainRecipe, out: str, progress: Progress = silent) -> TrainResult:
    """Run (or finish, or return) the pretraining run in folder `out`.

    Raises:
        UserError: no shards, a model and shards of different tokenizers, more steps than the plan has, a folder of another run.
        FloatingPointError: the loss is not finite; names the step and the documents of its batch.
    """
    if not recipe.shards:
        raise UserError("pretrain needs shards (a folder written by `gristmill tokenize`)")
    shards = ShardSet.open(recipe.shards)
    stream = TokenStream(shards, mixture=load_mixture(recipe.mixture) if recipe.mixture else None)
    identity = {
        "kind": "pretrain",
        "recipe": recipe.model_dump(mode="json", exclude={"shards", "mixture", "init_from", "checkpoint_every", "keep_checkpoints", "recompute"}),
        "inputs": {"shards": shards.manifest["dataset_digest"], "plan": stream.plan.digest,
                   "model": model_digest(recipe.init_from) if recipe.init_from else None},
    }
    folder = RunFolder(out, identity)
    if result := folder.finished():
        return result
    steps = recipe.steps or stream.steps
    if steps > stream.steps:
        raise UserError(f"{steps} steps asked, but the plan of {recipe.shards} has {stream.steps}; raise `tokens` in its mixture")
    tokenizer = shards.tokenizer
    if recipe.init_from:
        lm, own = load_model(recipe.init_from)
        if tokenizer_digest(own) != tokenizer_digest(tokenizer):
            raise UserError(f"{recipe.init_from} and {recipe.shards} were made with different tokenizers")
    else:
        lm = fresh_model(recipe.model, tokenizer.get_vocab_size(), recipe.seed)
    policy = set_precision(lm, recipe.precision, recipe.seed)
    validation = validation_streams(shards) if recipe.eval_every else {}

    def step(index: int, trainer: Trainer) -> dict[str, Any]:
        batch = stream.batch(index)
        terms = language_loss(
            lm, torch.from_numpy(batch.input_ids), torch.from_numpy(batch.labels), torch.from_numpy(batch.loss_mask).float(),
            torch.from_numpy(batch.seq_idx), mtp_weight=recipe.mtp_weight,
        )
        row = terms.figures() | trainer.update([Loss(terms.total, lambda: describe(stream, index))]) | {"tokens": int(batch.loss_mask.sum())}
        if recipe.eval_every and ((index + 1) % recipe.eval_every == 0 or index + 1 == steps):
            row["validation"] = {name: stream_text_loss(lm, held, tokenizer, recipe.eval_tokens)["nats_per_token"] for name, held in validation.items()}
        return row

    trainer = Trainer(
        folder, lm, policy, make_optimizer(recipe, lm), make_schedule(recipe, steps), recipe=recipe, steps=steps, progress=progress, stage="pretrain"
    )
    return trainer.run(step, lambda: save_model_folder(lm, tokenizer, folder.model), extra={"ledger": stream.ledger(steps)})


def validation_streams(shards: ShardSet) -> dict[str, TokenStream]:
    """One stream a source, so that text and problems are never averaged; sources without held-out documents have none."""
    return {name: TokenStream(shards, split="validation", sources=[name]) for name in shards.sources if shards.shards(name, "validation")}


def describe(stream: TokenStream, step: int) -> str:
    """Which documents a step's batch was made of, in one line (for the error of a loss that is not finite)."""
    spans = stream.spans(stream.batch(step).spans)
    names = Counter(f"{span.source}/{span.document_id}" for span in spans)
    shown = ", ".join(list(names)[:8])
    return f"{len(names)} documents: {shown}{', ...' if len(names) > 8 else ''}"
