"""`KernelMap`: which occupied voxels a convolution on voxels reads for which."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from geoattn._arguments import check_tensors, checked_integer


class KernelMap:
    """The pairs of voxels of every kernel offset of a submanifold convolution (Graham et al. 2018).

    Voxel ``p`` reads voxel ``p + o`` for every offset ``o`` of the kernel at which there is one in the same sample; at
    the centre of the kernel it reads itself. Found once for a set of voxels and shared by all layers that work on it.
    Pairs are kept of the offsets before the centre only: ``p`` reads ``q`` at ``o`` where ``q`` reads ``p`` at ``-o``.

    Voxels are counted by sample, then by their coordinates, whatever order their features lie in: neighbors lie near
    each other then. Made by `from_grid`.

    Args:
        kernel_size: Voxels of the kernel along each axis, odd.
        voxel: Of every pair the voxel that reads, ``[P]``, int32, one offset after the other, ascending in each.
        neighbor: Of every pair the voxel that is read, ``[P]``, int32.
        ptr: Where the pairs of each offset before the centre begin and end, ``[(K - 1) / 2 + 1]`` for ``K`` offsets.
        row: Where features of each voxel lie, ``[N]``, int32.
        place: The voxel whose features lie in each row, ``[N]``, int32.

    Raises:
        ValueError: If the sizes do not fit together.
    """

    def __init__(
        self,
        kernel_size: tuple[int, int, int],
        voxel: Tensor,
        neighbor: Tensor,
        ptr: Sequence[int],
        row: Tensor,
        place: Tensor,
    ) -> None:
        self.kernel_size = kernel_size
        self.voxel = voxel
        self.neighbor = neighbor
        self.ptr = tuple(ptr)
        self.row = row
        self.place = place
        rising = all(a <= b for a, b in itertools.pairwise((0, *self.ptr)))
        if len(self.ptr) != self.num_offsets // 2 + 1 or not rising or not len(voxel) == len(neighbor) == self.ptr[-1]:
            raise ValueError(
                f"expected ptr to rise from 0 to the number of pairs in {self.num_offsets // 2 + 1} numbers, got "
                f"{self.ptr} for {len(voxel)} and {len(neighbor)}"
            )

    @classmethod
    def from_grid(cls, grid: Tensor, kernel_size: int | Sequence[int], batch: Tensor | None = None) -> KernelMap:
        """Find the neighbors of every voxel.

        Args:
            grid: Integer coordinates ``[N, 3]`` of the voxels, in any order; negative ones are as good as others.
            kernel_size: Voxels of the kernel along each axis of ``grid``, odd: one number, or three.
            batch: Sample of every voxel ``[N]``, in any order; default: one sample. Samples do not see each other.

        Raises:
            TypeError: If ``grid`` or ``batch`` is no tensor, or a kernel size no integer.
            ValueError: If a kernel size is even or below 1, shapes or types are wrong, a voxel is there twice, or the
                voxels lie too far apart for their box to be counted in int64.

        Example:
            >>> KernelMap.from_grid(torch.tensor([[0, 0, 0], [0, 0, 1], [5, 0, 0]]), 3)
            KernelMap(voxels=3, kernel=3x3x3, pairs=5)
        """
        size = checked_kernel_size(kernel_size)
        _check_grid(grid, batch)
        if torch.compiler.is_compiling():
            raise RuntimeError("the host must know the values of a KernelMap: make it outside of what is compiled")
        key, stride = _keys(grid, size, batch)
        key, order = key.sort(stable=True)
        twice = (key[1:] == key[:-1]).nonzero()
        if len(twice):
            # The first in the order of rows to come again.
            again = order[twice[:, 0] + 1]
            second = int(again.min())
            first = int(order[twice[int(again.argmin()), 0]])
            where = f"{grid[second].tolist()}" + ("" if batch is None else f" of sample {int(batch[second])}")
            raise ValueError(
                f"every voxel must be there once, got {where} in rows {first} and {second}; "
                "keep one point of each first: geoattn.ops.grid_sample"
            )
        row = order.int()
        place = torch.empty_like(row).index_copy_(0, order, torch.arange(len(row), dtype=row.dtype, device=row.device))
        voxel, neighbor, ptr = [row[:0]], [row[:0]], [0]
        for reader, found in _neighbors(key, size, stride):
            voxel.append(reader.int())
            neighbor.append(found.int())
            ptr.append(ptr[-1] + len(reader))
        return cls(size, torch.cat(voxel), torch.cat(neighbor), ptr, row, place)

    @property
    def num_voxels(self) -> int:
        """Number of voxels ``N``."""
        return self.row.numel()

    @property
    def num_offsets(self) -> int:
        """Number of offsets ``K`` of the kernel."""
        return math.prod(self.kernel_size)

    @property
    def num_pairs(self) -> int:
        """Number of (voxel, neighbor) pairs of all offsets, each voxel with itself among them."""
        return self.num_voxels + 2 * self.ptr[-1]

    @property
    def device(self) -> torch.device:
        """Where the pairs are."""
        return self.voxel.device

    def to(self, device: torch.device | str) -> KernelMap:
        """Move to a device."""
        voxel, neighbor, row, place = (x.to(device) for x in (self.voxel, self.neighbor, self.row, self.place))
        return KernelMap(self.kernel_size, voxel, neighbor, self.ptr, row, place)

    def __repr__(self) -> str:
        kernel = "x".join(map(str, self.kernel_size))
        return f"KernelMap(voxels={self.num_voxels}, kernel={kernel}, pairs={self.num_pairs})"


def offsets(voxel: Tensor, neighbor: Tensor, ptr: Sequence[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Of every offset but the centre: its number, the voxels that read, and the voxels that are read.

    Offsets are numbered as the entries of a kernel ``[k, k, k]`` in row-major order, along the axes of the coordinates.
    Each voxel comes at most once on either side, and both ascend. Arguments are those of a `KernelMap`.
    """
    last = 2 * (len(ptr) - 1)
    for number, (begin, end) in enumerate(itertools.pairwise(ptr)):
        reader, read = voxel[begin:end], neighbor[begin:end]
        yield number, reader, read
        yield last - number, read, reader


