"""Codes of points along space-filling curves: points with near codes lie near each other.

Both curves visit the ``2^bits`` cells along each axis of a grid. Sorting points by code, with

    order = hilbert(pos, batch=batch).argsort(stable=True)

keeps the samples of a batch apart, and leaves points of one cell in the order they came in. Points whose codes agree
but for the last ``D * t`` bits lie in one cell of ``2^t`` times the size.

`serialize` does this for voxels, along the four orders of Point Transformer V3 (Wu et al. 2024) at once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from geoattn import native
from geoattn._arguments import check_tensors, checked_integer
from geoattn.geometry import search

# Which curve an order follows, and whether with the first two axes exchanged.
_ORDERS = {"z": (False, False), "z-trans": (False, True), "hilbert": (True, False), "hilbert-trans": (True, True)}
_DEEPEST = 16


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
    return _codes(_cells(pos, batch, bits), batch, bits, ["z"])[0]


def hilbert(pos: Tensor, batch: Tensor | None = None, bits: int = 16) -> Tensor:
    """Codes along the Hilbert curve, on which consecutive cells are neighbors in the grid.

    The curve is Skilling's ("Programming the Hilbert curve", AIP Conference Proceedings 707, 2004). Unlike the Z-order,
    it depends on ``bits`` in more than resolution: one bit more exchanges the axes.

    Arguments, result and errors are those of `z_order`.
    """
    bits = _check(pos, batch, bits)
    return _codes(_cells(pos, batch, bits), batch, bits, ["hilbert"])[0]


class Serialization(NamedTuple):
    """Voxels along several curves: what `serialize` finds, one row for each order.

    Args:
        code: Place of every voxel on the curve, above it its sample, ``[O, N]`` int64.
        order: The voxels sorted by code, ``[O, N]`` int64: the ``i``-th along curve ``o`` is ``order[o, i]``.
        inverse: Where each voxel stands in ``order``, ``[O, N]`` int64: ``order[o, inverse[o, n]] == n``.
        depth: Bits for each axis.
    """

    code: Tensor
    order: Tensor
    inverse: Tensor
    depth: int


@torch.compiler.disable  # the depth is that of the values
def serialize(
    grid: Tensor,
    batch: Tensor | None = None,
    orders: Sequence[str] = ("z", "z-trans", "hilbert", "hilbert-trans"),
    depth: int | None = None,
) -> Serialization:
    """Sort voxels along space-filling curves, as Point Transformer V3 (Wu et al. 2024, Section 4.2).

    The transposed orders are the same curves with the first two axes exchanged. The Hilbert curve depends on ``depth``
    in more than resolution (see `hilbert`), so equality with a network of the authors needs their depth; they have two
    rules for it (`grid_depth`).

    On every curve the ``t``-th parents of the voxels, cells of ``2^t`` times the size, have the codes
    ``code >> 3 * t``: these are the codes of ``serialize(grid >> t, batch, orders, depth - t)``.

    Args:
        grid: Voxels ``[N, 3]``, integers from 0 on. Those of the same place stay in the order they came in.
        batch: Sample of every voxel ``[N]``, in any order, from 0 on. Default: one sample.
        orders: Of ``"z"``, ``"z-trans"``, ``"hilbert"`` and ``"hilbert-trans"``: one for each row of the result.
        depth: Bits for each axis, at most 16. Default: as many as the largest coordinate has, `grid_depth`.

    Returns:
        Codes, orders and their inverses. Nothing is shuffled.

    Raises:
        TypeError: If voxels or samples are no tensors, or ``depth`` is no integer.
        ValueError: On bad shapes or types, unknown orders, negative coordinates or samples, coordinates that
            ``depth`` cannot hold, a depth above 16, or if depth and samples need more than 63 bits.

    Example:
        >>> serialize(torch.tensor([[1, 0, 0], [0, 0, 1], [0, 0, 0]]), orders=["z", "hilbert"]).order
        tensor([[2, 1, 0],
                [2, 1, 0]])
    """
    if isinstance(orders, str) or not orders or any(name not in _ORDERS for name in orders):
        raise ValueError(f"orders must be a sequence of some of {', '.join(map(repr, _ORDERS))}, got {orders!r}")
    needed = grid_depth(grid)
    if needed > _DEEPEST:
        raise ValueError(
            f"grid reaches {int(grid.max())}, beyond {_DEEPEST} bits for each axis: subtract the smallest coordinates "
            f"of every sample, or choose larger voxels"
        )
    depth = needed if depth is None else checked_integer("depth", depth)
    if not needed <= depth <= _DEEPEST:
        reason = f" for coordinates up to {int(grid.max())}" if depth < needed else ""
        raise ValueError(f"depth must be in [{needed}, {_DEEPEST}]{reason}, got {depth}")
    _check_batch(grid, batch, depth)
    code = _codes(grid, batch, depth, orders)
    order, inverse = torch.empty_like(code), torch.empty_like(code)
    place = torch.arange(len(grid), device=grid.device)
    for row in range(len(orders)):  # one by one: torch sorts several rows more slowly
        order[row] = code[row].argsort(stable=True)
        inverse[row, order[row]] = place
    return Serialization(code, order, inverse, depth)


def grid_depth(grid: Tensor, beyond: int = 0) -> int:
    """Bits for each axis of a grid that holds all voxels: those of the largest coordinate plus ``beyond``.

    Point Transformer V3 (Wu et al. 2024) was published with two rules: ``beyond=0`` in a repository of its own,
    ``beyond=1`` in Pointcept. They differ where the largest coordinate is ``2^depth - 1``, and then the Hilbert curve
    runs another way.

    Args:
        grid: Voxels ``[N, 3]`` of all samples, integers from 0 on.
        beyond: 0 or 1.

    Returns:
        The depth; 0 where all voxels are at the origin, or there are none.

    Raises:
        TypeError: If voxels are no tensor, or ``beyond`` is no integer.
        ValueError: If voxels are no integers ``[N, 3]``, one is negative, or ``beyond`` is not 0 or 1.
    """
    check_tensors(grid=grid)
    if grid.dim() != 2 or grid.size(1) != 3 or grid.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"expected grid [N, 3] of int64, got {grid.dtype} {list(grid.shape)}")
    if checked_integer("beyond", beyond) not in (0, 1):
        raise ValueError(f"beyond must be 0 or 1, got {beyond}")
    low, high = map(int, grid.aminmax()) if grid.numel() else (0, 0)
    if low < 0:
        raise ValueError(f"grid must not be negative, got {low}: subtract the smallest coordinates")
    return (high + beyond).bit_length()


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
    _check_batch(pos, batch, bits)
    return bits


def _check_batch(pos: Tensor, batch: Tensor | None, bits: int) -> None:
    if batch is None:
        return
    check_tensors(batch=batch)
    axes = pos.size(1)
    if batch.shape != pos.shape[:1] or batch.dtype not in (torch.int32, torch.int64) or batch.device != pos.device:
        raise ValueError(
            f"expected batch [{pos.size(0)}] of int64 on {pos.device}, "
            f"got {batch.dtype} {list(batch.shape)} on {batch.device}"
        )
    if batch.numel() and (int(batch.min()) < 0 or axes * bits + int(batch.max()).bit_length() > 63):
        raise ValueError(
            f"batch must be in [0, 2^{63 - axes * bits}), got {int(batch.min())} to {int(batch.max())}: "
            f"{axes} axes of {bits} bits leave it {63 - axes * bits}"
        )


def _cells(pos: Tensor, batch: Tensor | None, bits: int) -> Tensor:
    """The cell of every point along each axis, ``[N, D]``."""
    return _quantize(pos, batch, bits) if pos.is_floating_point() else pos


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
    return (fraction * (1 << bits)).clamp_max((1 << bits) - 1).int()  # rounded down


def _codes(cell: Tensor, batch: Tensor | None, bits: int, orders: Sequence[str]) -> Tensor:
    """Codes ``[O, N]`` of cells ``[N, D]``, above them the sample."""
    kinds = [_ORDERS[name] for name in orders]
    if cell.size(1) == 3 and search.kernels_run(cell) and native.in_memory(cell) and not native.modes_active():
        kernel = _kernel()
        if kernel is not None:
            cell, batch = cell.long().contiguous(), None if batch is None else batch.long().contiguous()
            curve = torch.tensor([by_hilbert + 2 * exchanged for by_hilbert, exchanged in kinds])
            code = torch.empty(len(kinds), len(cell), dtype=torch.int64)
            kernel(
                *(cell.data_ptr(), None if batch is None else batch.data_ptr(), len(cell), bits),
                *(curve.data_ptr(), len(kinds), code.data_ptr(), torch.get_num_threads()),
            )
            return code
    codes = []
    for by_hilbert, exchanged in kinds:
        axes = list(cell.T.to(torch.int32, memory_format=torch.contiguous_format, copy=True))
        if exchanged:
            axes[:2] = axes[1], axes[0]
        if by_hilbert:
            _turn(axes, bits)
        codes.append(_interleave(axes, batch, bits))
    return torch.stack(codes)


@cache
def _kernel() -> Callable[..., int] | None:
    """See csrc/curves.cpp; None if the library was built before there was that file."""
    function: Any = getattr(native.library(), "geoattn_curve_codes", None)
    if function is not None:
        function.argtypes = [{"p": ctypes.c_void_p, "n": ctypes.c_int64}[kind] for kind in "ppnnpnpn"]
    return cast("Callable[..., int] | None", function)


def _turn(axes: list[Tensor], bits: int) -> None:
    """Change cells, in place, into those at the same places of the Z-order as they have on the Hilbert curve."""
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
