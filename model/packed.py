"""A model's weights as the compiled step reads them, and the step: how tokens are appended to a cache on a CPU.

Large matrices lie in one array of panels (`kernels.skinny`), in the compute dtype; norms, routers and the Mamba layers' small parameters in a second
one, float32. The copy costs what the weights cost in the compute dtype; it is made at the first step, and what changed since is packed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import hybrid_step as kernel
from kernels.bits import in_spans
from kernels.lanes import flat
from kernels.mamba_step import ROWS, TAPS
from kernels.simd import WIDTH, scratch
from kernels.skinny import PANEL, pack, padded
from model.cache import Cache
from model.linear import stamp

STEP_ROWS = 256  # positions in one call: their activations stay in the second-level cache while weights pass


@dataclass
class _Piece:
    """Parameters that become one stretch of an array."""

    target: np.ndarray
    parameters: list[Tensor]
    write: object  # (target, parameters) -> None
    stamps: list[tuple[int, int]]


def _side_by_side(target: np.ndarray, parameters: list[Tensor]) -> None:
    """Matrices with the same inputs as one."""
    pack(torch.cat([p.detach() for p in parameters]) if len(parameters) > 1 else parameters[0], target)


def _experts(target: np.ndarray, parameters: list[Tensor]) -> None:
    """Every expert's two matrices, one expert after another."""
    up_EML, down_ELM = parameters
    for up, down, part in zip(up_EML, down_ELM, np.split(target, len(up_EML))):
        size = len(part) * padded(len(up)) * up.shape[1] // (padded(len(up)) * up.shape[1] + padded(len(down)) * down.shape[1])
        pack(up, part[:size])
        pack(down, part[size:])


def _values(target: np.ndarray, parameters: list[Tensor]) -> None:
    target[:] = torch.cat([p.detach().float().reshape(-1) for p in parameters]).numpy()


def _mamba_values(target: np.ndarray, parameters: list[Tensor]) -> None:
    taps_C1W, bias, dt_bias, A_log, *rest = (p.detach().float() for p in parameters)
    _values(target, [taps_C1W.squeeze(1).t(), bias, dt_bias, -torch.exp(A_log), *rest])


def _router(target: np.ndarray, parameters: list[Tensor]) -> None:
    weight, bias = parameters
    pack(weight, target[:padded(len(weight)) * weight.shape[1]])
    target[-len(bias):] = bias.detach().float().numpy()


