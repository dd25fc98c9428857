"""What a call of `attend` keeps for its backward pass, and what that writes over."""

from contextlib import nullcontext

import pytest
import torch

import geoattn
from geoattn import Neighbors, attend
from geoattn.patterns import visits
from tests.ops.problems import AVAILABLE, FAST, TOLERANCE, problem, random_pattern, run

OVERWRITTEN = [("dot", False), ("everything", False), ("dot", True), ("gatv2_edges", False), ("gatv2_edges", True)]


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("score", ["dot", "everything", "gatv2_edges"])
def test_nothing_per_edge_is_kept_for_the_backward_pass(name, score):
    pattern = random_pattern(50, 40, 900)
    arguments = problem(pattern, score, dtype=torch.float32)
    known = {x.untyped_storage().data_ptr() for x in arguments.values()}
    known |= {x.untyped_storage().data_ptr() for x in (pattern.rowptr, pattern.col)}
    columns = pattern.transpose
    known |= {x.untyped_storage().data_ptr() for x in (columns.rowptr, columns.col, columns.edge_order)}
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


@pytest.mark.skipif("cpu" not in AVAILABLE, reason="needs the compiled kernels")
def test_where_rows_are_visited_nothing_else_is_made_of_the_pattern():
    pattern = Neighbors.knn(torch.rand(visits.MIN_KEYS, 3, generator=torch.Generator().manual_seed(0)), 5)
    run("cpu", pattern, problem(pattern, "dot", heads=1, groups=1, dtype=torch.float32))
    assert pattern._transpose is None
    assert all(found.edge is None for found in pattern._visits.values())
    assert len(pattern._visits) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize(("score", "value_is_key"), OVERWRITTEN)
@pytest.mark.parametrize("name", [None, *FAST])
def test_gradients_are_the_same_where_keys_and_values_are_overwritten(name, score, value_is_key, groups, dtype):
    pattern = random_pattern(60, 20, 900)  # rows of several tiles, and by key of several batches
    arguments = problem(pattern, score, groups=groups, dim=8, width=8, dtype=dtype)
    if value_is_key:
        del arguments["value"]
    leaves = list(arguments.values())

    def gradients(overwrite, **options):
        inner = {name: x * 1 for name, x in arguments.items()}
        kept = {name: inner[name].detach().clone() for name in ("key", "value") if name in inner}
        if value_is_key:
            inner["value"] = inner["key"]
        with geoattn.backend(name) if name else nullcontext():
            out = attend(pattern=pattern, overwrite=overwrite, **inner)
            grads = torch.autograd.grad(out, leaves, torch.ones_like(out) / 3, **options)
        return grads, all(torch.equal(inner[name], value) for name, value in kept.items())

    expected, as_it_was = gradients(False)
    assert as_it_was
    found, as_it_was = gradients(True)
    one_of_both = value_is_key and score == "dot"  # made as two that are added
    assert as_it_was == (name in ("torch", "triton") or one_of_both or "cpu" not in AVAILABLE)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    for options in ({"retain_graph": True}, {"create_graph": True}):
        found, as_it_was = gradients(True, **options)
        assert as_it_was
        tolerance = {"rtol": TOLERANCE[dtype]["rtol"], "atol": 10 * TOLERANCE[dtype]["atol"]}
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, **tolerance)


@pytest.mark.parametrize("name", [None, *FAST])
def test_keys_that_are_queries_and_leaves_are_not_overwritten(name):
    pattern = random_pattern(20, 20, 300)
    leaf = torch.randn(20, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    with geoattn.backend(name) if name else nullcontext():
        found, expected = (
            torch.autograd.grad(attend(x, x, leaf, pattern, overwrite=o).sum(), leaf)
            for x, o in ((leaf * 1, True), (leaf * 1, False))
        )
    torch.testing.assert_close(*found, *expected)


@pytest.mark.skipif("cpu" not in AVAILABLE, reason="needs the compiled kernels")
def test_who_needs_what_was_overwritten_is_told():
    pattern = random_pattern()
    arguments = {name: x * 1 for name, x in problem(pattern).items()}
    key = arguments["key"]
    other = key.square().sum()  # needs the key in its own backward pass
    attend(pattern=pattern, overwrite=True, **arguments).sum().backward(inputs=[key])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward(inputs=[key])
