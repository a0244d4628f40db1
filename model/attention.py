"""Grouped-query attention without positional encoding: order is the Mamba layers' business.

Shapes: B batch, T new tokens, S positions in reach, H query heads, J key/value heads, D head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.attention import causal_attention
from model.cache import KeyValues, Step
from model.config import HybridConfig
from model.linear import Linear

FEW = 16  # new positions up to which one masked product over the whole context is cheapest (decoding, checking guesses)


class Attention(nn.Module):
    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.q_proj = Linear(config.hidden_size, self.heads * self.head_dim)
        self.k_proj = Linear(config.hidden_size, self.kv_heads * self.head_dim)
        self.v_proj = Linear(config.hidden_size, self.kv_heads * self.head_dim)
        self.o_proj = Linear(self.heads * self.head_dim, config.hidden_size)

    def forward(self, x_BTE: Tensor, *, seq_idx_BT: Tensor | None = None, state: KeyValues | None = None, step: Step | None = None) -> Tensor:
        """`seq_idx` numbers the documents packed in each row; a query sees earlier positions of its own."""
        batch, length, _ = x_BTE.shape
        q_BTHD = self.q_proj(x_BTE).view(batch, length, self.heads, self.head_dim)
        k_BTJD = self.k_proj(x_BTE).view(batch, length, self.kv_heads, self.head_dim)
        v_BTJD = self.v_proj(x_BTE).view(batch, length, self.kv_heads, self.head_dim)
        if state is not None:
            k_BJSD, v_BJSD = append(state, k_BTJD.transpose(1, 2), v_BTJD.transpose(1, 2), step)
            if not step.fresh:
                y_BHTD = _attend_cached(q_BTHD.transpose(1, 2), k_BJSD, v_BJSD, step)
                return self.o_proj(y_BHTD.transpose(1, 2).reshape(batch, length, -1))
            # nothing came before: plain causal attention; padding is at the right, out of sight
        return self.o_proj(causal_attention(q_BTHD, k_BTJD, v_BTJD, seq_idx_BT).reshape(batch, length, -1))


def append(state: KeyValues, k_BJTD: Tensor, v_BJTD: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """Write the real new positions of every row; return keys and values [B,J,S,D] up to the longest row."""
    rows = step.index_B
    if step.length == 1 and not step.ragged:
        state.keys[rows, :, step.start_B] = k_BJTD[:, :, 0]
        state.values[rows, :, step.start_B] = v_BJTD[:, :, 0]
    else:
        positions_BT = step.start_B[:, None] + torch.arange(step.length)
        b, t = (step.valid_BT if step.ragged else torch.ones_like(positions_BT, dtype=torch.bool)).nonzero(as_tuple=True)
        slot, position = rows[b], positions_BT[b, t]
        state.keys[slot, :, position] = k_BJTD[b, :, t]
        state.values[slot, :, position] = v_BJTD[b, :, t]
    if step.in_place:
        return state.keys[step.rows, :, :step.reach], state.values[step.rows, :, :step.reach]
    return state.keys[:, :, :step.reach].index_select(0, step.rows), state.values[:, :, :step.reach].index_select(0, step.rows)


def _attend_cached(q_BHTD: Tensor, k_BJSD: Tensor, v_BJSD: Tensor, step: Step) -> Tensor:
    """Queries of one key/value head stacked into one product: decoding is bound by calls and reads, not by arithmetic."""
    batch, heads, length, width = q_BHTD.shape
    kv_heads = k_BJSD.shape[1]
    repeat = heads // kv_heads
    if length > FEW and q_BHTD.device.type == "cpu":
        rows = [slice(None)] if bool((step.start_B == step.start_B[0]).all()) else [slice(b, b + 1) for b in range(batch)]
        return torch.cat([_attend_behind(q_BHTD[r], k_BJSD[r], v_BJSD[r], int(step.start_B[r][0])) for r in rows])
    if step.mask is None:
        query_BT = step.start_B[:, None] + torch.arange(length)
        mask_BTS = torch.arange(step.reach) <= query_BT[..., None]
        step.mask = mask_BTS[:, None] if length == 1 else mask_BTS[:, None, None].expand(-1, -1, repeat, -1, -1).reshape(batch, 1, repeat * length, -1)
    q_BJXD = q_BHTD.reshape(batch, kv_heads, repeat * length, width)
    return F.scaled_dot_product_attention(q_BJXD, k_BJSD, v_BJSD, attn_mask=step.mask).view(batch, heads, length, width)


def _attend_behind(q_BHTD: Tensor, k_BJSD: Tensor, v_BJSD: Tensor, start: int) -> Tensor:
    """A chunk at positions start, start+1, ... of every row: all that came before, unmasked, then the chunk itself, causal, weighed by their sums.

    A mask over both would take chunk x context bytes, gigabytes where the context is long. Padded queries come out undefined."""
    batch, heads, length, width = q_BHTD.shape
    kv_heads = k_BJSD.shape[1]
    repeat = heads // kv_heads
    own_k, own_v = (t[:, :, start:start + length] for t in (k_BJSD, v_BJSD))
    if own_k.shape[2] < length:  # rows end before the padding does
        own_k, own_v = (F.pad(t, (0, 0, 0, length - t.shape[2])) for t in (own_k, own_v))
    own_k, own_v = (t.repeat_interleave(repeat, 1) for t in (own_k, own_v))
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # scaled_dot_product_attention's own kernel, which also tells its log sums
    own_BHTD, own_BHT = attend(q_BHTD.contiguous(), own_k, own_v, is_causal=True)
    if start == 0:
        return own_BHTD
    q_BJXD = q_BHTD.reshape(batch, kv_heads, repeat * length, width)
    past_BJXD, past_BJX = attend(q_BJXD, k_BJSD[:, :, :start], v_BJSD[:, :, :start])
    share_BHT1 = torch.sigmoid(past_BJX.reshape(batch, heads, length) - own_BHT)[..., None]
    return torch.lerp(own_BHTD.float(), past_BJXD.view(batch, heads, length, width).float(), share_BHT1).to(q_BHTD.dtype)
