"""Rows in another order, against indexing."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap

from geoattn.ops import permute_rows

ORDER = torch.tensor([3, 0, 4, 1, 2])
INVERSE = ORDER.argsort()


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 3)])
def test_it_is_indexing(shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape, dtype=torch.float64)
    out = permute_rows(x, ORDER, INVERSE)
    assert torch.equal(out, x[ORDER])
    (found,) = torch.autograd.grad((out * weight).sum(), x)
    (expected,) = torch.autograd.grad((x[ORDER] * weight).sum(), x)
    assert torch.equal(found, expected)
    assert gradcheck(permute_rows, (x, ORDER, INVERSE))
    assert gradgradcheck(permute_rows, (x, ORDER, INVERSE))


def test_it_can_be_transformed_and_compiled():
    x = torch.randn(5, 3)

    def run(x):
        return permute_rows(x, ORDER, INVERSE).square()

    torch.testing.assert_close(grad(lambda x: run(x)[0].sum())(x), 2 * x * (torch.arange(5) == 3).unsqueeze(1))
    torch.testing.assert_close(jvp(run, (x,), (x,))[1], 2 * run(x))
    torch.testing.assert_close(vmap(run)(torch.stack([x, -x])), run(x).expand(2, 5, 3))
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x.requires_grad_()), run(x))


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match=r"expected order and inverse \[N\] for x \[N, ...\], got \[5\], \[4\] and"):
        permute_rows(torch.randn(5, 3), ORDER, INVERSE[:4])
    with pytest.raises(TypeError, match="order must be a tensor"):
        permute_rows(torch.randn(5, 3), ORDER.tolist(), INVERSE)
