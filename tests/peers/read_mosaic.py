"""Run in a process of its own: the documents of an MDS folder as mosaicml-streaming's own reader gives them, as JSON."""

import json
import sys
import types

# Its datasets of pictures need a torchvision built for this torch, which not every index has; tokens need none of them.
sys.modules["streaming.vision"] = types.ModuleType("streaming.vision")

from streaming import StreamingDataset  # noqa: E402

dataset = StreamingDataset(local=sys.argv[1], shuffle=False, batch_size=1, validate_hash="sha256")
json.dump([[sample["id"], sample["tokens"].tolist()] for sample in (dataset[index] for index in range(len(dataset)))], sys.stdout)