class Packed:
    """The packed copy of a HybridLM (`lm.packed()`)."""

    def __init__(self, lm) -> None:
        self.lm, self.dtype = lm, lm.compute_dtype
        self.pairs = self.dtype == torch.bfloat16
        self.per_word = 2 if self.pairs else 1
        config = lm.config
        self.width, self.vocabulary = config.hidden_size, config.vocab_size
        self.eps, self.scaling = np.float32(config.layer_norm_epsilon), np.float32(config.routed_scaling_factor)
        self.sizes = kernel.Sizes(
            hidden=config.hidden_size, mamba_heads=config.mamba_num_heads, mamba_width=config.mamba_head_dim, state_size=config.ssm_state_size,
            groups=config.n_groups, query_heads=config.num_attention_heads, kv_heads=config.num_key_value_heads, head_dim=config.head_dim,
            mlp_inner=config.intermediate_size, experts=config.n_routed_experts, choices=config.num_experts_per_tok, normalised=int(config.norm_topk_prob),
            expert_inner=config.moe_intermediate_size, expert_width=config.expert_size, latent=int(config.moe_latent_size is not None),
            shared_inner=config.moe_shared_expert_intermediate_size, slots=0, room=0)
        self._planned: list[tuple[str, int, list[Tensor], object]] = []  # (array, offset, parameters, write)
        self._length = {"words": 0, "small": 0}
        self.table = self._table(lm.layers, lm.config.pattern)
        self.final_norm = self._small([lm.norm_f.weight], _values)
        self.head_at = self._matrices([lm.lm_head.weight])
        if lm.mtp is not None:
            self.draft_table = self._table(lm.mtp.layers, lm.config.mtp_pattern, join=True)
            self.draft_norm = self._small([lm.mtp.layers[-1].final_layernorm.weight], _values)
        self.products = [module for module in lm.modules() if "gemm" in module.__dict__]
        self.words = scratch(self._length["words"]).view(np.uint32 if self.pairs else np.float32)
        self.small = np.empty(self._length["small"], np.float32)
        ends = {}
        for array, at, _, _ in reversed(self._planned):
            ends[array, at] = ends.get(array, self._length[array])
            ends[array] = at
        self.pieces = [_Piece(getattr(self, array)[at:ends[array, at]], parameters, write, []) for array, at, parameters, write in self._planned]
        self.watched = [self.lm.embeddings.weight, *(p for piece in self.pieces for p in piece.parameters)]
        self.versioned = [p for p in self.watched if not p.is_inference()]
        self.seen: list[int] = []
        self._later: tuple[np.ndarray, np.ndarray] | None = None  # what guesses leave behind, kept from round to round
        self.refresh()

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + self.small.nbytes

    @staticmethod
    def fits(lm) -> bool:
        """Whether the compiled step can run this model: on a CPU, and sides that are whole vectors or pairs of weights."""
        config = lm.config
        vectors = config.d_inner, config.ssm_state_size, config.head_dim
        sides = (config.hidden_size, config.d_inner, config.num_attention_heads * config.head_dim, config.intermediate_size, config.expert_size,
                 config.moe_intermediate_size, config.moe_shared_expert_intermediate_size)
        return (all(p.device.type == "cpu" for p in lm.parameters()) and lm.compute_dtype in (torch.float32, torch.bfloat16) and config.conv_kernel == TAPS
                and config.mamba_head_dim % ROWS == 0 and not any(side % WIDTH for side in vectors) and not any(side % 2 for side in sides))

    def current(self) -> Packed | None:
        """Up to date; None while a product is not the library's (another precision)."""
        if {*map(attrgetter("gemm"), self.products)} - {F.linear}:
            return None
        self.refresh()
        return self

    def refresh(self) -> None:
        """Pack again what was written or moved since. (Looked for at every step, so by calls that stay in C.)"""
        now = [*map(Tensor.data_ptr, self.watched), *map(attrgetter("_version"), self.versioned)]
        if now == self.seen:
            return
        for piece in self.pieces:
            stamps = [stamp(p) for p in piece.parameters]
            if stamps != piece.stamps:
                piece.write(piece.target, piece.parameters)
                piece.stamps = stamps
        self.embeddings = flat(self.lm.embeddings.weight)
        self.seen = now

    # ---- layout

    def _small(self, parameters: list[Tensor], write, size: int | None = None) -> int:
        return self._place("small", sum(p.numel() for p in parameters) if size is None else size, parameters, write)

    def _matrices(self, parameters: list[Tensor]) -> int:
        size = padded(sum(len(p) for p in parameters)) * parameters[0].shape[1]
        return self._place("words", size // self.per_word, parameters, _side_by_side)

    def _place(self, array: str, size: int, parameters: list[Tensor], write) -> int:
        at = self._length[array]
        self._planned.append((array, at, parameters, write))
        self._length[array] += size
        return at

    def _table(self, layers: nn.ModuleList, pattern: str, join: bool = False) -> np.ndarray:
        rows, kinds = [], {"M": kernel.MAMBA, "*": kernel.ATTENTION, "E": kernel.EXPERTS, "-": kernel.MLP}
        if join:
            first, row = layers[0], np.zeros(kernel.COLUMNS, np.int64)
            row[kernel.KIND] = kernel.JOIN
            row[kernel.NORM] = self._small([first.enorm.weight, first.hnorm.weight], _values)
            row[kernel.IN] = self._matrices([first.eh_proj.weight])
            rows.append(row)
        for index, (layer, kind) in enumerate(zip(layers, pattern)):
            row, mixer = np.zeros(kernel.COLUMNS, np.int64), layer.mixer
            row[kernel.KIND], row[kernel.STATE] = kinds[kind], pattern[:index].count(kind)
            row[kernel.NORM] = self._small([layer.norm.weight], _values)
            if kind == "M":
                row[kernel.SMALL] = self._small([mixer.conv1d.weight, mixer.conv1d.bias, mixer.dt_bias, mixer.A_log, mixer.D, mixer.norm.weight],
                                                _mamba_values)
                row[kernel.IN], row[kernel.OUT] = self._matrices([mixer.in_proj.weight]), self._matrices([mixer.out_proj.weight])
            elif kind == "*":
                row[kernel.IN] = self._matrices([mixer.q_proj.weight, mixer.k_proj.weight, mixer.v_proj.weight])
                row[kernel.OUT] = self._matrices([mixer.o_proj.weight])
            elif kind == "E":
                router, bias = mixer.gate.weight, mixer.gate.e_score_correction_bias
                row[kernel.SMALL] = self._small([router, bias], _router, padded(len(router)) * router.shape[1] + len(bias))
                up, down = mixer.experts.up_proj, mixer.experts.down_proj
                size = len(up) * (padded(up.shape[1]) * up.shape[2] + padded(down.shape[1]) * down.shape[2])
                row[kernel.EACH] = self._place("words", size // self.per_word, [up, down], _experts)
                if mixer.fc1_latent_proj is not None:
                    row[kernel.TO_LATENT] = self._matrices([mixer.fc1_latent_proj.weight])
                    row[kernel.FROM_LATENT] = self._matrices([mixer.fc2_latent_proj.weight])
                mixer = mixer.shared_experts
            if kind in "E-":
                row[kernel.IN], row[kernel.OUT] = self._matrices([mixer.up_proj.weight]), self._matrices([mixer.down_proj.weight])
            rows.append(row)
        return np.stack(rows)

    # ---- steps

    def append(self, ids_BT: Tensor, cache: Cache, slots, lengths, *, tentative: bool = False, draft_BTD: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm, float32 [B,T,D], see `HybridLM.hidden`; with `draft`, hidden states to go on from, those of the MTP block."""
        batch, length = ids_BT.shape
        slots_B, new_B = cache.claim(batch, length, slots, lengths)
        ragged = lengths is not None and int(new_B.min()) < length
        real = torch.from_numpy(np.arange(length) < new_B[:, None]) if ragged else slice(None)
        embedded_MD = self._flat(F.embedding(ids_BT[real], self.lm.embeddings.weight))
        if draft_BTD is None:
            out = self._run(embedded_MD, embedded_MD, slots_B, new_B, cache, self.table, self.final_norm, tentative)
        else:
            out = self._run(self._flat(draft_BTD[real]), embedded_MD, slots_B, new_B, cache, self.draft_table, self.draft_norm, False)
        if not tentative:
            cache.lengths.numpy()[slots_B] += new_B
        if not ragged:
            return torch.from_numpy(out).view(batch, length, self.width)
        out_BTD = torch.zeros(batch, length, self.width)
        out_BTD[real] = torch.from_numpy(out).view(-1, self.width)
        return out_BTD

    def greedy(self, tokens_AT: np.ndarray, cache: Cache, drafts: Cache | None, guesses: int, rounds: int,
               ends: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
        """Rounds of greedy decoding for slots 0..A-1, nothing asked for but the tokens, in one call: (tokens written [A,.], how many of them [A], rounds
        of all rows together, the MTP block's next guesses [A,K]). It returns early when a row ends. ends: tokens each may yet write [A], which row of the
        table its stop tokens are [A], and the table, bool [U,V]. More than one round takes as many guesses as `tokens` brings."""
        count, length = tokens_AT.shape
        slots_A, _ = cache.claim(count, length, None, None)
        state, layers = cache.arrays, len(cache.conv)
        later = state[:2]
        if length > 1:
            size = count * length
            if self._later is None or len(self._later[1]) < layers * size * cache.ssm[0, 0].numel():
                held = cache.hold(slots_A, length)
                self._later, cache.pending = (flat(held.inputs), flat(held.states)), None
            later = self._later
        past_A, draft = cache.lengths.numpy(), drafts or cache
        draft_past_A, (left_A, stop_sets_A, stops_UV) = draft.lengths.numpy(), ends
        draft_table, draft_norm = (self.draft_table, self.draft_norm) if guesses else (self.table[:0], 0)
        sizes, draft_sizes = (self.sizes._replace(slots=c.slots, room=c.room) for c in (cache, draft))
        halt = np.zeros(1, bool)

        def span(a: int, b: int) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
            return kernel.greedy(
                tokens_AT[a:b], slots_A[a:b], past_A[a:b], left_A[a:b], stop_sets_A[a:b], stops_UV, rounds, halt, guesses, self.embeddings, self.words,
                self.small, self.table, self.final_norm, self.head_at, self.vocabulary, *state, *later, a * length, count * length, layers,
                draft_past_A[a:b], draft_table, draft_norm, *draft.arrays, sizes, draft_sizes, self.eps, self.scaling)

        written, counts, done, guessed = zip(*in_spans(span, count, count * length * len(self.words)))
        counts_A = np.concatenate(counts)
        past_A[:count] += counts_A
        if guesses:
            draft_past_A[:count] += counts_A
        return np.concatenate(written), counts_A, sum(n * len(part) for n, part in zip(done, counts)), np.concatenate(guessed)

    @staticmethod
    def _flat(x: Tensor) -> np.ndarray:
        return x.float().contiguous().view(-1).numpy()

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V] float32."""
        shape, x, stride = hidden.shape[:-1], self._flat(hidden), padded(self.vocabulary)
        rows = len(x) // self.width
        out = np.empty(rows * stride, np.float32)
        in_spans(lambda a, b: kernel.head(x, self.words, self.head_at, rows, self.width, a, b, out, stride), stride // PANEL, rows * stride * self.width)
        return torch.from_numpy(out).view(*shape, stride)[..., :self.vocabulary]

    def _run(self, x: np.ndarray, ahead: np.ndarray, slots_A: np.ndarray, lengths_A: np.ndarray, cache: Cache, table: np.ndarray, norm: int,
             keep: bool) -> np.ndarray:
        """In calls of STEP_ROWS rows: a long prompt takes several, and several sequences share one. All flat; x may be written over."""
        width, past_A = self.width, cache.lengths.numpy()[slots_A]
        later = cache.hold(slots_A, int(lengths_A[0])) if keep else None
        state = *cache.arrays, *((flat(later.inputs), flat(later.states)) if keep else cache.arrays[:2])
        fixed = self.words, self.small, table, norm, *state, keep
        sizes = self.sizes._replace(slots=cache.slots, room=cache.room)
        rows = len(x) // width

        def some(which: np.ndarray, lengths: np.ndarray, past: np.ndarray, begin: int) -> np.ndarray:
            """One call for sequences `which`, whose new rows follow one another from row `begin` on."""
            starts = np.zeros(len(which) + 1, np.int64)
            np.cumsum(lengths, out=starts[1:])
            here = slice(begin * width, (begin + int(starts[-1])) * width)
            return kernel.step(x[here], ahead[here], starts, slots_A[which], past, *fixed, begin, rows, sizes, self.eps, self.scaling)

        if rows <= STEP_ROWS and (len(slots_A) == 1 or torch.get_num_threads() == 1):
            return some(np.arange(len(slots_A)), lengths_A, past_A, 0)
        begins_A, out = np.cumsum(lengths_A) - lengths_A, np.empty(len(x), np.float32)

        def span(first: int, last: int) -> None:
            for pieces in _cut(lengths_A, first, last, whole=keep):
                which, ats, ends = np.array(pieces).T
                begin = int(begins_A[which[0]] + ats[0])
                part = some(which, ends - ats, past_A[which] + ats, begin)
                out[begin * width:begin * width + len(part)] = part

        in_spans(span, len(slots_A), rows * len(self.words))
        return out


def _cut(lengths_A: np.ndarray, first: int, last: int, whole: bool) -> Iterator[list[tuple[int, int, int]]]:
    """Lists of (sequence, its first and last position), at most STEP_ROWS positions a list; a sequence is cut unless it is to stay `whole`."""
    pieces, room = [], STEP_ROWS
    for a in range(first, last):
        at, end = 0, int(lengths_A[a])
        while at < end:
            size = end - at if whole else min(end - at, room)
            pieces.append((a, at, at + size))
            at, room = at + size, room - size
            if room <= 0:
                yield pieces
                pieces, room = [], STEP_ROWS
    if pieces:
        yield pieces
