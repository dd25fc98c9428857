"""Attention by Sinkhorn's algorithm against its formula on dense matrices."""

import math

import pytest
import torch

from geoattn import Neighbors, Windows, attend
from geoattn.nn import sinkhorn_attend

# Queries and keys of each run.
SIZES = [(3, 4), (1, 2), (5, 2)]


def inputs(sizes=SIZES, heads=2, width=3):
    make = torch.Generator().manual_seed(0)
    queries, keys = (sum(size) for size in zip(*sizes, strict=True))
    qkv = [
        torch.randn(count, heads, dim, generator=make, dtype=torch.float64).requires_grad_()
        for count, dim in ((queries, width), (keys, width), (keys, 2))
    ]
    ptr = [torch.tensor([0, *size]).cumsum(0) for size in zip(*sizes, strict=True)]
    return qkv, Windows(*ptr)


def weights(score, steps):
    """``n`` times the plan of the dense scores ``[H, n, m]``."""
    n, m = score.shape[1:]
    u, v = torch.zeros(n), torch.zeros(m)
    u, v = u.to(score), v.to(score)
    for step in range(steps):
        if step % 2 == 0:
            u = -math.log(n) - (score + v.unsqueeze(-2)).logsumexp(-1)
        else:
            v = -math.log(m) - (score + u.unsqueeze(-1)).logsumexp(-2)
    return n * (score + u.unsqueeze(-1) + v.unsqueeze(-2)).exp()


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 9])
def test_it_is_the_formula(steps):
    (query, key, value), pattern = inputs()
    expected = []
    queries, keys = zip(*SIZES, strict=True)
    for q, k, v in zip(query.split(queries), key.split(keys), value.split(keys), strict=True):
        score = torch.einsum("ihd,jhd->hij", q, k) * 0.7
        expected.append(torch.einsum("hij,jhd->ihd", weights(score, steps), v))
    found = sinkhorn_attend(query, key, value, pattern, steps, 0.7)
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-9, atol=1e-10)


def test_one_step_is_the_softmax():
    qkv, pattern = inputs()
    torch.testing.assert_close(sinkhorn_attend(*qkv, pattern, 1), attend(*qkv, pattern), rtol=1e-12, atol=1e-12)


def test_after_many_steps_weights_of_queries_and_of_keys_sum_to_the_same():
    (query, key, _), pattern = inputs([(4, 6)])
    weight = sinkhorn_attend(query, key, torch.eye(6).double().unsqueeze(1).expand(6, 2, 6), pattern, 201)
    torch.testing.assert_close(weight.sum(2), torch.ones_like(weight[..., 0]))
    torch.testing.assert_close(weight.sum(0), torch.full_like(weight[0], 4 / 6))


@pytest.mark.parametrize("steps", [2, 3])
def test_derivatives(steps):
    qkv, pattern = inputs([(2, 2), (1, 2)], heads=1, width=2)
    assert torch.autograd.gradcheck(lambda *qkv: sinkhorn_attend(*qkv, pattern, steps), qkv)
    assert torch.autograd.gradgradcheck(lambda *qkv: sinkhorn_attend(*qkv, pattern, steps), qkv)


@pytest.mark.parametrize("steps", [1, 4, 5])
def test_empty_runs_and_half_types(steps):
    qkv, pattern = inputs([(2, 0), (0, 3), (2, 3)])
    out = sinkhorn_attend(*qkv, pattern, steps)
    assert out[:2].eq(0).all()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.square().sum(), qkv))
    half = sinkhorn_attend(*(x.bfloat16() for x in qkv), pattern, steps)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), out, rtol=0.05, atol=0.05)


def test_errors():
    qkv, pattern = inputs()
    with pytest.raises(TypeError, match="expected Windows as pattern, got Neighbors; make them with Windows"):
        sinkhorn_attend(*qkv, Neighbors(torch.tensor([0]), torch.tensor([]).long(), 0))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        sinkhorn_attend(*qkv, pattern, 0)
    with pytest.raises(ValueError, match=r"expected query \[N, H, D\] and key \[M, H, D\], got \(9, 2, 3\) and"):
        sinkhorn_attend(qkv[0], qkv[1][:, :1], qkv[2][:, :1], pattern)
