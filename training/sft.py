"""Supervised fine-tuning on conversations: loss on the assistant's tokens only, documents packed but blind to each other.

    recipe = SftRecipe(init_from="RUN/pretrain/model", datasets=["RUN/problems"], epochs=2)
    result = sft(recipe, "RUN/sft")

`loss` follows Nemotron 3 Super's two stages: "token" weighs every assistant token alike (long solutions dominate), "sample"
weighs every conversation alike; with `sample_from` the run starts with the first and ends with the second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from model import chat
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.progress import Progress, silent
from training.conversations import ConversationWindows, Window
from training.language_loss import language_loss
from training.loop import Loss, Trainer
from training.runs import RunFolder, TrainResult, model_digest
from training.setup import TrainingRecipe, load_model, make_optimizer, make_schedule, save_model_folder, set_precision

__all__ = ["SftRecipe", "sft"]


class SftRecipe(TrainingRecipe):
    """What a fine-tuning run is. Datasets need a column `messages`: list<struct<role, content>>."""

    init_from: str = Field("", description="model folder to start from")
    datasets: list[str] = Field([], description="datasets with a `messages` column")
    sequence_length: PositiveInt = 256
    batch_size: PositiveInt = 8
    epochs: PositiveFloat = 1.0
    steps: PositiveInt | None = Field(None, description="overrides epochs")
    sample_from: NonNegativeFloat = Field(1.0, le=1.0, description="fraction of the run after which the loss is a mean over samples, not tokens")
    mtp_weight: NonNegativeFloat = 0.1  # Ultra's SFT: 2 MTP layers x 0.1


def sft(recipe: SftRecipe, out: str, progress: Progress = silent) -> TrainResult:
    """Run (or finish, or return) the fine-tuning run in folder `out`.

    Raises:
        UserError: a dataset without `messages`, no conversation that fits, a folder of another run.
        FloatingPointError: the loss is not finite; names step and conversations.
    """
    if not recipe.init_from or not recipe.datasets:
        raise UserError("sft needs init_from (a model folder) and datasets (at least one)")
    datasets = [Dataset.open(uri) for uri in recipe.datasets]
    identity = {
        "kind": "sft",
        "recipe": recipe.model_dump(mode="json", exclude={"init_from", "datasets", "checkpoint_every", "keep_checkpoints", "recompute"}),
        "inputs": {"model": model_digest(recipe.init_from), "datasets": [d.digest for d in datasets]},
    }
    folder = RunFolder(out, identity)
    if result := folder.finished():
        return result
    lm, tokenizer = load_model(recipe.init_from)
    policy = set_precision(lm, recipe.precision, recipe.seed)
    windows = conversation_windows(recipe, datasets, tokenizer)
    steps = recipe.steps or max(1, round(recipe.epochs * windows.steps_per_epoch))
    sample_from = round(recipe.sample_from * steps)

    def step(index: int, trainer: Trainer) -> dict[str, Any]:
        window = windows.batch(index)
        weights_BT = sample_weights(window) if index >= sample_from else window.loss_mask_BT
        terms = language_loss(
            lm, window.input_ids_BT, window.labels_BT, weights_BT, window.seq_idx_BT,
            mtp_weight=recipe.mtp_weight,
        )
        row = trainer.update([Loss(terms.total, lambda: f"conversations {window.document_ids}")])
        return row | terms.figures() | {"tokens": int(window.loss_mask_BT.sum())}

    trainer = Trainer(
        folder, lm, policy, make_optimizer(recipe, lm), make_schedule(recipe, steps), recipe=recipe, steps=steps, progress=progress, stage="sft"
    )
    facts = {"conversations": len(windows), "too_long": windows.too_long}
    return trainer.run(step, lambda: save_model_folder(lm, tokenizer, folder.model), extra=facts)


def conversation_windows(recipe: SftRecipe, datasets: Sequence[Dataset], tokenizer: Any) -> ConversationWindows:
    """The windows of a run, in its order: a function of recipe, datasets and tokenizer, so who was read when can be asked later."""
    return ConversationWindows(_encoded(datasets, tokenizer), length=recipe.sequence_length, batch_size=recipe.batch_size, seed=recipe.seed)


def sample_weights(window: Window) -> torch.Tensor:
    """Loss weights under which every conversation of the batch counts alike: 1 / (its assistant tokens). float32 [B, T]."""
    mask_BT, seq_BT = window.loss_mask_BT, window.seq_idx_BT.long()
    counts_BD = torch.zeros(mask_BT.shape[0], int(seq_BT.max()) + 1).scatter_add_(1, seq_BT, mask_BT)
    return mask_BT / counts_BD.gather(1, seq_BT).clamp(min=1.0)


def _encoded(datasets: Sequence[Dataset], tokenizer: Any) -> Iterator[tuple[str, list[int], list[int]]]:
    for dataset in datasets:
        for batch in dataset.batches(columns=["id", "messages"]):
            for row in batch.to_pylist():
                for number, messages in enumerate(chat.unroll(row["messages"])):
                    token_ids, mask = chat.encode(tokenizer, messages)
                    yield (row["id"] if number == 0 else f"{row['id']}#{number}"), token_ids, mask
