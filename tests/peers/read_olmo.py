"""Run by an environment that has ai2-olmo-core: the documents of a folder of OLMo `.npy` files as its own reader gives them, as JSON."""

import json
import sys
import tempfile
from pathlib import Path

from olmo_core.data import NumpyDatasetDType, TokenizerConfig
from olmo_core.data.composable import NumpyDocumentSource

folder, token_bytes, vocabulary, eos = Path(sys.argv[1]), *map(int, sys.argv[2:])
with tempfile.TemporaryDirectory() as work:
    source = NumpyDocumentSource(
        source_paths=[str(path) for path in sorted(folder.glob("*.npy"))],
        dtype=NumpyDatasetDType(f"uint{8 * token_bytes}").as_np_dtype(),
        tokenizer=TokenizerConfig(vocab_size=vocabulary, eos_token_id=eos, pad_token_id=eos),
        work_dir=work,
    )
    documents = [[int(token) for token in source.get_token_range(start, end)["input_ids"]] for start, end in source.get_document_offsets()]
json.dump(documents, sys.stdout)
