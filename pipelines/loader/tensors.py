"""A TokenStream as torch's data loaders want it: tensors, worker processes, and a state that torchdata can save.

    loader = StatefulDataLoader(TensorStream(stream), batch_size=None, num_workers=4)
    loader.state_dict(), loader.load_state_dict(...)

Worker w of W makes steps first + w, first + w + W, ...; torch takes them in turn, so batches come in the stream's order whatever W is.
torchdata wants as many workers again when it resumes its own state. A stream's state has no such wish: `stream.load_state_dict(state)`
before the loader is made goes on with any number.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from pipelines.loader.stream import TokenStream


class TensorStream(IterableDataset):
    """Batches of a stream, from its present step on, as dicts of tensors (`Batch`'s arrays, without `spans`)."""

    def __init__(self, stream: TokenStream):
        self.stream = stream
        self._next: int | None = None  # the step this worker makes next; None before it has made one

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        step = self.stream.step + number if self._next is None else self._next
        while step < self.stream.steps:
            batch = self.stream.batch(step)
            step += workers
            self._next = step
            names = ("input_ids", "labels", "loss_mask", "seq_idx", "position_ids", "cu_seqlens", "document_ids")
            yield {name: torch.from_numpy(getattr(batch, name)) for name in names}
        self._next = None

    def state_dict(self) -> dict[str, Any]:
        """Of this worker; torchdata gathers those of all."""
        return {"next": self._next, "plan": self.stream.plan.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a worker was.

        Raises:
            ValueError: the state belongs to another plan.
        """
        if state["plan"] != self.stream.plan.digest:
            raise ValueError(f"the saved state belongs to another plan ({state['plan'][:12]}, this is {self.stream.plan.digest[:12]})")
        self._next = state["next"]
