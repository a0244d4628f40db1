"""Products of rows sorted by expert, each run with the weight of its own expert: compiled in one call, or one of torch's an expert.

Shapes: E experts, S rows, X and Y widths.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import linear, matmul


def reads_masters(x_TX: Tensor, up_EYX: Tensor) -> bool:
    """Whether experts of these weights, and their transposed shapes, are multiplied as they are, without copies in the dtype of x."""
    return linear.reads_masters(x_TX, up_EYX) and up_EYX.shape[1] % 2 == 0


class Compiled:
    """`kernels.matmul`'s products: weights may be float32 masters, gradients of weights are float32."""

    def __init__(self, loads: list[int]) -> None:
        self.rooms = loads

    def times_turned(self, rows_SX: Tensor, weight_EYX: Tensor) -> Tensor:
        return matmul.times_turned(rows_SX, weight_EYX, self.rooms)

    def times(self, rows_SY: Tensor, weight_EYX: Tensor) -> Tensor:
        return matmul.times(rows_SY, weight_EYX, self.rooms)

    def outer(self, left_SY: Tensor, right_SX: Tensor) -> Tensor:
        """leftᵀ right of each expert's rows [E,Y,X]."""
        return matmul.outer(left_SY, right_SX, self.rooms)


class Library:
    """torch's products, in the dtype of rows and weights."""

    def __init__(self, loads: list[int]) -> None:
        self.rooms = [_room(load) for load in loads]

    def times_turned(self, rows_SX: Tensor, weight_EYX: Tensor) -> Tensor:
        return self._each(rows_SX, weight_EYX.transpose(1, 2))

    def times(self, rows_SY: Tensor, weight_EYX: Tensor) -> Tensor:
        return self._each(rows_SY, weight_EYX)

    def outer(self, left_SY: Tensor, right_SX: Tensor) -> Tensor:
        out_EYX = left_SY.new_empty(len(self.rooms), left_SY.shape[1], right_SX.shape[1])
        for left, right, out in zip(left_SY.split(self.rooms), right_SX.split(self.rooms), out_EYX.unbind(0)):
            torch.mm(left.t(), right, out=out)  # no rows: zeros
        return out_EYX

    def _each(self, rows_SX: Tensor, weight_EXY: Tensor) -> Tensor:
        out_SY = rows_SX.new_empty(rows_SX.shape[0], weight_EXY.shape[2])
        for rows, weight, out in zip(rows_SX.split(self.rooms), weight_EXY.unbind(0), out_SY.split(self.rooms)):
            if rows.shape[0]:
                torch.mm(rows, weight, out=out)
        return out_SY


def _room(load: int) -> int:
    """`load` rounded up to a multiple of 32, or of an eighth of itself: every new shape of a product costs torch's library half a millisecond of
    compilation, five times the product, and loads differ in every step."""
    unit = max(32, 1 << max(0, load.bit_length() - 4))
    return -(-load // unit) * unit
