"""Convolution on voxels on every backend, and where torch differentiates or rewrites it in other ways."""

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, vmap

import geoattn
from geoattn import _arguments, native
from geoattn.nn import DepthwiseSubMConv3d, SubMConv3d
from geoattn.ops import submanifold_conv
from geoattn.patterns import KernelMap

FAST = ["torch", *(["cpu"] if native.library() is not None else [])]
# Inputs and outputs: depth-wise, not of whole vectors, of one panel of columns and of several, deep.
CHANNELS = [(5, None), (1, 1), (6, 32), (32, 6), (32, 64), (33, 70), (300, 16)]


def voxels(count, size=3, side=8, seed=0):
    make = torch.Generator().manual_seed(seed)
    grid = torch.unique(torch.randint(0, side, (count, 3), generator=make), dim=0)
    return KernelMap.from_grid(grid[torch.randperm(len(grid), generator=make)], size)


def tensors(kernel_map, inputs, outputs, dtype=torch.float32, seed=0):
    """Features and a kernel, a depth-wise one of no outputs."""
    make = torch.Generator().manual_seed(seed)
    shapes = (kernel_map.num_voxels, inputs), (*([outputs] if outputs else []), *kernel_map.kernel_size, inputs)
    return [torch.randn(shape, generator=make).to(dtype).requires_grad_() for shape in shapes]


def results(kernel_map, x, weight, second=True):
    """The output, its gradients and, if wanted, those of a function of gradients."""
    out = submanifold_conv(x, weight, kernel_map)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    grads = torch.autograd.grad(out, (x, weight), upstream, create_graph=second)
    again = torch.autograd.grad(sum(g.square().sum() for g in grads), (x, weight)) if second else ()
    return [y.detach() for y in (out, *grads, *again)]


def assert_near(found, expected, tolerance):
    """Norm of the difference over the norm."""
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert (a.double() - b.double()).norm() <= tolerance * b.double().norm()


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", FAST)
def test_equals_the_reference(name, channels):
    kernel_map = voxels(300, (3, 1, 5))
    x, weight = tensors(kernel_map, *channels)
    with geoattn.backend("reference"):
        expected = results(kernel_map, *(t.detach().double().requires_grad_() for t in (x, weight)))
    with geoattn.backend(name):
        assert_near(results(kernel_map, x, weight), [y.float() for y in expected], 2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", FAST)
def test_other_types(name, dtype):
    kernel_map = voxels(100)
    x, weight = tensors(kernel_map, 16, 24, dtype)
    with geoattn.backend("reference"):
        expected = results(kernel_map, *(t.detach().double().requires_grad_() for t in (x, weight)), second=False)
    with geoattn.backend(name):
        found = results(kernel_map, x, weight, second=False)
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float64).eps * 16)
    assert_near(found, [y.to(dtype) for y in expected], eps)


@pytest.mark.parametrize("name", FAST)
def test_many_voxels_go_through_in_blocks(name):
    """More than fill a block, an offset's groups in it, and a chunk of pairs."""
    kernel_map = voxels(12_000, 3, side=26)
    x, weight = tensors(kernel_map, 40, 32)
    with geoattn.backend("reference"):
        expected = results(kernel_map, x, weight, second=False)
    with geoattn.backend(name):
        found = results(kernel_map, x, weight, second=False)
        assert_near(found, expected, 2e-6)
        torch.set_num_threads(3)
        try:
            several = results(kernel_map, x, weight, second=False)
        finally:
            torch.set_num_threads(1)
    if name == "cpu":
        assert all(torch.equal(a, b) for a, b in zip(found, several, strict=True))


SETS = """
import torch, tests.ops.test_convolution as t
kernel_map = t.voxels(300, 3)
for channels in t.CHANNELS:
    x, weight = t.tensors(kernel_map, *channels)
    with t.geoattn.backend("torch"):
        expected = t.results(kernel_map, x, weight)
    with t.geoattn.backend("cpu"):
        t.assert_near(t.results(kernel_map, x, weight), expected, 2e-6)
print(torch.backends.cpu.get_cpu_capability())
"""


