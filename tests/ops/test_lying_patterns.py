"""Patterns that nobody checked, or that were changed afterwards: an exception, whichever operator and backend."""

import subprocess
import sys

import pytest
import torch

from geoattn import Neighbors, attend
from geoattn.ops.backends.choose import backend
from tests.ops.problems import FAST

# All cases in one process, which a fault would end; it names each case before it runs.
CASES = """
import itertools
import sys
import torch
import geoattn
from geoattn import Neighbors, attend
from geoattn.nn.graph._edges import by_rows
from geoattn.ops import attention_weights, edge_dot, segment_sum, vector_attend, weighted_sum

torch.set_num_threads(1)
rowptr, col = [0, 1, 2, 2, 3, 4, 5], [0, 1, 2, 3, 5]
lies = {
    "falls far": ([0, 10**9, 2, 2, 3, 4, 5], col),
    "falls": ([0, 200, 2, 2, 3, 4, 5], col),
    "falls within": ([0, 3, 2, 2, 3, 4, 5], col),
    "negative row": ([0, -5, 2, 2, 3, 4, 5], col),
    "begins late": ([1, 1, 2, 2, 3, 4, 5], col),
    "ends early": ([0, 1, 2, 2, 3, 4, 4], col),
    "ends late": ([0, 1, 2, 2, 3, 4, 9], col),
    "key far away": (rowptr, [0, 1, 10**8, 3, 5]),
    "key one too high": (rowptr, [0, 1, 6, 3, 5]),
    "negative key": (rowptr, [0, 1, -1, 3, 5]),
}
make = torch.Generator().manual_seed(0)
q, k, v = (torch.randn(6, 2, 4, generator=make).requires_grad_() for _ in range(3))
weight, position = torch.randn(5, 2, requires_grad=True), torch.randn(6, 3, requires_grad=True)
chain = torch.nn.Linear(3, 4)
network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU())


def pooled(query, key, row, edge):
    return segment_sum(key, row, num_segments=query.size(0))


def twice(out):
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    grad.sum().backward()


operators = {
    "attend": lambda p: attend(q.detach(), k.detach(), v.detach(), p),
    "attend, gradients": lambda p: attend(q, k, v, p).sum().backward(),
    "attend, bias": lambda p: attend(q, k, v, p, bias=weight).sum().backward(),
    "attend, additive": lambda p: attend(q, k, v, p, att=torch.ones(2, 4)).sum().backward(),
    "attend, second derivatives": lambda p: twice(attend(q, k, v, p)),
    "attend, torch.func": lambda p: torch.func.grad(lambda x: attend(x, k, v, p).sum())(q.detach()),
    "attention_weights": lambda p: attention_weights(q, k, p),
    "edge_dot": lambda p: edge_dot(q.detach(), k.detach(), p),
    "edge_dot, gradients": lambda p: edge_dot(q, k, p).sum().backward(),
    "weighted_sum": lambda p: weighted_sum(weight.detach(), v.detach(), p),
    "weighted_sum, gradients": lambda p: weighted_sum(weight, v, p).sum().backward(),
    "vector_attend, chain": lambda p: vector_attend(q[:, 0], k[:, 0], v[:, 0], p, position, pos_nn=chain),
    "vector_attend, network": lambda p: vector_attend(q[:, 0], k[:, 0], v[:, 0], p, position, pos_nn=network),
    "by_rows": lambda p: by_rows(pooled, q, k, p),
    "row": lambda p: p.row,
    "transpose": lambda p: p.transpose,
    "with_self_loops": lambda p: p.with_self_loops(),
    "reorder": lambda p: p.reorder(),
    "permute": lambda p: p.permute(torch.arange(6)),
    "per_head": lambda p: Neighbors.per_head([p, p]),
    "union": lambda p: geoattn.patterns.union(p, p),
}
backends = ["torch", "reference"] + ["cpu"] * (geoattn.backends()["cpu"] == "available")
cases = itertools.product(backends, (torch.int32, torch.int64), operators, lies, (False, True))
for name, dtype, what, lie, changed in cases:
    print(f"{name}; {dtype}; {what}; {lie}{', changed later' if changed else ''}", flush=True)
    operator, wrong = operators[what], [torch.tensor(x, dtype=dtype) for x in lies[lie]]
    with geoattn.backend(name):
        pattern = Neighbors(*wrong, 6, check=False)
        if changed:
            pattern = Neighbors(torch.tensor(rowptr, dtype=dtype), torch.tensor(col, dtype=dtype), 6)
            operator(pattern)
            pattern.rowptr.copy_(wrong[0])
            pattern.col.copy_(wrong[1])
        try:
            operator(pattern)
        except IndexError:
            continue
    sys.exit("no IndexError")
print("done")
"""


def test_every_operator_raises():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CASES], capture_output=True, text=True)
    assert done.stdout.endswith("done\n"), f"{done.stdout.splitlines()[-1:]}: {done.returncode} {done.stderr[-2000:]}"


@pytest.mark.parametrize("name", [*FAST, "reference"])
def test_what_is_made_of_a_pattern_follows_changes_in_place(name):
    pattern, other = (Neighbors(torch.tensor([0, 2, 3]), torch.tensor(col), 3) for col in ([0, 1, 2], [2, 1, 0]))
    query, key = torch.eye(3)[:2].view(2, 1, 3), torch.eye(3).view(3, 1, 3).requires_grad_()
    with backend(name):
        attend(query, key, key, pattern).square().sum().backward()
        pattern.col.copy_(other.col)
        found, expected = (attend(query, key, key, p) for p in (pattern, other))
        grads = [torch.autograd.grad(out.square().sum(), key) for out in (found, expected)]
    assert torch.equal(found, expected)
    assert torch.equal(*[grad for (grad,) in grads])
    assert torch.equal(pattern.row, other.row)


@pytest.mark.parametrize("name", [*FAST, "reference"])
def test_a_pattern_changed_before_the_backward_pass_is_found_out(name):
    pattern = Neighbors(torch.tensor([0, 2, 3]), torch.tensor([0, 1, 2]), 3)
    key = torch.eye(3).view(3, 1, 3).requires_grad_()
    with backend(name):
        out = attend(key[:2], key, key, pattern)
        pattern.col[0] = 2
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()