def checked_kernel_size(kernel_size: Any) -> tuple[int, int, int]:
    """Three odd numbers of one, or of three.

    Raises:
        TypeError: If one is no integer.
        ValueError: If one is even or below 1, or there are not three.
    """
    sizes = [kernel_size] * 3 if not isinstance(kernel_size, (list, tuple)) else kernel_size
    if len(sizes) != 3:
        raise ValueError(f"expected kernel_size as one integer or three, got {kernel_size}")
    x, y, z = (checked_integer("kernel_size", size, least=1) for size in sizes)
    if not x % 2 == y % 2 == z % 2 == 1:
        raise ValueError(f"kernel_size must be odd, so that the kernel has a centre, got {kernel_size}")
    return x, y, z


def _check_grid(grid: Tensor, batch: Tensor | None) -> None:
    check_tensors(grid=grid)
    if grid.dim() != 2 or grid.size(1) != 3 or _not_integers(grid):
        raise ValueError(f"expected grid as integers [N, 3], got {grid.dtype} {list(grid.shape)}")
    if grid.size(0) > torch.iinfo(torch.int32).max:
        raise ValueError(f"at most 2^31 - 1 voxels can be counted, got {grid.size(0)}")
    if batch is not None:
        check_tensors(batch=batch)
        if batch.shape != grid.shape[:1] or _not_integers(batch):
            raise ValueError(f"expected batch as integers [{grid.size(0)}], got {batch.dtype} {list(batch.shape)}")
        if batch.device != grid.device:
            raise ValueError(f"grid and batch must be on one device, got {grid.device} and {batch.device}")


def _not_integers(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex() or x.dtype == torch.bool


def _keys(grid: Tensor, size: tuple[int, int, int], batch: Tensor | None) -> tuple[Tensor, tuple[int, int, int]]:
    """A number for every voxel, and by how much it grows with each coordinate.

    Numbers of voxels are ordered as (sample, x, y, z), and between the rows, columns and samples there are so many
    numbers of no voxel that an offset of the kernel never leads from one into another.
    """
    place = grid.long() if batch is None else torch.cat([batch.long().unsqueeze(1), grid.long()], 1)
    if not len(place):
        return place.new_zeros(0), (1, 1, 1)
    low, high = torch.stack(place.aminmax(dim=0)).tolist()
    extent = [b - a + 1 for a, b in zip(low, high, strict=True)]
    x, y, z = (e + s // 2 for e, s in zip(extent[-3:], size, strict=True))
    stride = y * z, z, 1
    samples = extent[0] if batch is not None else 1
    if (samples + 1) * x * y * z >= 2**63:
        raise ValueError(
            f"voxels lie too far apart: a box of {' x '.join(map(str, extent[-3:]))} voxels and {samples} samples is "
            "too large to be counted in int64; remove points that lie far off, or make voxels larger"
        )
    steps = [*([x * y * z] if batch is not None else []), *stride]
    key = torch.zeros_like(place[:, 0])
    for axis, step in enumerate(steps):
        key += (place[:, axis] - low[axis]) * step
    return key, stride


def _neighbors(
    key: Tensor, size: tuple[int, int, int], stride: tuple[int, int, int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """For every offset before the centre, in row-major order: places of voxels in sorted ``key``, and of neighbors.

    Voxels along the last axis follow each other: only the first of them is searched for.
    """
    reach = [s // 2 for s in size]
    last = max(len(key) - 1, 0)
    for x, y in itertools.product(range(-reach[0], 1), range(-reach[1], reach[1] + 1)):
        if (x, y) > (0, 0):
            break
        column = key + (x * stride[0] + y * stride[1] - reach[2])
        place = torch.searchsorted(key, column)
        for z in range(-reach[2], reach[2] + 1):
            if (x, y, z) == (0, 0, 0):
                break
            # A place past the end holds the largest number, which no number that was searched for there equals.
            found = key[place.clamp(max=last)] == column
            (hit,) = found.nonzero(as_tuple=True)
            yield hit, place[hit]
            place += found
            column += 1
