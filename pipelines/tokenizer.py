"""Tokenizers: byte-level BPE trained on datasets, or any `tokenizer.json`.

Two rules hold everywhere. Web text can never produce a special token: a page that spells `<|im_end|>` is text about chat
templates, not the end of a turn, so text is encoded with the special tokens switched off. And numbers are spelt digit by
digit, so that 1,234 + 1 is a computation over digits and not over a vocabulary of lucky chunks.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipelines.atomic import write_file
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.progress import Progress, ProgressEvent, silent


def train_tokenizer(
    datasets: Sequence[str],
    vocab_size: int,
    out: str | Path,
    *,
    special_tokens: Sequence[str] = ("<unk>", "<s>", "</s>"),
    max_bytes: int | None = None,
    column: str = "text",
    progress: Progress = silent,
) -> Path:
    """Train byte-level BPE on the text of datasets and write `tokenizer.json`.

    Args:
        datasets: URIs of closed datasets with a string column `column`, or with chat `messages`.
        vocab_size: tokens in all, the special ones and the 256 bytes included; fewer when the text has no more pairs to merge.
        out: path of the file, or of a folder to put `tokenizer.json` into.
        special_tokens: they take the ids 0, 1, 2, ... in this order.
        max_bytes: stop reading a dataset after so many bytes of text (from its start, so the result stays reproducible).

    Returns:
        the path of the written file. The same text gives the same bytes.

    Raises:
        UserError: there is no text, or the vocabulary is smaller than the special tokens and the bytes.
    """
    smallest = len(special_tokens) + 256
    if vocab_size < smallest:
        raise UserError(f"vocab_size {vocab_size} is too small: {len(special_tokens)} special tokens and 256 bytes need {smallest}")
    tokenizer = Tokenizer(models.BPE())
    # Digits first, each on its own; then GPT-2's split (Radford et al. 2019), which `ByteLevel` has built in, 1.5 times as fast as
    # the same expression through `Split`.
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    seen = 0

    def corpus() -> Iterator[str]:
        nonlocal seen
        for position, uri in enumerate(datasets):
            progress(ProgressEvent("tokenizer", position, len(datasets), "datasets"))
            for text in texts(Dataset.open(uri), column, max_bytes):
                seen += len(text)
                yield text

    tokenizer.train_from_iterator(corpus(), trainer)
    if not seen:
        raise UserError(f"no text to train a tokenizer on in {', '.join(map(str, datasets)) or 'no datasets'}")
    path = Path(out)
    if path.suffix != ".json":
        path = path / "tokenizer.json"
    write_file(str(path), tokenizer.to_str(pretty=True))
    progress(ProgressEvent("tokenizer", len(datasets), len(datasets), "datasets", f"{tokenizer.get_vocab_size():,} tokens"))
    return path


def texts(dataset: Dataset, column: str = "text", max_bytes: int | None = None) -> Iterator[str]:
    """The strings of a dataset, in order: its `column`, else the contents of its `messages`.

    Raises:
        UserError: the dataset has neither.
    """
    names = dataset.scan().collect_schema().names()
    if column not in names and "messages" not in names:
        raise UserError(f"{dataset.uri}: neither a column {column!r} nor `messages` to read text from")
    column = column if column in names else "messages"
    left = float("inf") if max_bytes is None else max_bytes
    for batch in dataset.batches([column]):
        for value in batch.column(0).to_pylist():
            for text in (value,) if isinstance(value, str) else [message["content"] for message in value or ()]:
                if left <= 0:
                    return
                left -= len(text.encode())
                yield text


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load any `tokenizer.json`, or the one in a folder (a model's, a shard set's).

    Raises:
        UserError: the file is missing or no tokenizer.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path}: no such tokenizer.json")
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception with the reason
        raise UserError(f"{path}: not a tokenizer.json: {' '.join(str(error).split())}") from None


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of the tokenizer's canonical JSON: equal digests mean equal encodings, whatever the file's layout.

    Truncation and padding are settings of a moment, not of the tokenizer, and are left out.
    """
    content = json.loads(tokenizer.to_str())
    content.pop("truncation", None)
    content.pop("padding", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def encode(tokenizer: Tokenizer, text: str, allow_special: bool = False) -> list[int]:
    """Token ids of one text. By default a special token's spelling in the text is encoded as plain characters."""
    return encode_batch(tokenizer, [text], allow_special)[0]


def encode_batch(tokenizer: Tokenizer, batch: Sequence[str], allow_special: bool = False) -> list[list[int]]:
    """Token ids of many texts; no template of the tokenizer's post-processor is added."""
    tokenizer.encode_special_tokens = not allow_special
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(batch), add_special_tokens=False)]
