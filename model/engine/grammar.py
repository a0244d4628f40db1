"""Structured output: samples that match a regular expression or a JSON schema, always.

llguidance keeps the automaton; before each choice the tokens it does not allow are masked out of the logits (sampling, truncation and greedy choice
then see allowed tokens only), after it the token moves the automaton on. Where the structure is complete only an end token is allowed. JSON is
compact unless the schema asks otherwise: white space without end is valid JSON too, and some models like writing it.
"""
from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

import llguidance
import numpy as np
import torch

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Grammars:
    """Makes matchers for one tokenizer. `vocabulary` counts the model's logits, which may be more than the tokenizer's tokens."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, eos_id: int) -> None:
        self.tokenizer = llguidance.LLTokenizer(_without_special_spellings(tokenizer), n_vocab=max(vocabulary, tokenizer.get_vocab_size()), eos_token=eos_id)
        self.vocabulary = vocabulary

    def matcher(self, regex: str | None, json_schema: dict[str, Any] | str | None) -> Matcher:
        """Raises ValueError for an expression or schema that is malformed, not supported, or too much for the library (as far as a first token shows)."""
        what = "regex" if regex is not None else "json_schema"
        try:
            if regex is not None:
                grammar = llguidance.LLMatcher.grammar_from_regex(regex)
            else:
                schema = json_schema if isinstance(json_schema, str) else json.dumps(json_schema)
                grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
            found = llguidance.LLMatcher(self.tokenizer, grammar)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{what}: {str(error).splitlines()[0]}") from None
        tried = Matcher(found.deep_copy(), self.vocabulary)
        if not found.is_error():
            tried.accept(int(tried.allowed().int().argmax()))
            tried.allowed()
        if tried.state.is_error():
            raise ValueError(f"{what}: {tried.state.get_error().splitlines()[0]}")
        return Matcher(found, self.vocabulary)


def _without_special_spellings(tokenizer: Tokenizer) -> str:
    """The tokenizer's JSON with its special tokens renamed to what nobody can guess. A grammar's text that spells one (`</think>` in a schema) is text, but
    where it is the only text allowed llguidance asks the tokenizer for its tokens, takes the special one, and then finds that it does not fit."""
    content = json.loads(tokenizer.to_str())
    names = {token["content"]: f"{secrets.token_hex(16)}-{token['id']}" for token in content["added_tokens"] if token["special"]}
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    if isinstance(vocabulary := content["model"].get("vocab"), dict):
        content["model"]["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    return json.dumps(content)


class Matcher:
    """Where one sample stands in its grammar."""

    def __init__(self, state: llguidance.LLMatcher, vocabulary: int) -> None:
        self.state, self.vocabulary = state, vocabulary

    def copy(self) -> Matcher:
        return Matcher(self.state.deep_copy(), self.vocabulary)

    def allowed(self) -> torch.Tensor:
        """bool [V]: tokens that may come next."""
        bits = np.frombuffer(self.state.compute_bitmask(), dtype=np.uint8)
        return torch.from_numpy(np.unpackbits(bits, bitorder="little")[:self.vocabulary].astype(bool))

    def accept(self, token: int) -> None:
        """Where a grammar outgrows the library's limits half-way it stops, and an end token is all it allows from then on: its sample ends, others go on."""
        if not self.state.is_stopped():
            self.state.consume_token(token)
