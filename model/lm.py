"""The language model: embeddings, layers by the pattern, a final norm, an untied head, and the multi-token-prediction block beside them.

Module names are those of the Hugging Face checkpoint (`layers.3.mixer.out_proj`), so that rules written on names read alike everywhere.
Parameters are float32 masters; `compute_dtype` is the dtype activations and products run in. Router, SSM state, dt, A_log, D and the norms'
statistics are float32 whatever it is.

Shapes: B batch, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.cache import Cache, Step
from model.config import HybridConfig
from model.initialize import initialize
from model.layer import Layer, RMSNorm
from model.linear import Linear
from model.moe import MoE
from model.mtp import MTP, shift_ids
from model.packed import Packed


class HybridLM(nn.Module):
    """A hybrid Mamba-2 / attention / MoE language model.

    The same (config, seed) gives the same parameters, bit for bit. Built under `torch.device("meta")` it allocates nothing.

    recompute          keep each layer's input only, and run it again in the backward: less memory, a forward more, the same bits
    while_recomputing  what surrounds such a second run: for whoever counts the products of the first
    """

    def __init__(self, config: HybridConfig, seed: int = 0, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.recompute = False
        self.while_recomputing: Callable[[], AbstractContextManager] = nullcontext
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size, _weight=torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(Layer(config, kind) for kind in config.pattern)
        self.norm_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.mtp = MTP(config) if config.has_mtp else None
        if not self.lm_head.weight.is_meta and seed is not None:
            initialize(self, seed)

    def forward(self, input_ids_BT: Tensor, *, seq_idx_BT: Tensor | None = None, cache: Cache | None = None,
                slots: Sequence[int] | Tensor | None = None, lengths: Sequence[int] | Tensor | None = None) -> Tensor:
        """Logits [B,T,V] float32; arguments as for `hidden`."""
        hidden_BTD = self.hidden(input_ids_BT, seq_idx_BT=seq_idx_BT, cache=cache, slots=slots, lengths=lengths)
        return self.lm_head(hidden_BTD).float() if cache is None else self.logits(hidden_BTD)

    def hidden(self, input_ids_BT: Tensor, *, seq_idx_BT: Tensor | None = None, cache: Cache | None = None,
               slots: Sequence[int] | Tensor | None = None, lengths: Sequence[int] | Tensor | None = None, tentative: bool = False) -> Tensor:
        """Hidden states [B,T,D] after the final norm: what the head reads, in `compute_dtype` (float32 from the compiled step).

        `seq_idx` numbers the documents packed in each row; none sees another. With `cache`, the tokens are appended to rows `slots` of it (0..B-1 by
        default); rows are padded at the right, `lengths` counts their real tokens (T by default), and what comes out at padding is undefined.
        After a `tentative` call, `cache.accept` says how many of each row's tokens stay. Without gradients, on a CPU, all layers are one compiled call
        (`model.packed`), whose result for a row does not depend on what else is in the call.
        """
        if cache is None and (slots is not None or lengths is not None):
            raise ValueError("slots and lengths say where a cache is written; pass the cache too")
        if cache is not None and seq_idx_BT is not None:
            raise ValueError("packed documents (seq_idx) cannot be appended to a cache: give each its own slot")
        if cache is not None and (packed := self.packed()):
            return packed.append(input_ids_BT, cache, slots, lengths, tentative=tentative)
        x_BTD = self.embed(input_ids_BT)
        if cache is None:
            for layer in self.layers:
                x_BTD = self._kept_by_its_input(layer, x_BTD, seq_idx_BT) if self.recompute and torch.is_grad_enabled() else layer(x_BTD, seq_idx_BT=seq_idx_BT)
            return self.norm_f(x_BTD)
        step = Step(cache, *input_ids_BT.shape, slots, lengths, tentative)
        for layer, state in zip(self.layers, cache.layers):
            x_BTD = layer(x_BTD, state=state, step=step)
        step.close(cache)
        return self.norm_f(x_BTD)

    def _kept_by_its_input(self, layer: Layer, x_BTD: Tensor, seq_idx_BT: Tensor | None) -> Tensor:
        contexts = lambda: (nullcontext(), self.while_recomputing())
        return checkpoint(layer, x_BTD, seq_idx_BT=seq_idx_BT, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    def mtp_hidden(self, h_BTD: Tensor, input_ids_BT: Tensor, seq_idx_BT: Tensor | None = None) -> list[Tensor]:
        """Hidden states of each MTP depth d = 1..mtp_depth, [B,T,D], ready for `lm_head`: at t, depth d predicts token t+1+d.

        `h_BTD` is `hidden(input_ids)`. Positions whose token t+d lies beyond the row or the document predict nothing of use.
        """
        if self.mtp is None:
            raise ValueError("this model has no multi-token-prediction block (mtp_depth=0)")
        outputs = []
        for depth in range(1, self.config.mtp_depth + 1):
            ahead_BTD = self.embed(shift_ids(input_ids_BT, depth, seq_idx_BT))
            h_BTD = self.mtp(h_BTD, ahead_BTD, seq_idx_BT=seq_idx_BT)
            outputs.append(h_BTD)
        return outputs

    def draft_cache(self, slots: int, max_length: int) -> Cache:
        """A cache for the MTP block's own layers, for `draft_hidden`."""
        return Cache(replace(self.config, pattern=self.config.mtp_pattern), slots, max_length, self.compute_dtype)

    def draft_hidden(self, h_BTD: Tensor, ahead_BT: Tensor, cache: Cache, *, slots: Sequence[int], lengths: Sequence[int] | Tensor | None = None) -> Tensor:
        """The MTP block over hidden states and the tokens one further on, appended to its own cache; [B,T,D], ready for `logits`."""
        if packed := self.packed():
            return packed.append(ahead_BT, cache, slots, lengths, draft_BTD=h_BTD)
        step = Step(cache, *ahead_BT.shape, slots, lengths)
        h_BTD = self.mtp(h_BTD, self.embed(ahead_BT), cache=cache, step=step)
        step.close(cache)
        return h_BTD

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """The head over hidden states, [..., V] float32; without gradients the same for a row whatever the others are."""
        packed = self.packed()
        return packed.logits(hidden_BTD) if packed else self.lm_head(hidden_BTD.to(self.compute_dtype)).float()

    def packed(self) -> Packed | None:
        """The weights as the compiled step reads them, up to date; None where it does not apply: under autograd, on a GPU, with other products."""
        if torch.is_grad_enabled():
            return None
        if "_trusted" in self.__dict__:
            return self._trusted
        kept = self.__dict__.get("_packed")
        if kept is None:
            kept = self.__dict__["_packed"] = Packed(self) if Packed.fits(self) else False
        return kept.current() if kept else None

    @contextmanager
    def unchanging(self) -> Iterator[None]:
        """Weights are looked at now, and inside not again: asking a hundred tensors whether they changed costs a tenth of a step."""
        with torch.no_grad():
            self.__dict__["_trusted"] = self.packed()
        try:
            yield
        finally:
            del self.__dict__["_trusted"]

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings in `compute_dtype`."""
        return F.embedding(input_ids, self.embeddings.weight).to(self.compute_dtype)

    def moe_layers(self) -> Iterator[MoE]:
        """Every MoE mixer, the MTP block's last: `last_load_E`, `last_aux_loss`, `update_bias`."""
        return (module for module in self.modules() if isinstance(module, MoE))

    def train(self, mode: bool = True) -> HybridLM:
        """Switch mode, and drop what is kept for generation when training begins: casts and the packed copy."""
        if mode:
            self.__dict__.pop("_packed", None)
        for module in self.modules():
            module.__dict__.pop("_cast", None)
        return super().train(mode)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, dtype: torch.dtype | None = torch.float32, compute_dtype: torch.dtype = torch.float32) -> HybridLM:
        """Load a Hugging Face `NemotronH` folder, in evaluation mode. `dtype` is that of the parameters; None keeps the file's.

        Weights kept as they are on disk are mapped, not copied. ValueError names what is wrong with a bad file.
        """
        from model.checkpoint import load

        return load(path, dtype=dtype, compute_dtype=compute_dtype)

    def save_pretrained(self, path: str | Path, *, dtype: torch.dtype | None = None, shard_bytes: int = 5_000_000_000) -> None:
        """Write config.json and the weights (Hugging Face names, MTP included) into folder `path`; `dtype` None keeps the parameters'.

        More than `shard_bytes` are written as several files and an index."""
        from model.checkpoint import save

        save(self, path, dtype=dtype, shard_bytes=shard_bytes)
