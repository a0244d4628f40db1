"""The in-repo engine as a writer: a model folder loaded into this process."""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from generators.engines.interface import NO_THINKING, Conversation, EngineRecipe, Request, Sample, SamplingRecipe
from model import HybridLM, chat
from model.engine import Engine, SamplingParams
from pipelines.errors import UserError
from pipelines.tokenizer import load_tokenizer


class LocalWriter:
    """Generates with `model.engine`; documents name the folder and the first 12 digits of its weights' SHA-256."""

    def __init__(self, recipe: EngineRecipe) -> None:
        folder = Path(recipe.model)
        if not (folder / "config.json").is_file():
            raise UserError(f"{recipe.model}: no model folder (no config.json)")
        try:
            lm = HybridLM.from_pretrained(folder, compute_dtype=getattr(torch, recipe.dtype)).eval()
        except ValueError as error:
            raise UserError(f"{recipe.model}: {error}") from None
        self.tokenizer = load_tokenizer(folder)
        self.engine = Engine(lm, self.tokenizer, max_slots=recipe.slots, max_length=recipe.max_length)
        revision = weights_digest(folder)
        if recipe.revision not in (None, revision):
            raise UserError(f"{recipe.model}: the weights are revision {revision}, not {recipe.revision}; they changed since the recipe was made")
        self.name = f"{recipe.name or folder.resolve().name}@{revision}"

    def generate(self, conversations: Sequence[Conversation], requests: Sequence[Request], sampling: SamplingRecipe) -> list[list[Sample]]:
        prompts = [chat.encode_prompt(self.tokenizer, c, enable_thinking=sampling.thinking) for c in conversations]
        params = [SamplingParams(n=r.n, seed=r.seed, temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k,
                                 max_tokens=sampling.max_tokens, thinking_budget=sampling.thinking_budget) for r in requests]
        try:
            outputs = self.engine.generate(prompts, params)
        except ValueError as error:
            raise UserError(str(error)) from None
        opened = "" if sampling.thinking else NO_THINKING
        return [[Sample(opened + o.text, o.finish_reason or "", len(o.token_ids)) for o in output.outputs] for output in outputs]


def weights_digest(folder: Path) -> str:
    """12 hex digits over all weight files of a folder, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]
