"""The rotation against its matrix, in float64."""

import pytest
import torch

from kernels.hadamard import SIGNS, inverse_rht, rht


def sylvester(n):
    return torch.ones(1, 1, dtype=torch.float64) if n == 1 else torch.kron(torch.tensor([[1.0, 1], [1, -1]], dtype=torch.float64), sylvester(n // 2))


ROTATION = torch.diag(torch.tensor(SIGNS, dtype=torch.float64)) @ sylvester(16) / 4


def test_it_is_the_matrix_rounded_to_bfloat16():
    x = torch.randn(64, 48, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = (x.double().view(64, 3, 16) @ ROTATION).view(64, 48)
    y = rht(x)
    assert y.dtype == torch.bfloat16
    assert (y.double() - exact.float().bfloat16().double()).ne(0).float().mean() < 1e-3  # float32 sums may sit on the other side of a tie
    assert torch.all((y.double() - exact).abs() <= exact.abs() * 2**-8)


def test_it_is_orthogonal_and_undone():
    assert torch.equal(ROTATION @ ROTATION.T, torch.eye(16, dtype=torch.float64))
    x = torch.randint(-8, 9, (5, 32), generator=torch.Generator().manual_seed(2)).float()  # small integers: every step is exact
    assert torch.equal(inverse_rht(rht(x).float()), x)


def test_it_cancels_in_a_product_along_the_rotated_axis():
    a, b = (torch.randint(-8, 9, (4, 32), generator=torch.Generator().manual_seed(s)).float() for s in (3, 4))
    assert torch.equal(rht(a).double() @ rht(b).double().T, a.double() @ b.double().T)


def test_other_widths_are_refused():
    with pytest.raises(ValueError, match="groups of 16"):
        rht(torch.zeros(2, 24))
