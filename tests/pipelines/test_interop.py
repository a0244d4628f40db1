"""Other projects' own readers return the tokens that we wrote, document by document, narrow (u16) and wide (i32, u32).

megatron-core, datatrove and mosaicml-streaming live beside our package in .venv-peers; ai2-olmo-core wants other versions of what they need, so a
script of a few lines (tests/peers) reads in an environment of its own and prints what it found. `make peers`.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from shard_sets import make
from tokenizers import AddedToken

from pipelines.export import export
from pipelines.shards import tokenize
from pipelines.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.peer


@pytest.fixture(scope="module", params=["narrow", "wide"])
def shards(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp(request.param)
    mixture, path, made = make(folder)
    if request.param == "narrow":
        return made
    tokenizer = load_tokenizer(path)
    tokenizer.add_tokens([AddedToken(f"<{number}>", normalized=False) for number in range(66_000)])
    tokenizer.save(str(folder / "wide.json"))
    wide = tokenize(mixture, folder / "wide.json", str(folder / "wide"), shard_bytes=8000)
    assert wide.dtype == np.int32
    return wide


def ours(shards, name="web"):
    return [[shard.ids[index], shard.document(index).tolist()] for shard in shards.shards(name) for index in range(shard.documents)]


def read_by(python, script, *arguments):
    done = subprocess.run([python, ROOT / "tests/peers" / script, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_megatron_core(shards):
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed here")
    for shard in shards.shards("web"):
        theirs = indexed.IndexedDataset(shards.path(shard.prefix))
        assert [theirs[index].tolist() for index in range(len(theirs))] == [shard.document(index).tolist() for index in range(shard.documents)]


def test_datatrove(shards, tmp_path):
    from datatrove.utils.dataset import DatatroveFolderDataset

    folder = export(shards.uri, "ds", tmp_path)[0]
    theirs = DatatroveFolderDataset(str(folder), seq_len=16, shuffle=False, token_size=2 if shards.dtype == np.uint16 else 4)
    whole = np.concatenate([shard.tokens[: shard.token_count // 17 * 17] for shard in shards.shards("web")]).tolist()
    assert [token for index in range(len(theirs)) for token in theirs[index]["input_ids"].tolist()] == whole


def test_mosaicml_streaming(shards, tmp_path):
    if importlib.util.find_spec("streaming") is None:
        pytest.skip("mosaicml-streaming is not installed here")
    folder = export(shards.uri, "mds", tmp_path)[0]
    assert read_by(sys.executable, "read_mosaic.py", folder) == ours(shards)


def test_olmo_core(shards, tmp_path):
    python = ROOT / ".venv-peers-olmo/bin/python"
    if not python.exists():
        pytest.skip(".venv-peers-olmo is not set up (make peers)")
    folder = export(shards.uri, "npy", tmp_path)[0]
    tokenizer = shards.manifest["tokenizer"]
    found = read_by(python, "read_olmo.py", folder, shards.dtype.itemsize, tokenizer["vocab_size"], tokenizer["eos"])
    assert found == [tokens for _, tokens in ours(shards)]
