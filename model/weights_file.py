"""One safetensors file, read without holding it twice.

Two ways out: `mapped` is a view of the file (copy on write: a page costs memory when it is read, and is ours alone once it is written to), `read_into`
copies into memory the caller has, such as an expert's row of a stack. The header is checked by the safetensors library; offsets are then our own.
Whoever replaces a checkpoint must do it by rename: a mapped file cut short in place takes the process with it.
"""

from __future__ import annotations

import json
import mmap
import os
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class WeightsFile:
    """The tensors of one file by name. Raises ValueError, naming the file, if it is absent or not a safetensors file."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{path} does not exist")
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from None
        self.path = path
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        self._first = 8 + size  # where the data begins
        self._entries = {name: entry for name, entry in header.items() if name != "__metadata__"}

    def names(self) -> list[str]:
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entries[name]["shape"])

    def dtype(self, name: str) -> torch.dtype:
        """ValueError for what is no weight: integers, and 8-bit floats, which mean nothing without their scales."""
        spelt = self._entries[name]["dtype"]
        if spelt not in DTYPES:
            raise ValueError(f"{name} is of type {spelt}, not one of {', '.join(DTYPES)}")
        return DTYPES[spelt]

    def mapped(self, name: str) -> Tensor:
        """The tensor as a view of the file."""
        dtype, shape, (start, end) = self.dtype(name), self.shape(name), self._entries[name]["data_offsets"]
        if end == start or (self._first + start) % dtype.itemsize:  # an empty or unaligned tensor cannot be viewed
            return self.read_into(name, torch.empty(shape, dtype=dtype))
        return torch.frombuffer(self._map, dtype=dtype, count=(end - start) // dtype.itemsize, offset=self._first + start).view(shape)

    def read_into(self, name: str, out: Tensor) -> Tensor:
        """Fill `out` (contiguous, of the tensor's own shape and dtype) and return it."""
        assert out.is_contiguous() and out.dtype == self.dtype(name) and tuple(out.shape) == self.shape(name)
        left = memoryview(out.view(-1).view(torch.uint8).numpy())
        at = self._first + self._entries[name]["data_offsets"][0]
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            while left and (count := os.preadv(descriptor, [left], at)):
                left, at = left[count:], at + count
        finally:
            os.close(descriptor)
        if left:
            raise ValueError(f"{self.path} ends inside {name}")
        return out

    @cached_property
    def _map(self) -> mmap.mmap:
        with open(self.path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
