"""Untrained model folders for the tests of generation."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model import HybridConfig, HybridLM, chat


@pytest.fixture(scope="session")
def untrained_folder(tmp_path_factory):
    """Makes a folder with a tiny model of a configuration, and a tokenizer of bytes that knows the template's tokens."""

    def make(**changes):
        out = tmp_path_factory.mktemp("untrained") / "toy"
        tok = Tokenizer(models.BPE())
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tok.decoder = decoders.ByteLevel()
        tok.train_from_iterator(["What is 1 + 2?"], trainers.BpeTrainer(vocab_size=300, special_tokens=chat.SPECIAL_TOKENS, show_progress=False,
                                                                       initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        HybridLM(HybridConfig.tiny(vocab_size=tok.get_vocab_size(), **changes), seed=1).save_pretrained(out)
        tok.save(str(out / "tokenizer.json"))
        return out

    return make
