"""What a file of Python is made of: comments and docstrings, lines, tokens. For program files (`filters.nemo`), not for pages that quote code."""

import ast
import io
import tokenize
import warnings

from filters.pages import Pages, Source, counts, shares

CODE_TYPES = counts("code_file_lines", "xml_header") | shares("comment_share", "characters_per_token")
XML_PREFIX = 100  # characters in which an XML declaration is looked for (StarCoder, Li et al. 2023)
LONGEST = 1_000_000  # characters parsed; a longer file has no comment share


def code(tokenizer: str = "") -> Source:
    """The source of `comment_share` (characters of comments and docstrings; 0 where the file does not parse), `code_file_lines`, `xml_header`, and,
    where `tokenizer` names a `tokenizer.json`, `characters_per_token`. Raises ValueError when that cannot be read."""
    counter = None
    if tokenizer:
        from tokenizers import Tokenizer

        try:
            counter = Tokenizer.from_file(tokenizer)
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"no tokenizer at {tokenizer}: {error}") from None

    def measure(pages: Pages) -> dict[str, list]:
        tokens = [len(encoding.ids) for encoding in counter.encode_batch_fast(list(pages.texts), add_special_tokens=False)] if counter else None
        return {
            "comment_share": [comments_of(text) / len(text) if 0 < len(text) <= LONGEST else None for text in pages.texts],
            "code_file_lines": [text.count("\n") + 1 for text in pages.texts],
            "xml_header": [int("<?xml version=" in text[:XML_PREFIX]) for text in pages.texts],
            "characters_per_token": [len(text) / max(count, 1) for text, count in zip(pages.texts, tokens, strict=True)] if tokens else [None] * len(pages),
        }

    return Source(CODE_TYPES, measure)


def comments_of(source: str) -> int:
    """Characters of comments (with their #) and docstrings (without quotes) of a Python file; 0 if it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in strings
            tree = ast.parse(source)
        comments = sum(len(token.string) for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.COMMENT)
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):
        return 0
    owners = (node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef))
    return comments + sum(len(ast.get_docstring(node, clean=False) or "") for node in owners)
