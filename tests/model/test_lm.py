"""One model, many ways to run it: whole, packed, in chunks, token by token, padded; and what training reads from it."""

import pytest
import torch

from kernels.norms import rms_norm_reference
from model import Cache, HybridConfig, HybridLM

CONFIG = HybridConfig.tiny(vocab_size=128, hidden_size=64, pattern="MEM*E-M*E", mamba_num_heads=4, mamba_head_dim=32, n_groups=2, intermediate_size=96,
                           num_attention_heads=4, num_key_value_heads=2, head_dim=16, initializer_range=0.11)


@pytest.fixture(scope="module")
def lm():
    return HybridLM(CONFIG, seed=1).eval()


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def ids(batch, length, seed=0):
    return torch.randint(0, 128, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_packed_documents_equal_each_alone(lm):
    tokens, sizes = ids(2, 80), ([30, 1, 2, 47], [64, 16, 0, 0])
    seq_idx = torch.stack([torch.repeat_interleave(torch.arange(4), torch.tensor(s)) for s in sizes])
    packed = lm(tokens, seq_idx_BT=seq_idx)
    hidden = lm.hidden(tokens, seq_idx_BT=seq_idx)
    ahead = lm.mtp_hidden(hidden, tokens, seq_idx)
    for row, row_sizes in enumerate(sizes):
        start = 0
        for size in filter(None, row_sizes):
            part = tokens[row:row + 1, start:start + size]
            alone = lm(part)
            assert (packed[row, start:start + size] - alone[0]).abs().max() < 1e-5
            for mine, theirs in zip(ahead, lm.mtp_hidden(lm.hidden(part), part)):
                assert (mine[row, start:start + size] - theirs[0]).abs().max() < 1e-5
            start += size


@pytest.mark.parametrize("sizes", [[40], [39, 1], [1] * 40, [7, 1, 1, 20, 2, 9]])
def test_chunks_and_steps_equal_the_whole(lm, sizes):
    tokens = ids(3, 40)
    whole, cache = lm(tokens), Cache(lm, 3, 64)
    pieces = torch.cat([lm(part, cache=cache) for part in tokens.split(sizes, 1)], 1)
    assert (pieces - whole).abs().max() < 1e-5
    assert cache.lengths.tolist() == [40] * 3


def test_rows_of_different_lengths_in_scattered_slots(lm):
    tokens, cache = ids(3, 40), Cache(lm, 9, 64)
    whole = lm(tokens)
    slots, lengths = [7, 0, 4], [25, 1, 0]
    first = lm(tokens[:, :25], cache=cache, slots=slots, lengths=lengths)
    assert (first[0] - whole[0, :25]).abs().max() < 1e-5 and (first[1, :1] - whole[1, :1]).abs().max() < 1e-5
    second = lm(torch.stack([tokens[0, 25:35], tokens[1, 1:11], tokens[2, :10]]), cache=cache, slots=torch.tensor(slots), lengths=torch.tensor([3, 10, 5]))
    assert (second[0, :3] - whole[0, 25:28]).abs().max() < 1e-5 and (second[1] - whole[1, 1:11]).abs().max() < 1e-5
    assert (second[2, :5] - whole[2, :5]).abs().max() < 1e-5
    third = lm(torch.stack([tokens[2, 5:6], tokens[0, 28:29], tokens[1, 11:12]]), cache=cache, slots=[4, 7, 0])
    assert (third[:, 0] - torch.stack([whole[2, 5], whole[0, 28], whole[1, 11]])).abs().max() < 1e-5
    assert cache.lengths.tolist() == [12, 0, 0, 0, 6, 0, 0, 29, 0]


def test_idle_rows_of_a_decoding_step_keep_their_state(lm):
    tokens, cache = ids(4, 20), Cache(lm, 4, 32)
    whole = lm(tokens)
    lm(tokens[:, :10], cache=cache)
    for step in range(4):
        active = [step % 2, 1, 0, 1]
        positions = cache.lengths.clone()
        logits = lm(tokens.gather(1, positions[:, None]), cache=cache, lengths=active)
        for row in range(4):
            if active[row]:
                assert (logits[row, 0] - whole[row, positions[row]]).abs().max() < 1e-5
    assert cache.lengths.tolist() == [12, 14, 10, 14]


def test_reset_slots_start_afresh(lm):
    tokens, cache = ids(2, 12), Cache(lm, 2, 16)
    lm(tokens, cache=cache)
    cache.reset([1])
    again = lm(tokens[1:], cache=cache, slots=[1])
    assert torch.allclose(again, lm(tokens[1:]), atol=1e-5) and cache.lengths.tolist() == [12, 12]


def test_misuse_of_the_cache_is_named(lm):
    tokens, cache = ids(2, 12), Cache(lm, 2, 16)
    for message, call in (
        ("max_length", lambda: lm(ids(2, 17), cache=cache)),
        ("slots", lambda: lm(tokens, cache=cache, slots=[0, 0])),
        ("slots", lambda: lm(tokens, cache=cache, slots=[0, 2])),
        ("lengths", lambda: lm(tokens, cache=cache, lengths=[13, 1])),
        ("seq_idx", lambda: lm(tokens, cache=cache, seq_idx_BT=torch.zeros(2, 12, dtype=torch.long))),
        ("cache", lambda: lm(tokens, slots=[0, 1])),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_mtp_is_the_formula(lm):
    """h' = eh_proj [enorm(emb(tok_{t+d})) ; hnorm(h_t)], an attention layer, a MoE layer, final norm; written out again, position by position."""
    tokens = ids(1, 9)
    hidden = lm.hidden(tokens)
    attention, moe = lm.mtp.layers
    eps, weight = CONFIG.layer_norm_epsilon, lambda module: module.weight
    previous = hidden[0]
    for depth, result in enumerate(lm.mtp_hidden(hidden, tokens), 1):
        following = torch.tensor(tokens[0, depth:].tolist() + [0] * depth)
        both = torch.cat([rms_norm_reference(lm.embeddings.weight[following], weight(attention.enorm), eps), rms_norm_reference(previous, weight(attention.hnorm), eps)], -1)
        x = both @ attention.eh_proj.weight.T
        h = rms_norm_reference(x, weight(attention.norm), eps)
        q, k, v = (h @ getattr(attention.mixer, f"{name}_proj").weight.T for name in "qkv")
        heads = []
        for head in range(4):
            key, value = (t[:, (head // 2) * 16:(head // 2) * 16 + 16] for t in (k, v))
            scores = (q[:, head * 16:head * 16 + 16] @ key.T) / 4.0
            heads.append(torch.stack([scores[t, :t + 1].softmax(0) @ value[:t + 1] for t in range(9)]))
        x = x + torch.cat(heads, -1) @ attention.mixer.o_proj.weight.T
        h = rms_norm_reference(x, weight(moe.norm), eps)
        mixer, outputs = moe.mixer, []
        for row in h:
            scores = torch.sigmoid(mixer.gate.weight @ row)
            chosen = (scores + mixer.gate.e_score_correction_bias).argsort(descending=True)[:2]
            latent = mixer.fc1_latent_proj.weight @ row
            mixed = sum(CONFIG.routed_scaling_factor * scores[e] / scores[chosen].sum() * (mixer.experts.down_proj[e] @ torch.relu(mixer.experts.up_proj[e] @ latent) ** 2)
                        for e in chosen)
            shared = mixer.shared_experts.down_proj.weight @ torch.relu(mixer.shared_experts.up_proj.weight @ row) ** 2
            outputs.append(mixer.fc2_latent_proj.weight @ mixed + shared)
        previous = rms_norm_reference(x + torch.stack(outputs), weight(moe.final_layernorm), eps)
        assert (result[0] - previous).abs().max() < 1e-5


def test_initialisation_is_a_function_of_config_and_seed():
    one, two, other = HybridLM(CONFIG, seed=3), HybridLM(CONFIG, seed=3), HybridLM(CONFIG, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not torch.equal(one.embeddings.weight, other.embeddings.weight)
    mixer = one.layers[0].mixer
    assert mixer.A_log.min() >= 0 and mixer.A_log.exp().max() <= 16
    dt = torch.nn.functional.softplus(mixer.dt_bias)
    assert dt.min() >= 1e-3 * 0.999 and dt.max() <= 0.1 * 1.001
    assert mixer.in_proj.weight.std() == pytest.approx(0.11, rel=0.05)
    assert mixer.out_proj.weight.std() == pytest.approx(0.11 / 3, rel=0.05)  # nine layers


def test_router_statistics_and_bias():
    lm = HybridLM(CONFIG, seed=1).train()
    tokens = ids(2, 16)
    lm.hidden(tokens)
    moe = next(lm.moe_layers())
    assert int(moe.last_load_E.sum()) == 2 * 16 * 2 and len(list(lm.moe_layers())) == 4  # three in the body, one in the MTP block
    moe.update_bias(torch.tensor([4, 4, 4, 4, 4, 4, 0, 8]))
    assert torch.equal(moe.gate.e_score_correction_bias, torch.tensor([0, 0, 0, 0, 0, 0, 1e-3, -1e-3]))


def test_seq_aux_loss_is_the_formula():
    from model.moe import seq_aux_loss

    g = torch.Generator().manual_seed(0)
    scores = torch.rand(3, 10, 4, generator=g)
    index = torch.rand(3, 10, 4, generator=g).topk(2, -1)[1]
    expected = 0.0
    for b in range(3):
        for e in range(4):
            count = int((index[b] == e).sum())
            expected += sum(float(scores[b, t, e] / scores[b, t].sum()) for t in range(10)) * count * 4 * 0.01 / (2 * 10 ** 2) / 3
    assert float(seq_aux_loss(scores, index, 0.01)) == pytest.approx(expected, rel=1e-5)


def test_bf16_stays_near_float32_and_casts_are_refreshed():
    lm = HybridLM(CONFIG, seed=1).eval()
    tokens = ids(2, 40)
    exact = lm(tokens)
    lm.compute_dtype = torch.bfloat16
    close = lm(tokens)
    assert close.dtype == torch.float32
    assert (close - exact).abs().mean() < 0.05 * exact.std()
    lm.lm_head.weight.mul_(2)
    assert torch.allclose(lm(tokens), 2 * close, rtol=1e-2, atol=1e-2)


def test_training_lowers_the_loss_in_bf16():
    with torch.enable_grad():
        lm = HybridLM(CONFIG, seed=0, compute_dtype=torch.bfloat16).train()
        tokens = ids(4, 32)
        optimizer = torch.optim.AdamW(lm.parameters(), lr=3e-3)
        losses = []
        for _ in range(12):
            hidden = lm.hidden(tokens)
            loss = torch.nn.functional.cross_entropy(lm.lm_head(hidden)[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
            for depth, ahead in enumerate(lm.mtp_hidden(hidden, tokens), 1):
                loss = loss + 0.1 * torch.nn.functional.cross_entropy(lm.lm_head(ahead)[:, :-1 - depth].flatten(0, 1).float(), tokens[:, 1 + depth:].flatten())
            loss = loss + sum(m.last_aux_loss for m in lm.moe_layers())
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in lm.parameters())
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
