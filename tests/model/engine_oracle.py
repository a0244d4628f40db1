"""What the engine's tests share: a tokenizer of bytes, a small model, prompts, and decoding by full forward passes."""
from dataclasses import replace

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from model import HybridConfig, HybridLM, chat

VOCABULARY = 16 + 256
NEWLINE, SPACE = 16 + 10, 16 + 32  # see byte_tokenizer(): byte b is token 16 + b


def byte_tokenizer() -> Tokenizer:
    """Special tokens, then one token a byte, in byte order."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    to_character = {}
    for byte in range(256):
        text = bytes([byte]).decode("latin-1")
        # GPT-2's table: printable bytes stand for themselves, the others follow from U+0100
        to_character[byte] = text
    missing = [b for b in range(256) if to_character[b] not in alphabet]
    to_character |= {b: chr(256 + i) for i, b in enumerate(missing)}
    vocabulary = {token: i for i, token in enumerate(chat.SPECIAL_TOKENS)} | {to_character[b]: 16 + b for b in range(256)}
    tok = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(chat.SPECIAL_TOKENS)
    assert tok.encode("a\n").ids == [16 + ord("a"), NEWLINE]
    return tok


def small_lm(**changes) -> HybridLM:
    config = replace(HybridConfig.tiny(vocab_size=VOCABULARY), hidden_size=64, **{"initializer_range": 0.3, "pattern": "M*EM", "mtp_depth": 0} | changes)
    return HybridLM(config, seed=5).eval()


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(16, VOCABULARY, rng.integers(1, 20)).tolist() for _ in range(count)]


def naive_greedy(lm, prompt: list[int], new: int) -> list[int]:
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(new):
            ids.append(int(lm(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt):]
