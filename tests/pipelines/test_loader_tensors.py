"""torch's data loaders get the stream's batches in the stream's order, with any number of workers, and torchdata can resume them."""

import pytest
import torch
from shard_sets import make
from torch.utils.data import DataLoader

from pipelines.loader import TokenStream
from pipelines.loader.tensors import TensorStream


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tensors"), packing="best_fit", tokens=4000)[2].uri


def ids(batches):
    return [batch["input_ids"].tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order(uri, workers):
    expected = [batch.input_ids.tolist() for batch in TokenStream(uri, step=3)]
    found = list(DataLoader(TensorStream(TokenStream(uri, step=3)), batch_size=None, num_workers=workers, multiprocessing_context="fork" if workers else None))
    assert ids(found) == expected
    assert found[0]["cu_seqlens"].dtype == torch.int32 and len(found[0]["document_ids"]) == len(found[0]["cu_seqlens"]) - 1


@pytest.mark.parametrize("workers", [0, 2])
def test_torchdata_resumes_it_twice(uri, workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
    expected = [batch.input_ids.tolist() for batch in TokenStream(uri)]

    def loader():
        extra = {"multiprocessing_context": "fork"} if workers else {}
        return stateful.StatefulDataLoader(TensorStream(TokenStream(uri)), batch_size=None, num_workers=workers, **extra)

    seen, state = [], None
    for take in (4, 3, len(expected)):
        here = loader()
        if state is not None:
            here.load_state_dict(state)
        for _, batch in zip(range(take), here, strict=False):
            seen.append(batch["input_ids"].tolist())
            state = here.state_dict()
    assert seen == expected


def test_the_stream_itself_is_stateful_for_torchdata(uri):
    stream = TokenStream(uri, step=2)
    again = TokenStream(uri)
    again.load_state_dict(stream.state_dict())
    assert [batch.input_ids.tolist() for batch in again] == [batch.input_ids.tolist() for batch in stream]
    with pytest.raises(ValueError, match="another plan"):
        TensorStream(stream).load_state_dict({"next": 0, "plan": "0" * 64})
