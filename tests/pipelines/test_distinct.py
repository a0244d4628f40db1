"""The estimate of distinct lines against a set."""

import random

from shard_sets import dataset

from pipelines.dataset import Dataset
from pipelines.distinct import distinct_lines


def test_near_the_exact_count(tmp_path):
    rng = random.Random()
    texts = ["\n".join(f"line {rng.randrange(20_000)}" for _ in range(40)) + "\n\n" for _ in range(500)]
    exact = len({line for text in texts for line in text.splitlines() if line})
    lines = distinct_lines(Dataset.open(dataset(tmp_path, "web", [{"id": str(i), "text": text} for i, text in enumerate(texts)])))
    assert lines.total == 20_000
    assert abs(lines.distinct - exact) < 0.05 * exact  # six standard errors
    assert abs(lines.repeated - (1 - exact / 20_000)) < 0.05
