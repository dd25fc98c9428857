"""Convolution on the occupied voxels of a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geoattn.ops import submanifold_conv
from geoattn.patterns.kernel_map import KernelMap, checked_kernel_size


class SubMConv3d(nn.Module):
    r"""Submanifold sparse convolution (Graham, Engelcke, van der Maaten, CVPR 2018): voxels stay as sparse as they are.

    .. math::
        y_p = b + \sum_{o} W_o \, x_{p + o} \qquad \text{over offsets } o \text{ at which there is a voxel } p + o
        \text{ in the sample}

    Weights have the layout, the order of axes and the initial distribution of spconv 2, so that its checkpoints load.

    Args:
        in_channels: Features of a voxel that come in.
        out_channels: Features that go out.
        kernel_size: Voxels along each axis of the coordinates, odd: one number, or three.
        bias: Whether to add a learned vector.

    Shapes:
        ``x`` ``[N, in_channels]``, a `KernelMap` of ``N`` voxels and this kernel size; output ``[N, out_channels]``.
        ``weight`` is ``[out_channels, k, k, k, in_channels]``, kernel axes in the order of the coordinates.

    Raises:
        TypeError: If the kernel size is no integer.
        ValueError: If it is even.

    Example:
        >>> grid = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 1]])
        >>> conv = SubMConv3d(4, 8, kernel_size=3)
        >>> conv(torch.randn(3, 4), KernelMap.from_grid(grid, 3)).shape
        torch.Size([3, 8])
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | Sequence[int], bias: bool = True
    ) -> None:
        super().__init__()
        self.kernel_size = checked_kernel_size(kernel_size)
        self.weight = nn.Parameter(torch.empty(out_channels, *self.kernel_size, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within one over the root of the number of inputs, the default of torch's convolutions, too."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, kernel_map: KernelMap) -> Tensor:
        """Convolve; errors as in `geoattn.ops.submanifold_conv`."""
        return submanifold_conv(x, self.weight, kernel_map, self.bias)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        out_channels, *_, in_channels = self.weight.shape
        return f"{in_channels}, {out_channels}, kernel_size={self.kernel_size}, bias={self.bias is not None}"


class DepthwiseSubMConv3d(nn.Module):
    r"""Submanifold convolution of every channel by itself: :math:`y_{pc} = \sum_o w_{oc} \, x_{p + o, c}`.

    As in ScatterFormer (He et al., ECCV 2024), whose code has this layout of weights and starts them standard normal.

    Args:
        channels: Features of a voxel.
        kernel_size: Voxels along each axis of the coordinates, odd: one number, or three.

    Shapes:
        ``x`` ``[N, channels]``, a `KernelMap` of ``N`` voxels and this kernel size; output ``[N, channels]``.
        ``weight`` is ``[k, k, k, channels]``, kernel axes in the order of the coordinates.

    Raises:
        TypeError: If the kernel size is no integer.
        ValueError: If it is even.
    """

    def __init__(self, channels: int, kernel_size: int | Sequence[int]) -> None:
        super().__init__()
        self.kernel_size = checked_kernel_size(kernel_size)
        self.weight = nn.Parameter(torch.randn(*self.kernel_size, channels))

    def forward(self, x: Tensor, kernel_map: KernelMap) -> Tensor:
        """Convolve; errors as in `geoattn.ops.submanifold_conv`."""
        return submanifold_conv(x, self.weight, kernel_map)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{self.weight.size(-1)}, kernel_size={self.kernel_size}"
