"""Models and tokenizers small enough to serve hundreds of requests in a test."""

from dataclasses import replace

import pytest
from engine_oracle import byte_tokenizer, small_lm
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model import HybridConfig, HybridLM, chat


@pytest.fixture(scope="session")
def toy() -> tuple[HybridLM, Tokenizer]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(["x"], trainers.BpeTrainer(vocab_size=272, special_tokens=chat.SPECIAL_TOKENS, show_progress=False,
                                                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    config = replace(HybridConfig.tiny(vocab_size=272), hidden_size=64, pattern="M*", mtp_depth=0, initializer_range=0.3)
    return HybridLM(config, seed=2).eval(), tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def lm() -> HybridLM:
    return small_lm()
