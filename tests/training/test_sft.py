"""SFT: only the assistant's tokens teach, packed conversations are blind to each other, runs resume to the same bits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model import chat
from pipelines.errors import UserError
from pipelines.tokenizer import load_tokenizer
from training.conversations import ConversationWindows
from training.language_loss import language_loss
from training.setup import load_model
from training.sft import SftRecipe, sample_weights, sft


def encoded(micro, count=30):
    tokenizer = load_tokenizer(micro["tokenizer"])
    for n in range(count):
        messages = [{"role": "user", "content": f"What is {n} + 1?"}, {"role": "assistant", "content": f"<think>\n{n}+1\n</think>\n{n + 1}" + "." * (n % 7)}]
        yield (f"c{n}", *chat.encode(tokenizer, messages))


def windows(micro, **changes):
    return ConversationWindows(encoded(micro), **dict(length=96, batch_size=3, seed=1) | changes)


def test_every_epoch_holds_every_conversation_once_with_its_own_mask(micro):
    data, originals = windows(micro), {name: (ids, mask) for name, ids, mask in encoded(micro)}
    epochs = []
    steps = data.steps_per_epoch
    for start in (0, steps):
        seen = []
        for step in range(start, start + steps):
            window = data.batch(step)
            for row, names in enumerate(window.document_ids):
                for number, name in enumerate(names):
                    here = window.seq_idx_BT[row] == number
                    ids, mask = originals[name]
                    assert window.input_ids_BT[row][here].tolist() == ids[:-1]
                    assert window.labels_BT[row][here].tolist() == ids[1:]
                    assert window.loss_mask_BT[row][here].tolist() == mask[1:]
                    seen.append(name)
                assert not window.loss_mask_BT[row][window.seq_idx_BT[row] == len(names)].any()
        epochs.append(seen)
    assert set(epochs[0]) == set(originals) and sorted(epochs[0])[: len(originals)] and epochs[0] != epochs[1]


def test_windows_are_a_function_of_the_step(micro):
    forward, jump = windows(micro), windows(micro)
    late = 3 * forward.steps_per_epoch + 1
    for step in range(late):
        forward.batch(step)
    assert torch.equal(forward.batch(late).input_ids_BT, jump.batch(late).input_ids_BT)


def test_gradient_comes_from_the_assistants_tokens_alone(micro):
    """Changing a label outside the mask changes nothing; inside it, the gradient."""
    lm, _ = load_model(micro["model"])
    lm.train()
    window = windows(micro).batch(0)

    def gradient(labels_BT):
        lm.zero_grad()
        language_loss(lm, window.input_ids_BT, labels_BT, window.loss_mask_BT, window.seq_idx_BT, mtp_weight=0.3).total.backward()
        return lm.lm_head.weight.grad.clone()

    original = gradient(window.labels_BT)
    outside, inside = window.labels_BT.clone(), window.labels_BT.clone()
    outside[window.loss_mask_BT == 0] = 17
    inside[window.loss_mask_BT == 1] = 17
    assert torch.equal(gradient(outside), original) and not torch.equal(gradient(inside), original)


def test_packed_conversations_do_not_see_each_other(micro):
    lm, _ = load_model(micro["model"])
    window = windows(micro).batch(0)
    with torch.no_grad():
        packed = lm.hidden(window.input_ids_BT, seq_idx_BT=window.seq_idx_BT)
        for number in range(len(window.document_ids[0])):
            here = window.seq_idx_BT[0] == number
            alone = lm.hidden(window.input_ids_BT[:1, here])
            torch.testing.assert_close(packed[:1, here], alone, atol=3e-5, rtol=1e-4)


def test_sample_weights_count_every_conversation_alike(micro):
    window = windows(micro).batch(0)
    weights = sample_weights(window)
    for row, names in enumerate(window.document_ids):
        for number in range(len(names)):
            assert weights[row][window.seq_idx_BT[row] == number].sum().item() == pytest.approx(1.0, abs=1e-6)
    assert np.array_equal((weights > 0).numpy(), (window.loss_mask_BT > 0).numpy())


def recipe(micro, **changes):
    values = dict(
        init_from=micro["model"], datasets=[micro["problems"]], sequence_length=96, batch_size=3, steps=5, checkpoint_every=2, sample_from=0.6,
        precision="bf16", optimizer={"lr": 1e-2},
    )
    return SftRecipe(**values | changes)


class Killed(Exception):
    pass


def killer(after):
    def progress(event):
        if event.done == after:
            raise Killed

    return progress


def test_a_killed_run_resumes_to_the_same_bits(micro, tmp_path):
    straight = sft(recipe(micro), str(tmp_path / "straight"))
    with pytest.raises(Killed):
        sft(recipe(micro), str(tmp_path / "killed"), killer(3))
    resumed = sft(recipe(micro), str(tmp_path / "killed"))
    assert Path(straight.model_path, "model.safetensors").read_bytes() == Path(resumed.model_path, "model.safetensors").read_bytes()
    assert straight.metrics["last"]["lm_loss"] < straight.metrics["first"]["lm_loss"]
    assert straight.metrics["conversations"] == 60 and straight.metrics["too_long"] == 0


def test_mistakes_are_named(micro, tmp_path):
    with pytest.raises(UserError, match="fits a window of 8 tokens"):
        sft(recipe(micro, sequence_length=8), str(tmp_path / "a"))
    with pytest.raises(UserError, match="datasets"):
        sft(recipe(micro, datasets=[]), str(tmp_path / "b"))
    with pytest.raises(UserError, match="not a model folder"):
        sft(recipe(micro, init_from=str(tmp_path)), str(tmp_path / "c"))
