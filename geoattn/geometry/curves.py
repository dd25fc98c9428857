"""Codes of points along space-filling curves: points with near codes lie near each other.

Both curves visit the ``2^bits`` cells along each axis of a grid. Sorting points by code, with

    order = hilbert(pos, batch=batch).argsort(stable=True)

keeps the samples of a batch apart, and leaves points of one cell in the order they came in. Points whose codes agree
but for the last ``D * t`` bits lie in one cell of ``2^t`` times the size.

The transposed variants of Point Transformer V3 (Wu et al. 2024) are the same curves with the first two axes exchanged:
``z_order(pos[:, [1, 0, 2]])``, ``hilbert(pos[:, [1, 0, 2]])``.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from geoattn._arguments import check_tensors, checked_integer


def z_order(pos: Tensor, batch: Tensor | None = None, bits: int = 16) -> Tensor:
    """Codes along the Z-order curve (Morton 1966): the bits of the coordinates interleaved, the first axis highest.

    Args:
        pos: Points ``[N, D]``. Floating point coordinates are cut into ``2^bits`` cells along the longest side of each
            sample's bounding box, and cells of the same size along the others; integers are cells already, in
            ``[0, 2^bits)``.
        batch: Sample of every point ``[N]``, in any order; it becomes the highest bits. Default: one sample.
        bits: Bits for each axis.

    Returns:
        ``[N]`` int64, not negative.

    Raises:
        TypeError: If points are no tensor, or ``bits`` is no integer.
        ValueError: On bad shapes, coordinates that are not finite or not cells, or if the bits of all axes and of
            ``batch`` are more than 63.
    """
    bits = _check(pos, batch, bits)
    return _interleave(_cells(pos, batch, bits), batch, bits)


def hilbert(pos: Tensor, batch: Tensor | None = None, bits: int = 16) -> Tensor:
    """Codes along the Hilbert curve, on which consecutive cells are neighbors in the grid.

    The curve is Skilling's ("Programming the Hilbert curve", AIP Conference Proceedings 707, 2004). Unlike the Z-order,
    it depends on ``bits`` in more than resolution: one bit more exchanges the axes.

    Arguments, result and errors are those of `z_order`.
    """
    bits = _check(pos, batch, bits)
    axes = _cells(pos, batch, bits)
    # From the coarsest cell to the finest: turn what lies inside a cell the way the curve runs through it.
    for bit in reversed(range(1, bits)):
        below = (1 << bit) - 1
        for i, axis in enumerate(axes):
            upper = -(axis >> bit & 1)  # all ones in the upper half, else zeros
            axes[0] ^= upper & below
            if i > 0:
                exchanged = (axes[0] ^ axis) & ~upper & below
                axes[0] ^= exchanged
                axis ^= exchanged
    # What is left is a Gray code, read across the axes.
    for before, axis in pairwise(axes):
        axis ^= before
    parity = axes[-1] >> 1  # of all higher bits of the last axis
    shift = 1
    while shift < bits:
        parity ^= parity >> shift
        shift *= 2
    for axis in axes:
        axis ^= parity
    return _interleave(axes, batch, bits)


def _check(pos: Tensor, batch: Tensor | None, bits: int) -> int:
    check_tensors(pos=pos)
    bits = checked_integer("bits", bits)
    if pos.dim() != 2 or pos.size(1) < 1 or pos.is_complex() or pos.dtype == torch.bool:
        raise ValueError(f"expected pos [N, D] of numbers, got {pos.dtype} {list(pos.shape)}")
    axes = pos.size(1)
    if not 1 <= bits <= 31 or axes * bits > 63:
        raise ValueError(f"bits must be in [1, {min(31, 63 // axes)}] for {axes} axes, got {bits}")
    if not pos.is_floating_point() and pos.numel() and (int(pos.min()) < 0 or int(pos.max()) >= 1 << bits):
        raise ValueError(
            f"pos of integers must be cells in [0, 2^{bits}), got {int(pos.min())} to {int(pos.max())}: "
            f"subtract the smallest or pass more bits"
        )
    if batch is None:
        return bits
    check_tensors(batch=batch)
    if batch.shape != pos.shape[:1] or batch.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"expected batch [{pos.size(0)}] of int64, got {batch.dtype} {list(batch.shape)}")
    if batch.numel() and (int(batch.min()) < 0 or axes * bits + int(batch.max()).bit_length() > 63):
        raise ValueError(
            f"batch must be in [0, 2^{63 - axes * bits}), got {int(batch.min())} to {int(batch.max())}: "
            f"{axes} axes of {bits} bits leave it {63 - axes * bits}"
        )
    return bits


def _cells(pos: Tensor, batch: Tensor | None, bits: int) -> list[Tensor]:
    """The cell of every point along each axis: ``D`` tensors ``[N]`` of their own."""
    if pos.is_floating_point():
        pos = _quantize(pos, batch, bits)
    return list(pos.T.to(torch.int32, memory_format=torch.contiguous_format, copy=True))


def _quantize(pos: Tensor, batch: Tensor | None, bits: int) -> Tensor:
    """Cells ``[N, D]`` of each sample's bounding cube."""
    pos = pos.detach().double()
    if pos.size(0) == 0:
        return pos
    if batch is None:
        low, high = pos.amin(0), pos.amax(0)
        side = (high - low).amax()
    else:
        index = batch.long().unsqueeze(1).expand_as(pos)
        empty = pos.new_zeros(int(batch.max()) + 1, pos.size(1))
        low = empty.scatter_reduce(0, index, pos, "amin", include_self=False)
        high = empty.scatter_reduce(0, index, pos, "amax", include_self=False)
        side = (high - low).amax(1, keepdim=True)[batch]
        low = low[batch]
    if not bool(torch.isfinite(side).all()):
        raise ValueError("pos has NaN or infinite coordinates, or a sample's extent is not finite")
    fraction = (pos - low) / side.where(side > 0, 1)
    return (fraction * (1 << bits)).floor().clamp_max((1 << bits) - 1)


def _interleave(axes: list[Tensor], batch: Tensor | None, bits: int) -> Tensor:
    """Bit ``b`` of axis ``d`` of ``D`` becomes bit ``D * b + D - 1 - d``; above them stands the sample."""
    between = len(axes) - 1
    code = torch.zeros_like(axes[0], dtype=torch.int64)
    for axis in axes:
        # Halve the blocks of neighboring bits and move them apart until each bit stands alone.
        spread, block = axis.long(), 1 << (bits - 1).bit_length() >> 1
        while block:
            kept = sum(1 << (b // block * block * len(axes) + b % block) for b in range(bits))
            spread = (spread | spread << block * between) & kept
            block >>= 1
        code = code << 1 | spread
    return code if batch is None else code | batch.long() << bits * len(axes)
