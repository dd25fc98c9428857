"""What a call of `attend` keeps for its backward pass."""

import pytest
import torch

import geoattn
from geoattn import Neighbors, attend
from geoattn.patterns import visits
from tests.ops.problems import FAST, TOLERANCE, problem, random_pattern, run


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("score", ["dot", "everything", "gatv2_edges"])
def test_nothing_per_edge_is_kept_for_the_backward_pass(name, score):
    pattern = random_pattern(50, 40, 900)
    arguments = problem(pattern, score, dtype=torch.float32)
    known = {x.untyped_storage().data_ptr() for x in arguments.values()}
    known |= {x.untyped_storage().data_ptr() for x in (pattern.rowptr, pattern.col)}
    kept = []
    with geoattn.backend(name), torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        attend(pattern=pattern, dropout=0.2, **arguments)
    new = [x for x in kept if x.untyped_storage().data_ptr() not in known]
    assert kept
    assert not [tuple(x.shape) for x in new if pattern.num_edges in x.shape]


@pytest.mark.skipif("cpu" not in FAST, reason="the kernels for CPUs were not built")
def test_on_a_cpu_the_output_is_not_kept_and_may_be_changed():
    pattern = random_pattern(50, 40, 900)
    a = problem(pattern, "dot")
    expected = run("reference", pattern, a)["query"]
    make = torch.Generator().manual_seed(1)
    with geoattn.backend("cpu"):
        out, lse = attend(pattern=pattern, return_lse=True, **a)
        of_out, of_lse = (torch.randn(x.shape, generator=make, dtype=x.dtype) for x in (out, lse))
        out.add_(1)
        (found,) = torch.autograd.grad([out, lse], [a["query"]], [of_out, of_lse])
    torch.testing.assert_close(found, expected, **TOLERANCE[torch.float64])


@pytest.mark.skipif("cpu" not in FAST, reason="needs the compiled kernels")
def test_where_rows_are_visited_nothing_else_is_made_of_the_pattern():
    pattern = Neighbors.knn(torch.rand(visits.MIN_KEYS, 3, generator=torch.Generator().manual_seed(0)), 5)
    run("cpu", pattern, problem(pattern, "dot", heads=1, groups=1, dtype=torch.float32))
    assert pattern._transpose is None
    assert all(found.edge is None for found in pattern._visits.values())
    assert len(pattern._visits) == 2


@pytest.mark.parametrize("name", [*FAST, "reference"])
@pytest.mark.parametrize("score", ["dot", "everything", "gatv2_edges"])
def test_inputs_are_as_they_were_after_the_backward_pass(name, score):
    pattern = random_pattern(60, 20, 900)
    inner = {n: x * 1 for n, x in problem(pattern, score, dim=8, width=8).items()}
    before = {n: x.detach().clone() for n, x in inner.items()}
    with geoattn.backend(name):
        attend(pattern=pattern, **inner).square().sum().backward()
    assert all(torch.equal(inner[n], x) for n, x in before.items())