@pytest.mark.skipif("cpu" not in FAST, reason="needs the compiled kernels")
@pytest.mark.parametrize("instructions", ["default", "avx2"])
def test_other_instruction_sets(instructions):
    done = subprocess.run(
        [sys.executable, "-c", SETS],
        env={**os.environ, "ATEN_CPU_CAPABILITY": instructions},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif("cpu" not in FAST, reason="needs the compiled kernels")
def test_pairs_of_voxels_that_do_not_exist_are_refused():
    good = voxels(50)
    for voxel, neighbor in ((good.voxel + 50, good.neighbor), (good.voxel, good.neighbor - 50)):
        wrong = KernelMap(good.kernel_size, voxel, neighbor, good.ptr, good.row, good.place)
        x, weight = tensors(good, 8, 32)
        with pytest.raises(IndexError):
            results(wrong, x, weight)
    with pytest.raises(ValueError, match="ptr to rise from 0 to the number of pairs in 14 numbers"):
        KernelMap(good.kernel_size, good.voxel, good.neighbor, [0, *good.ptr[2:]], good.row, good.place)


@pytest.mark.skipif("cpu" not in FAST, reason="needs the compiled kernels")
def test_kernels_that_were_built_before_are_done_without(monkeypatch):
    class Older:
        geoattn_edge_dot_base = None

    _arguments.warn_once.cache_clear()
    kernel_map = voxels(30)
    x, weight = tensors(kernel_map, 4, 4)
    expected = submanifold_conv(x, weight, kernel_map)
    monkeypatch.setattr(native, "_LIBRARY", Older())
    with pytest.warns(UserWarning, match="older than the package; build them again: `pip install"):
        torch.testing.assert_close(submanifold_conv(x, weight, kernel_map), expected)


def test_compiled_is_eager_for_any_voxels():
    first, second = SubMConv3d(4, 8, 3), DepthwiseSubMConv3d(8, 3)
    layer = lambda x, kernel_map: second(first(x, kernel_map), kernel_map)  # noqa: E731
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for seed in range(3):
        kernel_map = voxels(40 + 20 * seed, seed=seed)
        (x, _), results = tensors(kernel_map, 4, 8), []
        for run in (layer, compiled):
            out = run(x, kernel_map)
            results.append([out, *torch.autograd.grad(out.square().sum(), [x, *first.parameters(), second.weight])])
        torch.testing.assert_close(*results)


def test_fake_tensors_have_shapes():
    kernel_map = voxels(40)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(kernel_map.num_voxels, 4, requires_grad=True)
        out = DepthwiseSubMConv3d(8, 3)(SubMConv3d(4, 8, 3)(x, kernel_map), kernel_map)
        out.sum().backward()
    assert out.shape == (kernel_map.num_voxels, 8)
    assert x.grad.shape == x.shape
    assert type(kernel_map.voxel) is torch.Tensor


def test_gradients_of_each_sample():
    kernel_map = voxels(30)
    layer = SubMConv3d(4, 2, 3).double()
    x = torch.randn(3, kernel_map.num_voxels, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = lambda parameters, x: functional_call(layer, parameters, (x, kernel_map)).square().sum()  # noqa: E731
    found = vmap(grad(loss), (None, 0))(dict(layer.named_parameters()), x)
    for i, sample in enumerate(x):
        expected = torch.autograd.grad(loss(dict(layer.named_parameters()), sample), list(layer.parameters()))
        torch.testing.assert_close([g[i] for g in found.values()], list(expected))


def test_nothing_that_is_gathered_is_kept():
    kernel_map = voxels(300, 5)
    x, weight = tensors(kernel_map, 8, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        submanifold_conv(x, weight, kernel_map)
    own = {t.data_ptr() for t in (x, weight, kernel_map.voxel, kernel_map.neighbor, kernel_map.row, kernel_map.place)}
    assert {t.data_ptr() for t in kept} <= own
