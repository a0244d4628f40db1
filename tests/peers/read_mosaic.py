"""Run by an environment that has mosaicml-streaming: the documents of an MDS folder as its own reader gives them, as JSON."""

import json
import sys
from unittest.mock import MagicMock

# Its image datasets need a torchvision that matches torch's build, which not every index has; tokens need none of them.
sys.modules["streaming.vision"] = MagicMock()

from streaming import StreamingDataset  # noqa: E402

dataset = StreamingDataset(local=sys.argv[1], shuffle=False, batch_size=1, validate_hash="sha256")
json.dump([[sample["id"], sample["tokens"].tolist()] for sample in (dataset[index] for index in range(len(dataset)))], sys.stdout)
