"""Fill-in-the-middle: some documents are cut in three and their middle is moved to the end, so that a model learns to write it.

Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle": two cuts, uniform over *characters*, and

    PSM   <prefix> prefix <suffix> suffix <middle> middle </s>
    SPM   <prefix> <suffix> suffix <middle> prefix middle </s>      (their variant 2, which shares what it learns with PSM)

It is done when documents are tokenized and not in the loader: cuts between characters need the text (cuts between tokens teach a model
that middles begin at token borders); and three tokens more a document are known before windows are packed and the plan is made, so shares
stay exact, and every reader of the shards, Megatron's as well as ours, sees the same. What it costs: other rates mean other shards, and
later epochs see the same cuts. Whether and where a document is cut is a hash of its id and of nothing else.
"""

import hashlib
from collections.abc import Sequence

from tokenizers import Tokenizer

from pipelines.errors import UserError
from pipelines.mixture.recipe import FillInMiddle
from pipelines.tokenizer import encode_batch


class FillInMiddleEncoder:
    """Texts -> token ids, some of them rearranged.

    Raises:
        UserError: the tokenizer lacks one of the special tokens.
    """

    def __init__(self, recipe: FillInMiddle, tokenizer: Tokenizer):
        self.recipe, self.tokenizer = recipe, tokenizer
        self.marks = [tokenizer.token_to_id(token) for token in (recipe.prefix, recipe.suffix, recipe.middle)]
        for token, mark in zip((recipe.prefix, recipe.suffix, recipe.middle), self.marks, strict=True):
            if mark is None:
                raise UserError(f"fill-in-the-middle: the tokenizer has no token {token!r}; name three reserved ones (fim.prefix, suffix, middle)")

    def encode(self, texts: Sequence[str], documents: Sequence[str | None]) -> list[list[int]]:
        """Token ids a text. A document whose id is given as None stays as it is."""
        cuts = [None if document is None else cut(self.recipe, document, len(text)) for text, document in zip(texts, documents, strict=True)]
        parts: list[str] = []
        for text, at in zip(texts, cuts, strict=True):
            parts += [text] if at is None else pieces(text, at)
        encoded = iter(encode_batch(self.tokenizer, parts))
        prefix, suffix, middle = self.marks
        found = []
        for at in cuts:
            if at is None:
                found.append(next(encoded))
            elif at[2]:
                after, rest = next(encoded), next(encoded)
                found.append([prefix, suffix, *after, middle, *rest])
            else:
                before, after, rest = next(encoded), next(encoded), next(encoded)
                found.append([prefix, *before, suffix, *after, middle, *rest])
        return found


def cut(recipe: FillInMiddle, document: str, length: int) -> tuple[int, int, bool] | None:
    """(first cut, second cut, suffix first?) of a document of `length` characters, or None if it stays as it is."""
    words = hashlib.blake2b(document.encode(), digest_size=32, person=b"fill-in-middle").digest()
    chosen, order, one, two = (int.from_bytes(words[8 * i : 8 * i + 8], "big") for i in range(4))
    if chosen >= recipe.rate * 2**64:
        return None
    first, second = sorted(word * (length + 1) >> 64 for word in (one, two))
    return first, second, order < recipe.spm * 2**64


def pieces(text: str, at: tuple[int, int, bool]) -> list[str]:
    """The texts to encode, each on its own: prefix, suffix, middle; or suffix, prefix + middle."""
    first, second, suffix_first = at
    return [text[second:], text[:second]] if suffix_first else [text[:first], text[second:], text[first:second]]
