"""Rows and columns of very many edges through the compiled kernels."""

import pytest
import torch

from geoattn import Neighbors, attend, native
from geoattn.ops import weighted_sum
from geoattn.ops.backends.choose import backend

NEEDS_KERNELS = pytest.mark.skipif(native.library() is None, reason="needs the compiled kernels")
# They add blocks of 4,096 terms in float32, and blocks in float64: what is left is the rounding inside of a block.
LONG = {"rtol": 5e-6, "atol": 0.0}


def one_row(count):
    return Neighbors(torch.tensor([0, 0, count, count]), torch.zeros(count, dtype=torch.int64), 1, check=False)


@NEEDS_KERNELS
def test_a_row_of_weights_does_not_stop_growing():
    count = (1 << 24) + 8192
    with backend("cpu"):
        found = weighted_sum(torch.ones(count, 1), torch.ones(1, 1, 1), one_row(count))
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, count, 0.0]), **LONG)


@NEEDS_KERNELS
@pytest.mark.parametrize("score", ["dot", "additive"])
@pytest.mark.parametrize("transposed", [False, True])
def test_attention_over_long_rows_and_columns(score, transposed):
    """Values of one sign, whose sums drift most; a row or a column of 100,000 edges among short ones."""
    make = torch.Generator().manual_seed(0)
    count = 100_000
    ends = torch.stack([torch.arange(count), torch.full((count,), 3)])
    edges = torch.cat([ends, torch.randint(9, (2, 40), generator=make)], 1)
    pattern = Neighbors.from_edge_index(edges.flip(0) if transposed else edges, count)

    def results(dtype):
        make = torch.Generator().manual_seed(1)
        query, key, value = (torch.rand(count, 2, 3, generator=make).to(dtype).requires_grad_() for _ in range(3))
        weight = (torch.rand(count, generator=make) + 0.5).to(dtype).requires_grad_()
        att = torch.rand(2, 3, generator=make).to(dtype).requires_grad_() if score == "additive" else None
        out, lse = attend(query, key, value, pattern, key_weight=weight, att=att, return_lse=True)
        inputs = [x for x in (query, key, value, weight, att) if x is not None]
        return out, lse, *torch.autograd.grad(out.sum() + lse.where(lse.isfinite(), 0).sum(), inputs)

    with backend("reference"):
        expected = results(torch.float64)
    with backend("cpu"):
        for found, exact in zip(results(torch.float32), expected, strict=True):
            torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=2e-6 * exact.abs().max().item())
