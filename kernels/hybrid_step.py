"""New positions of running sequences through all layers of a hybrid model, in one compiled call.

One token's arithmetic takes less time than starting the library calls it would be made of: a step here is a loop over a table of layers, and nothing
returns to Python in between. The same call reads prompts, a few hundred positions at a time.

Every number of the result is a sum in an order of its own row's: neighbours in the batch, the pieces a prompt is read in and the number of threads
change nothing, bit for bit.

Shapes: A sequences, M rows (all their new positions, one after another), D hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from kernels.attention_step import attention_step
from kernels.experts_step import experts_step, mlp, route
from kernels.lanes import JIT, load
from kernels.mamba_step import accept, mamba_step
from kernels.simd import largest
from kernels.skinny import PANEL, as_words, linear, padded, product, words_of

MAMBA, ATTENTION, EXPERTS, MLP, JOIN = range(5)
# a layer is a row of `table`: its kind, which of the cache's layers it is, and where its parts begin, in `small` or in `words`
KIND, STATE, NORM, SMALL, IN, OUT, EACH, TO_LATENT, FROM_LATENT = range(9)
COLUMNS = 9


class Sizes(NamedTuple):
    hidden: int
    mamba_heads: int
    mamba_width: int
    state_size: int
    groups: int
    query_heads: int
    kv_heads: int
    head_dim: int
    mlp_inner: int
    experts: int
    choices: int
    normalised: int  # whether a row's expert weights are brought to one sum
    expert_inner: int
    expert_width: int
    latent: int  # whether that width is another than `hidden`
    shared_inner: int
    slots: int  # of the cache
    room: int  # positions a slot has room for


@njit(**JIT)
def rms_norm(x, small, at, width, eps):
    """x / rms(x) * weight of rows `width` long."""
    out = np.empty(len(x), np.float32)
    weight = small[at:at + width]
    for m in range(len(x) // width):
        row, to = x[m * width:(m + 1) * width], out[m * width:(m + 1) * width]
        squares = np.float32(0.0)
        for i in range(width):
            squares += row[i] * row[i]
        scale = np.float32(1.0) / np.sqrt(squares / np.float32(width) + eps)
        for i in range(width):
            to[i] = row[i] * scale * weight[i]
    return out


@njit(**JIT)
def add(x, y, width, stride):
    """x += y, whose rows are `stride` apart."""
    for m in range(len(x) // width):
        row, more = x[m * width:(m + 1) * width], y[m * stride:m * stride + width]
        for i in range(width):
            row[i] += more[i]


@njit(**JIT)
def step(x, ahead, starts, slots, past, words, small, table, final_norm, conv, ssm, keys, values, later_inputs, later_states, keep, later, later_rows,
         sizes, eps, scaling):
    """Hidden states after the final norm, float32 [M, D] flat. x: the rows' embeddings (of a draft block: hidden states, `ahead` the embeddings), which
    are written over; starts [A+1], slots [A], past [A]: each sequence's first row, slot, and tokens so far. `keep`: Mamba states stay as they are, those
    after every position go to later_*, which hold `later_rows` rows a layer, from row `later` on."""
    hidden = sizes.hidden
    rows = starts[-1]
    for layer in range(len(table)):
        row = table[layer]
        if row[KIND] == JOIN:
            x = _join(x, ahead, words, small, row, hidden, eps)
            continue
        normed = rms_norm(x, small, row[NORM], hidden, eps)
        inputs = as_words(normed, words)
        places = slots + row[STATE] * sizes.slots
        if row[KIND] == MAMBA:
            inner = sizes.mamba_heads * sizes.mamba_width
            wide = 2 * inner + 2 * sizes.groups * sizes.state_size + sizes.mamba_heads
            projected = linear(words, row[IN], inputs, rows, hidden, wide)
            mixed = mamba_step(projected, padded(wide), starts, places, small, row[SMALL], conv, ssm, sizes, eps, keep, later_inputs, later_states,
                               row[STATE] * later_rows + later)
            add(x, linear(words, row[OUT], as_words(mixed, words), rows, inner, hidden), hidden, padded(hidden))
        elif row[KIND] == ATTENTION:
            inner = sizes.query_heads * sizes.head_dim
            wide = inner + 2 * sizes.kv_heads * sizes.head_dim
            qkv = linear(words, row[IN], inputs, rows, hidden, wide)
            mixed = attention_step(qkv, padded(wide), starts, places, past, keys, values, sizes)
            add(x, linear(words, row[OUT], as_words(mixed, words), rows, inner, hidden), hidden, padded(hidden))
        elif row[KIND] == EXPERTS:
            _experts(x, normed, inputs, words, small, row, sizes, scaling)
        else:
            add(x, mlp(words, row[IN], row[OUT], inputs, rows, hidden, sizes.mlp_inner, hidden), hidden, padded(hidden))
    return rms_norm(x, small, final_norm, hidden, eps)


@njit(**JIT)
def head(hidden, words, at, rows, width, first, last, out, stride):
    """Logits of panels first <= n / 32 < last, into out [rows, stride]."""
    product(words, at, as_words(hidden, words), rows, words_of(width, words), first, last, out, stride)


@njit(**JIT)
def greedy(tokens, slots, past, left, stop_sets, stops, rounds, halt, guesses, embeddings, words, small, table, final_norm, at, vocabulary,
           conv, ssm, keys, values, later_inputs, later_states, later, later_rows, layers,
           draft_past, draft_table, draft_norm, draft_conv, draft_ssm, draft_keys, draft_values, sizes, draft_sizes, eps, scaling):
    """Rounds of greedy decoding: (tokens written [A, rounds * T], how many [A], rounds done, new guesses [A, K]). tokens [A, T]: each row's last and its
    guesses. One round at least, then more until `rounds` are done (which takes T = 1 + K) or a row ends: with its left[a]-th token, or one of
    stops[stop_sets[a]]. halt[0] says so to those who work on other rows meanwhile."""
    count, length = tokens.shape
    tokens, past, draft_past = tokens.copy(), past.copy(), draft_past.copy()
    written, totals, guessed = np.zeros((count, rounds * length), np.int64), np.zeros(count, np.int64), np.empty((count, guesses), np.int64)
    done = 0
    while done < rounds:
        chosen, counts, guessed = _round(
            tokens, slots, past, guesses, embeddings, words, small, table, final_norm, at, vocabulary, conv, ssm, keys, values, later_inputs, later_states,
            later, later_rows, layers, draft_past, draft_table, draft_norm, draft_conv, draft_ssm, draft_keys, draft_values, sizes, draft_sizes, eps, scaling)
        done += 1
        for a in range(count):
            for t in range(counts[a]):
                written[a, totals[a] + t] = chosen[a, t]
                if stops[stop_sets[a], chosen[a, t]]:
                    halt[0] = True
            totals[a] += counts[a]
            if totals[a] >= left[a]:
                halt[0] = True
            tokens[a, 0] = chosen[a, counts[a] - 1]
            for t in range(1, length):
                tokens[a, t] = guessed[a, t - 1] if t <= guesses else 0
        past += counts
        draft_past += counts
        if halt[0]:
            break
    return written, totals, done, guessed


@njit(**JIT)
def _round(tokens, slots, past, guesses, embeddings, words, small, table, final_norm, at, vocabulary, conv, ssm, keys, values, later_inputs, later_states,
           later, later_rows, layers, draft_past, draft_table, draft_norm, draft_conv, draft_ssm, draft_keys, draft_values, sizes, draft_sizes, eps, scaling):
    """Reads tokens [A, T], and returns the most likely token after each of them [A, T], how many of those stand [A] (one more than guesses that were
    right), and new guesses [A, K] by the draft block. embeddings: flat [V, D]; words[at:]: the head; `layers` Mamba layers. Guesses are left behind the
    draft block's past, to be written over."""
    count, length = tokens.shape
    width = sizes.hidden
    starts = np.arange(count + 1) * length
    x = _embed(embeddings, tokens.reshape(-1), width)
    hidden = step(x, x, starts, slots, past, words, small, table, final_norm, conv, ssm, keys, values, later_inputs, later_states, length > 1, later,
                  later_rows, sizes, eps, scaling)
    chosen = _most_likely(hidden, words, at, vocabulary, width).reshape(count, length)
    counts, guessed = np.ones(count, np.int64), np.empty((count, guesses), np.int64)
    for a in range(count):
        while counts[a] < length and chosen[a, counts[a] - 1] == tokens[a, counts[a]]:
            counts[a] += 1
    if length > 1:
        accept(counts, slots, length, layers, sizes, conv, ssm, later_inputs, later_states, later, later_rows)
    if guesses:
        ends = np.zeros(count + 1, np.int64)
        ends[1:] = np.cumsum(counts)
        before, ids = np.empty(ends[-1] * width, np.float32), np.empty(ends[-1], np.int64)
        for a in range(count):
            before[ends[a] * width:ends[a + 1] * width] = hidden[starts[a] * width:(starts[a] + counts[a]) * width]
            ids[ends[a]:ends[a + 1]] = chosen[a, :counts[a]]
        for i in range(guesses):
            ahead = _embed(embeddings, ids, width)
            drafted = step(before, ahead, ends, slots, draft_past, words, small, draft_table, draft_norm, draft_conv, draft_ssm, draft_keys, draft_values,
                           draft_conv, draft_ssm, False, 0, 0, draft_sizes, eps, scaling)
            before = np.empty(count * width, np.float32)
            for a in range(count):
                before[a * width:(a + 1) * width] = drafted[(ends[a + 1] - 1) * width:ends[a + 1] * width]
            ids = _most_likely(before, words, at, vocabulary, width)
            guessed[:, i] = ids
            draft_past, ends = draft_past + (ends[1:] - ends[:-1]), np.arange(count + 1)
    return chosen, counts, guessed


