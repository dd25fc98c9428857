"""Submanifold convolution through the compiled kernels (csrc/simd_convolution.cpp), in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from geoattn.ops.backends import cpu

_PANEL = 32  # columns of a matrix that lie side by side: kPanel in csrc/simd_convolution.cpp
# ``Call`` there.
_CALL = cpu.Layout("voxels offsets voxel neighbor ptr depth width x other out threads")


def convolve(x: Tensor, weight: Tensor, voxel: Tensor, neighbor: Tensor, ptr: Sequence[int]) -> Tensor:
    """``[N, O]`` of ``[N, I]`` and ``[O, K, I]``, voxels in the order of the map.

    Raises:
        IndexError: If a pair names a voxel that does not exist.
    """
    width = weight.size(0)
    kernel = _panels(weight, 0).unflatten(0, (-1, _PANEL)).permute(2, 0, 3, 1)
    out = x.new_empty(x.size(0), kernel.size(1) * _PANEL)
    _run("geoattn_convolve", x, kernel.contiguous(), voxel, neighbor, ptr, out)
    return out[:, :width]


def correlate(y: Tensor, x: Tensor, voxel: Tensor, neighbor: Tensor, ptr: Sequence[int]) -> Tensor:
    """``[O, K, I]`` of ``[N, O]`` and ``[N, I]``.

    Raises:
        IndexError: If a pair names a voxel that does not exist.
    """
    width = y.size(1)
    y = _panels(y, 1)
    out = x.new_empty(2 * len(ptr) - 1, x.size(1), y.size(1))
    _run("geoattn_correlate", x, y.contiguous(), voxel, neighbor, ptr, out)
    return out[:, :, :width].permute(2, 0, 1)


def _panels(x: Tensor, dim: int) -> Tensor:
    """With zeros at the end of a dimension, up to a multiple of what lies side by side."""
    missing = -x.size(dim) % _PANEL
    return pad(x, (0, 0) * (x.dim() - dim - 1) + (0, missing)) if missing else x


def _run(name: str, x: Tensor, other: Tensor, voxel: Tensor, neighbor: Tensor, ptr: Sequence[int], out: Tensor) -> None:
    x, begins = x.contiguous(), torch.tensor(ptr, dtype=torch.int64)
    tensors = {"x": x, "other": other, "voxel": voxel, "neighbor": neighbor, "ptr": begins, "out": out}
    fields: dict[str, int | float] = {field: tensor.data_ptr() for field, tensor in tensors.items()}
    fields["voxels"], fields["depth"] = x.shape
    fields["offsets"], fields["width"] = 2 * len(ptr) - 1, out.size(-1)
    fields["threads"] = torch.get_num_threads()
    cpu.run(name, _CALL.pack(fields))
