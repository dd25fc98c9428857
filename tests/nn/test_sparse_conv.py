"""Convolution on voxels: against torch's on a full grid, where no voxel is as good as zeros."""

import pytest
import torch
from torch.nn import functional as F

from geoattn import ops
from geoattn.nn import DepthwiseSubMConv3d, SubMConv3d
from geoattn.ops import submanifold_conv
from geoattn.patterns import KernelMap

SIZES = [1, 3, 5, (1, 3, 5), (1, 1, 7)]


def voxels(share, samples=2, channels=4, dtype=torch.float64):
    """Where voxels are, sample and coordinates in random order, and their features."""
    make = torch.Generator().manual_seed(0)
    place = (torch.rand(samples, 4, 5, 6, generator=make) < share).nonzero()
    place = place[torch.randperm(len(place), generator=make)]
    return place, torch.randn(len(place), channels, generator=make, dtype=dtype)


def dense(x, place, weight, bias=None, groups=1):
    """Torch's convolution of the grid in which voxels that are not there are zeros, at the voxels that are."""
    full = x.new_zeros(*(place.max(0).values + 1), x.size(1)).index_put(tuple(place.T), x)
    padding = [size // 2 for size in weight.shape[1:4]]
    out = F.conv3d(full.movedim(-1, 1), weight.movedim(-1, 1), bias, padding=padding, groups=groups)
    return out.movedim(1, -1)[tuple(place.T)]


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("size", SIZES)
def test_equals_dense_convolution(size, share):
    torch.manual_seed(0)
    place, x = voxels(share)
    layer = SubMConv3d(4, 3, size).double()
    results = []
    for compute in (
        lambda x: layer(x, KernelMap.from_grid(place[:, 1:] - 9, size, place[:, 0])),
        lambda x: dense(x, place, layer.weight, layer.bias),
    ):
        leaf = x.clone().requires_grad_()
        out = compute(leaf)
        results.append([out, *torch.autograd.grad(out.sin().sum(), [leaf, *layer.parameters()])])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_depthwise_equals_torchs_grouped_convolution(size):
    torch.manual_seed(0)
    place, x = voxels(0.3)
    layer = DepthwiseSubMConv3d(4, size).double()
    results = []
    for compute in (
        lambda x: layer(x, KernelMap.from_grid(place[:, 1:], size, place[:, 0])),
        lambda x: dense(x, place, layer.weight.movedim(-1, 0).unsqueeze(-1), groups=4),
    ):
        leaf = x.clone().requires_grad_()
        out = compute(leaf)
        results.append([out, *torch.autograd.grad(out.sin().sum(), [leaf, layer.weight])])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_order_of_voxels_does_not_matter():
    place, x = voxels(0.4)
    layer = SubMConv3d(4, 3, 3).double()
    out = layer(x, KernelMap.from_grid(place[:, 1:], 3, place[:, 0]))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    moved = layer(x[order], KernelMap.from_grid(place[order, 1:], 3, place[order, 0]))
    torch.testing.assert_close(moved, out[order])


def test_samples_do_not_see_each_other():
    place, x = voxels(0.5)
    layer = SubMConv3d(4, 3, 5).double()
    out = layer(x, KernelMap.from_grid(place[:, 1:], 5, place[:, 0]))
    for sample in (0, 1):
        rows = place[:, 0] == sample
        torch.testing.assert_close(layer(x[rows], KernelMap.from_grid(place[rows, 1:], 5)), out[rows])


@pytest.mark.parametrize("depthwise", [False, True])
def test_derivatives(depthwise):
    grid = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1], [4, 4, 4]])
    kernel_map = KernelMap.from_grid(grid, 3)
    make = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=make, dtype=torch.float64, requires_grad=True)
        for shape in ((5, 2), (3, 3, 3, 2) if depthwise else (3, 3, 3, 3, 2), (2 if depthwise else 3,))
    )
    run = lambda x, weight, bias: submanifold_conv(x, weight, kernel_map, bias)  # noqa: E731
    inputs = x, weight, bias
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_the_same_input_gives_the_same_bits():
    place, x = voxels(0.5, channels=32, dtype=torch.float32)
    layer = SubMConv3d(32, 32, 5)
    kernel_map = KernelMap.from_grid(place[:, 1:], 5, place[:, 0])
    results = []
    for _ in range(2):
        out = layer(x, kernel_map)
        results.append([out, *torch.autograd.grad(out.square().sum(), list(layer.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_summed_in_float32(dtype):
    """Thousands of ones, where sums of halves stop at 2,048 or 256: in an output, and in the gradient of a weight."""
    grid = torch.cartesian_prod(torch.arange(1), torch.arange(1), torch.arange(3000))
    kernel_map = KernelMap.from_grid(grid, (1, 1, 401))
    x = torch.ones(3000, 8, dtype=dtype)
    weight = torch.ones(8, 1, 1, 401, 8, dtype=dtype, requires_grad=True)
    out = submanifold_conv(x, weight, kernel_map)
    assert out.dtype == dtype
    torch.testing.assert_close(out[1500, 0].float(), torch.tensor(401.0 * 8), rtol=2**-8, atol=0)
    (found,) = torch.autograd.grad(out.sum(), weight)
    torch.testing.assert_close(found[0, 0, 0, 200, 0].float(), torch.tensor(3000.0), rtol=2**-8, atol=0)


def test_starts_like_the_convolutions_of_torch():
    torch.manual_seed(0)
    ours, theirs = SubMConv3d(16, 64, 5), torch.nn.Conv3d(16, 64, 5)
    for a, b in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
        torch.testing.assert_close(a.abs().max(), b.abs().max(), rtol=0.05, atol=0)
        torch.testing.assert_close(a.std(), b.std(), rtol=0.1, atol=0)
    assert SubMConv3d(4, 4, 3, bias=False).bias is None


def test_autocast():
    place, x = voxels(0.5, dtype=torch.float32)
    layer = SubMConv3d(4, 3, 3)
    kernel_map = KernelMap.from_grid(place[:, 1:], 3, place[:, 0])
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, kernel_map)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x, kernel_map), rtol=0.05, atol=0.02)


KERNEL_MAP = KernelMap.from_grid(torch.tensor([[0, 0, 0], [0, 0, 1]]), 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SubMConv3d(4, 8, 2), ValueError, "kernel_size must be odd"),
        (
            lambda: SubMConv3d(4, 8, 5)(torch.ones(2, 4), KERNEL_MAP),
            ValueError,
            r"\[O, 3, 3, 3, I\], or .*5, 5, 5",
        ),
        (lambda: SubMConv3d(4, 8, 3)(torch.ones(3, 4), KERNEL_MAP), ValueError, r"expected x \[2, 4\], got \[3, 4\]"),
        (lambda: SubMConv3d(4, 8, 3)(torch.ones(2, 5), KERNEL_MAP), ValueError, r"expected x \[2, 4\], got \[2, 5\]"),
        (lambda: SubMConv3d(4, 8, 3)(torch.ones(2, 4).double(), KERNEL_MAP), ValueError, "must have one floating type"),
        (lambda: SubMConv3d(4, 8, 3)(torch.ones(2, 4), torch.ones(2, 3)), TypeError, r"KernelMap\.from_grid"),
    ],
)
def test_what_is_wrong_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_points_of_a_cloud_become_voxels():
    """As the error for duplicates says."""
    pos = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    index, _ = ops.grid_sample(pos, 0.2)
    kernel_map = KernelMap.from_grid((pos[index] / 0.2).floor().long(), 3)
    assert SubMConv3d(3, 5, 3)(pos[index], kernel_map).shape == (len(index), 5)