@njit(**JIT)
def _embed(embeddings, tokens, width):
    """The tokens' rows, float32."""
    out = np.empty(len(tokens) * width, np.float32)
    for m in range(len(tokens)):
        row = tokens[m] * width
        for d in range(width):
            out[m * width + d] = load(embeddings, row + d)
    return out


@njit(**JIT)
def _most_likely(hidden, words, at, vocabulary, width):
    """The head's largest logit of each row (the first of equals)."""
    rows, stride = len(hidden) // width, padded(vocabulary)
    logits, out = np.empty(rows * stride, np.float32), np.empty(rows, np.int64)
    head(hidden, words, at, rows, width, 0, stride // PANEL, logits, stride)
    for m in range(rows):
        begin, n = m * stride, 0
        most = largest(logits, begin, begin + vocabulary)
        while n < vocabulary - 1 and logits[begin + n] != most:
            n += 1
        out[m] = n
    return out


@njit(**JIT)
def _experts(x, normed, inputs, words, small, row, sizes, scaling):
    """x += the routed experts and the shared one."""
    hidden, rows, width = sizes.hidden, len(x) // sizes.hidden, sizes.expert_width
    chosen, shares = route(normed, small, row[SMALL], rows, sizes, scaling)
    if sizes.latent:
        narrow = _compact(linear(words, row[TO_LATENT], inputs, rows, hidden, width), rows, width)
        routed = experts_step(words, row[EACH], as_words(narrow, words), chosen, shares, sizes)
        add(x, linear(words, row[FROM_LATENT], as_words(routed, words), rows, width, hidden), hidden, padded(hidden))
    else:
        add(x, experts_step(words, row[EACH], inputs, chosen, shares, sizes), hidden, hidden)
    add(x, mlp(words, row[IN], row[OUT], inputs, rows, hidden, sizes.shared_inner, hidden), hidden, padded(hidden))


@njit(**JIT)
def _compact(y, rows, width):
    """Rows without the padding behind them."""
    out, stride = np.empty(rows * width, np.float32), padded(width)
    for m in range(rows):
        out[m * width:(m + 1) * width] = y[m * stride:m * stride + width]
    return out


@njit(**JIT)
def _join(x, ahead, words, small, row, hidden, eps):
    """What a draft block starts from: a projection of [norm(embedding) | norm(hidden state)]; their weights follow one another in `small`."""
    rows = len(x) // hidden
    left, right = rms_norm(ahead, small, row[NORM], hidden, eps), rms_norm(x, small, row[NORM] + hidden, hidden, eps)
    both = np.empty(2 * rows * hidden, np.float32)
    for m in range(rows):
        both[2 * m * hidden:(2 * m + 1) * hidden] = left[m * hidden:(m + 1) * hidden]
        both[(2 * m + 1) * hidden:(2 * m + 2) * hidden] = right[m * hidden:(m + 1) * hidden]
    return _compact(linear(words, row[IN], as_words(both, words), rows, 2 * hidden, hidden), rows, hidden)
